"""The pinned dependencies of some extras of pyproject.toml, one a line, for an image that holds our source.

    python deploy/requirements.py pyproject.toml cpu torchserve

(`pip install .[cpu]` would need all of our source first, and every change to it would rebuild the layer.)
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


def flatten(extras: Mapping[str, Sequence[str]], wanted: Sequence[str], project: str) -> Iterator[str]:
    """The requirements of these extras, and of the extras that they name; `KeyError` for one unknown."""
    for extra in wanted:
        for requirement in extras[extra]:
            own = re.fullmatch(rf"{re.escape(project)}\[([\w,-]+)\]", requirement)
            if own:
                yield from flatten(extras, own[1].split(","), project)
            else:
                yield requirement


def main() -> int:
    """Print them, each once, in the order of the alphabet."""
    project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    print("\n".join(sorted(set(flatten(extras, sys.argv[2:], project["name"])))))
    return 0


if __name__ == "__main__":
    sys.exit(main())

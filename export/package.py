"""Copy the served model into the Python package, as `audiocnn/released/`.

That is the file that the parity report names, and the float32 logits of the synthetic sounds: `audiocnn`
compares its own logits with them when it loads the model.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from audiocnn import command
from audiocnn.files import replacing
from audiocnn.model.engine import Engine
from audiocnn.model.loading import (
    PARITY_REPORT,
    REFERENCE,
    RELEASED,
    float32_of,
    served_model_path,
    synthetic_logits,
)
from export import common


def package(store: Path, folder: Path) -> Path:
    """Fill `folder` from a model store; returns the path of the model. Raises `ModelFileError`."""
    source = served_model_path(store)
    reference = Engine(float32_of(source), threads=1)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*"):
        old.unlink()
    shutil.copy(source, folder / source.name)
    (folder / PARITY_REPORT).write_text(json.dumps({"serves": source.name}) + "\n", encoding="utf-8")
    with replacing(folder / REFERENCE) as part:
        rows = synthetic_logits(reference).round(4).tolist()
        part.write_text(json.dumps({"logits": rows}) + "\n", encoding="utf-8")
    return folder / source.name


def _options(parser: argparse.ArgumentParser) -> None:
    common.add_folders(parser, "store")
    parser.add_argument("--out", type=Path, default=RELEASED, metavar="DIR", help="(audiocnn/released)")


@command.entry_point(_options, "--store model_store")
def main(args: argparse.Namespace) -> None:
    """Package the store of the command line."""
    print(common.described(package(args.store, args.out)))


if __name__ == "__main__":
    sys.exit(main())

"""Pin what our dependencies depend on: `python -m deploy.constraints` writes deploy/constraints.txt.

pip resolves the extras that the images hold, installs nothing, and its choice is written down, so that an
image built next year holds what was tested today. (torch's own requirements under CUDA are exact already.)
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from deploy.requirements import flatten

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "deploy" / "constraints.txt"
IMAGES = ("cpu", "torchserve", "gateway", "export")
_HEAD = "# Written by `make constraints`: what the images hold, with all that it depends on.\n"


def wanted() -> list[str]:
    """The direct requirements of all images."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return sorted(set(flatten(project["optional-dependencies"], IMAGES, project["name"])))


def resolve(requirements: list[str]) -> list[str]:
    """`name==version` of these and of all that they need, as pip chooses today."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        subprocess.run([*command, "--report", report.name, *requirements], check=True)
        chosen = json.loads(Path(report.name).read_text(encoding="utf-8"))["install"]
    pairs = (
        (re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower(), item["metadata"]["version"])
        for item in chosen
    )
    return sorted(f"{name}=={version.partition('+')[0]}" for name, version in pairs)  # torch: +cpu or not


def main() -> int:
    """Write the file."""
    pins = resolve(wanted())
    FILE.write_text(_HEAD + "".join(f"{pin}\n" for pin in pins), encoding="utf-8")
    print(f"{FILE.relative_to(ROOT)}: {len(pins)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The released model for the Python package: `python -m export.package` fills `audiocnn/released/`.

It takes the file that `parity.json` says is to be served, and keeps the float32 logits of the synthetic
sounds beside it: a machine that loads the model compares its own with them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from audiocnn.errors import ModelFileError
from audiocnn.files import replacing
from audiocnn.model.engine import Engine
from audiocnn.model.loading import (
    CERTIFICATE,
    REFERENCE,
    RELEASED,
    float32_of,
    served_model_path,
    synthetic_logits,
)


def package(store: Path, folder: Path) -> Path:
    """Fill `folder` from a model store; returns the model's path. Raises `ModelFileError`."""
    source = served_model_path(store)
    reference = Engine(float32_of(source), threads=1)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*"):
        old.unlink()
    shutil.copy(source, folder / source.name)
    (folder / CERTIFICATE).write_text(json.dumps({"serves": source.name}) + "\n", encoding="utf-8")
    with replacing(folder / REFERENCE) as part:
        rows = synthetic_logits(reference).round(4).tolist()
        part.write_text(json.dumps({"logits": rows}) + "\n", encoding="utf-8")
    return folder / source.name


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m export.package", description=__doc__.split("\n\n")[0])
    parser.add_argument("--store", type=Path, default=Path("model_store"), help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=RELEASED, help="(%(default)s)")
    args = parser.parse_args()
    try:
        path = package(args.store, args.out)
    except ModelFileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

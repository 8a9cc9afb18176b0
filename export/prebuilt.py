"""Put a model that is ONNX already into the store: what `audiocnn teach` wrote, or a file from elsewhere.

A file from elsewhere gets the JSON beside it as metadata. The file is run on the synthetic sounds: a taught
model must return the logits that it returned when it was made, any other finite numbers, the same alone and
in a batch. The report, `parity.json`, goes into the archive.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from audiocnn import command
from audiocnn.files import replacing, sha256, write_text
from audiocnn.model.engine import CONFIG_KEY, INT8, Engine
from audiocnn.model.loading import (
    PARITY_REPORT,
    REFERENCE,
    float32_of,
    largest_difference,
    served_model_path,
    synthetic_logits,
)
from audiocnn.model.loading import TOLERANCE as INT8_TOLERANCE
from export import common
from export.common import NAME
from export.parity import check_gates, print_report

TOLERANCE = 1e-2  # of the largest logit, between two machines, and alone or in a batch


def put(source: Path, store: Path) -> dict[str, Any]:
    """Copy the model with its metadata; returns the parity report. Raises `ModelFileError`."""
    path = served_model_path(source) if source.is_dir() else source
    float32 = float32_of(path) if float32_of(path).is_file() else path
    _clear(store)
    name = _copy(float32, store)
    files = {name: _compare(Engine(store / name), source)}
    if float32 != path and (row := _compare_int8(path, float32))["passes"]:
        name = _copy(path, store)
        files[name] = row
    for own, row in files.items():
        row["sha256"] = sha256(store / own)
    if (source / REFERENCE).is_file():
        (store / REFERENCE).write_bytes((source / REFERENCE).read_bytes())
    return {"checkpoint": sha256(path), "files": files, "serves": name}


def _copy(path: Path, store: Path) -> str:
    """Copy a model with its metadata; returns its name in the store."""
    engine, proto = Engine(path), onnx.load(path)
    name = f"{NAME}{INT8}.onnx" if path.stem.endswith(INT8) else f"{NAME}.onnx"
    onnx.helper.set_model_props(proto, engine.metadata | {CONFIG_KEY: engine.config.to_json()})
    with replacing(store / name) as part:
        onnx.save(proto, part)
    return name


def _compare_int8(path: Path, float32: Path) -> dict[str, Any]:
    """int8 on this machine: where it computes something else than float32, it does not go into the store."""
    difference = largest_difference(Engine(path), Engine(float32))
    return {"largest_difference": difference, "passes": difference <= INT8_TOLERANCE}


def _clear(store: Path) -> None:
    """Remove the exports of another checkpoint."""
    store.mkdir(parents=True, exist_ok=True)
    for pattern in (f"{NAME}*.onnx", f"{NAME}*.pt", f"{NAME}*.pt2", PARITY_REPORT, REFERENCE):
        for old in store.glob(pattern):
            old.unlink()


def _compare(engine: Engine, source: Path) -> dict[str, Any]:
    logits = synthetic_logits(engine)
    if not np.isfinite(logits).all():
        return {"largest_difference": float("inf"), "passes": False}
    expected = np.concatenate([synthetic_logits(engine, only=number) for number in range(len(logits))])
    if (source / REFERENCE).is_file():
        document = json.loads((source / REFERENCE).read_text(encoding="utf-8"))
        expected = np.array(document["logits"], np.float32)
    difference = float(np.abs(logits - expected).max() / max(1e-6, np.abs(expected).max()))
    return {"largest_difference": difference, "passes": difference <= TOLERANCE}


@command.entry_point(common.folders("checkpoint", "store"), "--checkpoint mine --store model_store")
def main(args: argparse.Namespace) -> None:
    """Put it there, write and print the report. Raises `ModelFileError` if the comparison fails."""
    report = put(args.checkpoint, args.store)
    write_text(args.store / PARITY_REPORT, json.dumps(report, indent=1) + "\n")
    print_report(report)
    print(json.dumps(report))
    check_gates(report)


if __name__ == "__main__":
    sys.exit(main())

"""Publish a finished run: weights, configuration, metrics and model card.

Weights are stored in half precision and measured as stored, by the serving code. A run that was trained on
all folds cannot be measured on any: `--fold-model` names a run of the same recipe that was trained without
some folds, and is measured on these instead.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from audiocnn import command
from audiocnn.command import FoldModel, parse_fold_model, parse_folds
from audiocnn.errors import DatasetError
from audiocnn.model import checkpoint
from training import model_card
from training.data import add_data_option
from training.evaluate import evaluate, print_report


def release(
    run: Path,
    data: Path,
    measured: FoldModel,
    out: Path,
    *,
    calibration: Path | None = None,
    scratch: FoldModel | None = None,
) -> None:
    """Write weights, `config.json`, `metrics.json`, the model card (`README.md`), and `NOTICE` if a teacher's
    licence asks for it, into `out`. Prints the accuracy in both precisions.

    `measured` is the run or a fold model of it, with folds that it was not trained on. `calibration` is the
    JSON of `training.calibrate`: its temperature and threshold go into the configuration. `scratch` is a run
    without a teacher, with folds that it was not trained on, for comparison. Raises `DatasetError` or
    `ModelFileError`.
    """
    fitted = json.loads(calibration.read_text(encoding="utf-8")) if calibration else {}
    model, folds = measured
    report = _measure(model, data, folds, fitted)
    if report["trained_on"]:
        raise DatasetError(
            f"{model} was trained on fold {report['trained_on']}: measure a --fold-model that was not"
        )
    config, log_mel, network = checkpoint.load(run)
    config = checkpoint.save(out, replace(config, **_calibrated(fitted)), log_mel, network, half=True)
    print_report(report)
    print(f"accuracy of the float32 weights: {report['accuracy_float32']:.2%}")
    report |= {
        "training": config.provenance,
        "is_fold_model": model != run,
        "cross_validation": fitted or None,
    }
    if scratch:
        report["from_scratch"] = _from_scratch(scratch, data)
    if notice := model_card.notice(config):
        (out / "NOTICE").write_text(notice, encoding="utf-8")
    (out / "metrics.json").write_text(json.dumps(report) + "\n", encoding="utf-8")
    (out / "README.md").write_text(model_card.render(report, config), encoding="utf-8")


def _measure(run: Path, data: Path, folds: Sequence[int], fitted: dict[str, Any]) -> dict[str, Any]:
    """The report of a run as it is published: calibrated, in half precision."""
    full = evaluate(run, data, folds)
    config, log_mel, model = checkpoint.load(run)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder), replace(config, **_calibrated(fitted)), log_mel, model, half=True)
        report = evaluate(Path(folder), data, folds, robust=True)
    return report | {"accuracy_float32": full["accuracy"]}


def _from_scratch(scratch: FoldModel, data: Path) -> dict[str, Any]:
    """Accuracy, folds and epochs of a run without a teacher."""
    folder, folds = scratch
    report = evaluate(folder, data, folds)
    config, _, _ = checkpoint.load(folder)
    if report["trained_on"] or "teacher" in config.provenance:
        raise DatasetError(
            f"{folder} has a teacher or was trained on fold {folds}: it is no run from scratch"
        )
    return {"accuracy": report["accuracy"], "folds": folds, "epochs": config.provenance["epochs"]}


def _calibrated(fitted: dict[str, Any]) -> dict[str, Any]:
    return {name: fitted[name] for name in ("temperature", "unknown_threshold") if name in fitted}


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="folder that training.train wrote")
    add_data_option(parser)
    measured = parser.add_mutually_exclusive_group(required=True)
    measured.add_argument("--folds", type=parse_folds, help="folds that the run was not trained on")
    fold_model: dict[str, Any] = {"type": parse_fold_model, "metavar": "RUN=FOLDS"}
    measured.add_argument("--fold-model", help="a run to measure instead, and its folds", **fold_model)
    add("--calibration", type=Path, metavar="FILE", help="JSON of training.calibrate (none)")
    add("--scratch", help="a run without a teacher to compare with, and its folds (none)", **fold_model)
    add("--out", type=Path, default=Path("checkpoints/esc50"), metavar="DIR", help="(%(default)s)")


@command.entry_point(
    _options, "--run runs/release --data data/ESC-50 --fold-model runs/fold4=4 --calibration calibration.json"
)
def main(args: argparse.Namespace) -> None:
    """Release what the command line names."""
    measured: FoldModel = args.fold_model or (args.run, args.folds)
    options = {"calibration": args.calibration, "scratch": args.scratch}
    release(args.run, args.data, measured, args.out, **options)


if __name__ == "__main__":
    sys.exit(main())

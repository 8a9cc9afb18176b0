"""A finished run -> the weights that are shipped: `python -m training.release`.

Weights are stored in half precision, and measured as stored, by the code that serves. A run that was
trained on all folds cannot be measured on any: `--twin` names a run of the same recipe that left some
folds out, whose numbers on these stand for what one may expect.
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

from audiocnn.errors import DatasetError, ModelFileError
from audiocnn.model import checkpoint
from training import model_card
from training.calibrate import Pair, parse_pair
from training.data import parse_folds
from training.evaluate import evaluate, print_report


def release(
    run: Path,
    data: Path,
    measured: Pair,
    out: Path,
    *,
    pool: Path | None = None,
    scratch: Pair | None = None,
) -> None:
    """Write `out/`: weights, `config.json`, `metrics.json`, `MODEL_CARD.md`, and `NOTICE` if a teacher's
    licence asks for it. Prints the accuracy of both precisions.

    `measured` is the run, or its twin, and the folds that it has not seen. `pool` is the JSON of
    `training.calibrate` over the cross-validation of the recipe: its temperature and threshold for unknown
    sounds go into the configuration. `scratch` is a run of the same network and epochs without a teacher, and
    folds that it has not seen: its accuracy stands beside. Raises `DatasetError` or `ModelFileError`.
    """
    fitted = json.loads(pool.read_text(encoding="utf-8")) if pool else {}
    twin, folds = measured
    report = _measure(twin, data, folds, fitted)
    if report["trained_on"]:
        raise DatasetError(
            f"{twin} was trained on fold {report['trained_on']}: measure a --twin that was not"
        )
    config, log_mel, model = checkpoint.load(run)
    config = checkpoint.save(out, replace(config, **_calibration(fitted)), log_mel, model, half=True)
    print_report(report)
    print(f"accuracy of the float32 weights before: {report['accuracy_float32']:.2%}")
    report |= {"training": config.provenance, "is_twin": twin != run, "cross_validation": fitted or None}
    if scratch:
        report["from_scratch"] = _from_scratch(scratch, data)
    if notice := model_card.notice(config):
        (out / "NOTICE").write_text(notice, encoding="utf-8")
    (out / "metrics.json").write_text(json.dumps(report) + "\n", encoding="utf-8")
    (out / "MODEL_CARD.md").write_text(model_card.render(report, config), encoding="utf-8")


def _measure(run: Path, data: Path, folds: Sequence[int], fitted: dict[str, Any]) -> dict[str, Any]:
    """The report of a run as it would be shipped: calibrated, in half precision."""
    full = evaluate(run, data, folds)
    config, log_mel, model = checkpoint.load(run)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder), replace(config, **_calibration(fitted)), log_mel, model, half=True)
        report = evaluate(Path(folder), data, folds, robust=True)
    return report | {"accuracy_float32": full["accuracy"]}


def _from_scratch(scratch: Pair, data: Path) -> dict[str, Any]:
    """Accuracy, folds and epochs of a run without a teacher."""
    folder, folds = scratch
    report = evaluate(folder, data, folds)
    config, _, _ = checkpoint.load(folder)
    if report["trained_on"] or "teacher" in config.provenance:
        raise DatasetError(f"{folder} learnt from a teacher or from fold {folds}: it is no run from scratch")
    return {"accuracy": report["accuracy"], "folds": folds, "epochs": config.provenance["epochs"]}


def _calibration(fitted: dict[str, Any]) -> dict[str, Any]:
    return {name: fitted[name] for name in ("temperature", "unknown_threshold") if name in fitted}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m training.release", description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="folder that training.train wrote")
    parser.add_argument("--data", type=Path, required=True, help="dataset with the held-out folds")
    measured = parser.add_mutually_exclusive_group(required=True)
    measured.add_argument("--folds", type=parse_folds, help="folds that the run has not seen")
    measured.add_argument("--twin", type=parse_pair, metavar="RUN=FOLDS", help="who is measured instead")
    parser.add_argument("--pool", type=Path, help="JSON of training.calibrate: temperature and threshold")
    parser.add_argument("--scratch", type=parse_pair, metavar="RUN=FOLDS", help="the same without a teacher")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/esc50"), help="(%(default)s)")
    args = parser.parse_args(arguments)
    try:
        pair: Pair = args.twin or (args.run, args.folds)
        release(args.run, args.data, pair, args.out, pool=args.pool, scratch=args.scratch)
    except (DatasetError, ModelFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

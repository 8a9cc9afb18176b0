"""Cross-validation, put together: `python -m training.calibrate --pair runs/a=1 --pair runs/b=2 --data DIR`.

Each run answers the folds that it was not trained on; together that is one prediction for every clip by
a model that never heard it. The temperature of a fold is fitted on the predictions of the other folds,
so the calibration error after scaling is held out as well.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from audiocnn.classifier import Classifier
from audiocnn.datasets import Dataset, read_dataset
from audiocnn.errors import DatasetError, ModelFileError
from training import calibration
from training.data import parse_folds
from training.evaluate import predict, trained_on

REFUSED_SHARE = 0.05  # of the known sounds: what it may cost to refuse unknown ones

Pair = tuple[Path, Sequence[int]]


@dataclass(frozen=True)
class Part:
    """What one run answered to one fold that it was not trained on."""

    run: str  # the name of its folder
    fold: int
    probs: npt.NDArray[np.float32]  # (num_clips, num_classes), at the run's own temperature
    logits: npt.NDArray[np.floating[Any]]  # (num_clips, num_classes), see calibration.as_logits
    target: npt.NDArray[np.int64]  # (num_clips,)

    @property
    def accuracy(self) -> float:
        """Share of clips named rightly, 0 to 1."""
        return float((self.probs.argmax(axis=1) == self.target).mean())


def pooled(pairs: Sequence[Pair], dataset: Dataset) -> list[Part]:
    """The out-of-fold predictions of every (checkpoint, folds) pair, fold by fold.

    Raises `DatasetError` where a run was trained on a fold that it is to answer, or the runs' classes
    differ; `ModelFileError` where there is no model.
    """
    parts = []
    class_names: tuple[str, ...] = ()
    for path, folds in pairs:
        classifier = Classifier.load(path)
        config = classifier.config
        if seen := trained_on(config, dataset, folds):
            raise DatasetError(f"{path} was trained on fold {seen}: its answers there are not out-of-fold")
        class_names = class_names or config.class_names
        if config.class_names != class_names:
            raise DatasetError(f"{path} has other classes than {pairs[0][0]}")
        for fold in folds:
            probs, target = predict(classifier, dataset, [fold], desc=f"{path.name}, fold {fold}")
            logits = calibration.as_logits(probs, config.temperature)
            parts.append(Part(path.name, fold, probs, logits, target))
    return parts


def fit(parts: Sequence[Part]) -> float:
    """The one temperature for all these predictions."""
    logits = np.concatenate([part.logits for part in parts])
    return calibration.fit_temperature(logits, np.concatenate([part.target for part in parts]))


def held_out_temperatures(parts: Sequence[Part]) -> list[float]:
    """For every part the temperature fitted on the parts of all other folds.

    Other runs' answers to the same fold (another seed) are left out too: they are of the same clips.
    Raises `DatasetError` if there is only one fold.
    """
    if len({part.fold for part in parts}) < 2:
        raise DatasetError("a temperature is fitted on the other folds: give runs for two folds or more")
    fitted = {fold: fit([part for part in parts if part.fold != fold]) for fold in {p.fold for p in parts}}
    return [fitted[part.fold] for part in parts]


def summarise(parts: Sequence[Part]) -> dict[str, Any]:
    """Accuracy per fold with mean and spread, calibration before and after scaling, final `temperature`
    and `unknown_threshold`.

    `accuracy_std` is the sample standard deviation over the parts. "Before" is at the temperatures that
    the runs have now; `temperature` is what to write into the configuration, whatever it is now.
    """
    temperatures = held_out_temperatures(parts)
    scaled = [calibration.softmax(part.logits, t) for part, t in zip(parts, temperatures, strict=True)]
    target = np.concatenate([part.target for part in parts])
    before, after = np.concatenate([part.probs for part in parts]), np.concatenate(scaled)
    accuracies = [part.accuracy for part in parts]
    temperature = fit(parts)
    confidence = calibration.softmax(np.concatenate([part.logits for part in parts]), temperature).max(axis=1)
    return {
        "accuracy": float((before.argmax(axis=1) == target).mean()),
        "accuracy_mean": float(np.mean(accuracies)),
        "accuracy_std": float(np.std(accuracies, ddof=1)),
        "num_clips": len(target),
        "folds": [
            {
                "run": part.run,
                "fold": part.fold,
                "num_clips": len(part.target),
                "accuracy": part.accuracy,
                "temperature": t,
                "ece": calibration.ece(part.probs, part.target),
                "ece_scaled": calibration.ece(probs, part.target),
            }
            for part, t, probs in zip(parts, temperatures, scaled, strict=True)
        ],
        "ece": calibration.ece(before, target),
        "ece_scaled": calibration.ece(after, target),
        "nll": calibration.nll(before, target),
        "nll_scaled": calibration.nll(after, target),
        "reliability": calibration.reliability(before, target),
        "reliability_scaled": calibration.reliability(after, target),
        "temperature": temperature,
        "unknown_threshold": calibration.threshold_for(confidence, REFUSED_SHARE),
    }


def print_summary(summary: dict[str, Any]) -> None:
    """The summary for people."""
    table = Table("run", "fold", "clips", "accuracy", "temperature", "ECE before", "after")
    for row in summary["folds"]:
        numbers = [f"{row['accuracy']:.2%}", f"{row['temperature']:.3f}"]
        numbers += [f"{row['ece']:.2%}", f"{row['ece_scaled']:.2%}"]
        table.add_row(row["run"], str(row["fold"]), str(row["num_clips"]), *numbers)
    Console().print(table)
    print(f"accuracy {summary['accuracy_mean']:.2%} ± {summary['accuracy_std']:.2%} (standard deviation)")
    print(
        f"pooled over {summary['num_clips']} clips: ECE {summary['ece']:.2%}, with temperatures fitted on "
        f"the other folds {summary['ece_scaled']:.2%}; NLL {summary['nll']:.3f}, {summary['nll_scaled']:.3f}"
    )
    print(
        f"temperature fitted on all: {summary['temperature']:.4f}; a confidence below "
        f"{summary['unknown_threshold']:.4f} is that of {REFUSED_SHARE:.0%} of the known sounds"
    )


def parse_pair(text: str) -> Pair:
    """`runs/fold1=1` or `runs/other=1,2` -> the folder and its folds; for argparse."""
    path, _, folds = text.rpartition("=")
    if not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not CHECKPOINT=FOLDS")
    return Path(path), parse_folds(folds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m training.calibrate", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument(
        "--pair",
        type=parse_pair,
        action="append",
        required=True,
        metavar="CHECKPOINT=FOLDS",
        help="a run and the folds that it was not trained on; once for every run",
    )
    parser.add_argument("--data", type=Path, required=True, help="ESC-50 or UrbanSound8K folder, or a CSV")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args(arguments)
    try:
        summary = summarise(pooled(args.pair, read_dataset(args.data)))
    except (DatasetError, ModelFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_summary(summary)
    if args.json:
        args.json.write_text(json.dumps(summary) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Fit temperature and threshold for unknown sounds on the out-of-fold predictions of a cross-validation.

Each fold model predicts the folds that it was not trained on; together that is one prediction for every clip
by a model that was not trained on it. For the calibration error after scaling, the temperature of a fold is
fitted on the other folds.
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
from rich.console import Console
from rich.table import Table

from audiocnn import calibration, command
from audiocnn.arrays import AnyFloatArray, FloatArray, IntArray
from audiocnn.classifier import Classifier
from audiocnn.command import FoldModel, parse_fold_model
from audiocnn.datasets import Dataset, read_dataset
from audiocnn.errors import DatasetError
from audiocnn.probabilities import sigmoid, softmax
from training import multilabel
from training.data import add_data_option
from training.evaluate import predict, trained_on

REJECTED_SHARE = 0.05  # of the known sounds, that the threshold for unknown sounds may reject


@dataclass(frozen=True)
class FoldPredictions:
    """Predictions of one run for one fold that it was not trained on."""

    run: str  # name of its folder
    fold: int
    probs: FloatArray  # (num_clips, num_classes), at the run's own temperature
    logits: AnyFloatArray  # (num_clips, num_classes), see calibration.as_logits
    target: IntArray  # (num_clips,), or (num_clips, num_classes)

    @property
    def has_several_labels(self) -> bool:
        """Whether `target` is `(num_clips, num_classes)` of 0 and 1."""
        return self.target.ndim == 2

    @property
    def accuracy(self) -> float:
        """Accuracy; the mean average precision where a clip has several labels. 0 to 1."""
        if self.has_several_labels:
            return float(multilabel.metrics(self.probs, self.target)["map"])
        return float((self.probs.argmax(axis=1) == self.target).mean())

    def scaled(self, temperature: float) -> AnyFloatArray:
        """Probabilities at another temperature."""
        activation = sigmoid if self.has_several_labels else softmax
        return activation(self.logits, temperature)


def out_of_fold_predictions(models: Sequence[FoldModel], dataset: Dataset) -> list[FoldPredictions]:
    """The predictions of every fold model, one element per fold.

    Raises `DatasetError` if a run was trained on its fold or the classes of the runs differ, `ModelFileError`
    if a run has no checkpoint.
    """
    predictions = []
    class_names: tuple[str, ...] = ()
    for path, folds in models:
        classifier = load_fold_model(path, dataset, folds)
        config = classifier.config
        class_names = class_names or config.class_names
        if config.class_names != class_names:
            raise DatasetError(f"{path} has other classes than {models[0][0]}")
        for fold in folds:
            probs, target = predict(classifier, dataset, [fold], desc=f"{path.name}, fold {fold}")
            measures = multilabel if target.ndim == 2 else calibration
            logits = measures.as_logits(probs, config.temperature)
            predictions.append(FoldPredictions(path.name, fold, probs, logits, target))
    return predictions


def load_fold_model(
    path: Path, dataset: Dataset, folds: Sequence[int], *, threads: int | None = None
) -> Classifier:
    """A model to measure on these folds. Raises `DatasetError` if it was trained on one of them."""
    classifier = Classifier.load(path, threads=threads)
    if seen := trained_on(classifier.config, dataset, folds):
        raise DatasetError(f"{path} was trained on fold {seen}: its predictions there are not out-of-fold")
    return classifier


def fit(parts: Sequence[FoldPredictions]) -> float:
    """One temperature for all these predictions."""
    logits = np.concatenate([part.logits for part in parts])
    measures = multilabel if parts[0].has_several_labels else calibration
    temperature: float = measures.fit_temperature(logits, np.concatenate([part.target for part in parts]))
    return temperature


def held_out_temperatures(parts: Sequence[FoldPredictions]) -> list[float]:
    """For every element the temperature fitted on all other folds (of all runs, also with other seeds).

    Raises `DatasetError` if there is only one fold.
    """
    if len({part.fold for part in parts}) < 2:
        raise DatasetError("a temperature is fitted on the other folds: give runs for two folds or more")
    fitted = {fold: fit([part for part in parts if part.fold != fold]) for fold in {p.fold for p in parts}}
    return [fitted[part.fold] for part in parts]


def summarise(parts: Sequence[FoldPredictions]) -> dict[str, Any]:
    """Accuracy (see `FoldPredictions.accuracy`) per fold with mean and sample standard deviation, calibration
    before and after scaling, and the final `temperature` and `unknown_threshold`.

    "Before" is at the current temperatures of the runs. `temperature` and `unknown_threshold` are fitted on
    all predictions, and are the values for the configuration.
    """
    temperatures = held_out_temperatures(parts)
    measures = multilabel if parts[0].has_several_labels else calibration
    scaled = [part.scaled(t) for part, t in zip(parts, temperatures, strict=True)]
    target = np.concatenate([part.target for part in parts])
    before, after = np.concatenate([part.probs for part in parts]), np.concatenate(scaled)
    accuracies = [part.accuracy for part in parts]
    temperature = fit(parts)
    confidence = np.concatenate([part.scaled(temperature).max(axis=1) for part in parts])
    return {
        "accuracy": float(np.average(accuracies, weights=[len(part.target) for part in parts])),
        "accuracy_mean": float(np.mean(accuracies)),
        "accuracy_std": float(np.std(accuracies, ddof=1)),
        "num_clips": len(target),
        "folds": [_row(part, t, probs) for part, t, probs in zip(parts, temperatures, scaled, strict=True)],
        "ece": measures.ece(before, target),
        "ece_scaled": measures.ece(after, target),
        "ece_of_sampling": None if parts[0].has_several_labels else calibration.ece_of_sampling(after),
        "nll": measures.nll(before, target),
        "nll_scaled": measures.nll(after, target),
        "reliability": measures.reliability(before, target),
        "reliability_scaled": measures.reliability(after, target),
        "temperature": temperature,
        "unknown_threshold": calibration.threshold_for(confidence, REJECTED_SHARE),
    }


def _row(part: FoldPredictions, temperature: float, scaled: AnyFloatArray) -> dict[str, Any]:
    measures = multilabel if part.has_several_labels else calibration
    return {
        "run": part.run,
        "fold": part.fold,
        "num_clips": len(part.target),
        "accuracy": part.accuracy,
        "temperature": temperature,
        "ece": measures.ece(part.probs, part.target),
        "ece_scaled": measures.ece(scaled, part.target),
    }


def print_summary(summary: dict[str, Any]) -> None:
    """Print the summary for people."""
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
    if summary["ece_of_sampling"] is not None:
        print(
            f"calibrated probabilities would show an ECE of {summary['ece_of_sampling']:.2%} on as many clips"
        )
    print(
        f"temperature fitted on all: {summary['temperature']:.4f}; a threshold of "
        f"{summary['unknown_threshold']:.4f} rejects {REJECTED_SHARE:.0%} of the known sounds"
    )


def add_pair_option(parser: argparse.ArgumentParser) -> None:
    """`--pair`, which becomes a list of `FoldModel`."""
    parser.add_argument(
        "--pair",
        type=parse_fold_model,
        action="append",
        required=True,
        metavar="MODEL=FOLDS",
        help="checkpoint folder or exported file, and folds that it was not trained on; once per model",
    )


def _options(parser: argparse.ArgumentParser) -> None:
    add_pair_option(parser)
    add_data_option(parser)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the numbers to this file (none)"
    )


@command.entry_point(
    _options, "--pair runs/fold1=1 --pair runs/fold2=2 --data data/ESC-50 --json calibration.json"
)
def main(args: argparse.Namespace) -> None:
    """Predict, fit, print and write. Raises `DatasetError` and `ModelFileError`."""
    summary = summarise(out_of_fold_predictions(args.pair, read_dataset(args.data)))
    print_summary(summary)
    if args.json:
        args.json.write_text(json.dumps(summary) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

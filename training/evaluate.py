"""Measure the accuracy of a model on folds that it was not trained on.

Every clip is read as a file and classified by `audiocnn.classifier` with default options, as it is when it is
served. There is no test-time augmentation; `--tta` and `--robustness` add measurements.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from audiocnn import audio, calibration, command
from audiocnn.arrays import FloatArray, IntArray
from audiocnn.classifier import Classifier
from audiocnn.command import parse_folds
from audiocnn.config import Config
from audiocnn.datasets import Dataset, LabelledClip, read_dataset
from audiocnn.errors import AudioError, DatasetError
from training import multilabel, robustness
from training.data import add_data_option, targets
from training.robustness import Condition

_BATCH = 8
_TTA_SHIFTS = (0.2, 0.4, 0.6, 0.8)  # fractions of the clip's length


def predict(
    classifier: Classifier,
    dataset: Dataset,
    folds: Sequence[int],
    *,
    condition: Condition | None = None,
    desc: str = "classify",
) -> tuple[FloatArray, IntArray]:
    """Probabilities float32 `(num_clips, num_classes)` and true class indices int64 `(num_clips,)`.

    Of a model or a table with several labels a clip the second are 0 and 1, int64
    `(num_clips, num_classes)`. A `condition` changes every clip first, see `training.robustness`. Raises
    `DatasetError` for a clip that cannot be read, or whose class the model does not have.
    """
    names = {name: number for number, name in enumerate(classifier.config.class_names)}
    clips = dataset.folds(folds)
    if unknown := sorted({label for clip in clips for label in clip.labels} - set(names)):
        raise DatasetError(f"the model has no class {', '.join(unknown)}")
    probs = []
    for first in tqdm(range(0, len(clips), _BATCH), desc=desc, unit="batch"):
        batch = clips[first : first + _BATCH]
        results = classifier.predict_batch([_read(clip, classifier, condition) for clip in batch])
        for clip, result in zip(batch, results, strict=True):
            if isinstance(result, AudioError):
                raise DatasetError(f"{clip.path}: {result}")
            probs.append(result.probs)
    several = classifier.config.activation == "sigmoid" or dataset.has_several_labels
    target = targets(clips, classifier.config.class_names, several=several)
    return np.stack(probs), target.numpy().astype(np.int64)


def _read(clip: LabelledClip, classifier: Classifier, condition: Condition | None) -> bytes:
    """The bytes of the clip's file, or of the file that the condition makes of it."""
    try:
        data = clip.path.read_bytes()
        if condition is None:
            return data
        sample_rate = classifier.config.frontend.sample_rate
        decoded = audio.decode(data, sample_rate=sample_rate, limits=classifier.limits)
        return condition(decoded.waveform, sample_rate)
    except (OSError, AudioError) as error:
        raise DatasetError(f"{clip.path}: {error}") from error


def metrics(probs: FloatArray, target: IntArray) -> dict[str, Any]:
    """`accuracy`, `top3_accuracy`, `macro_f1`, `ece` (0 to 1), `nll` (nats), `num_clips`, the bins of
    `reliability`, and `confusion[true][predicted]`, from the arrays that `predict` returns."""
    ranked = np.argsort(-probs, axis=1, kind="stable")
    num_classes = probs.shape[1]
    confusion = np.zeros((num_classes, num_classes), dtype=int)
    np.add.at(confusion, (target, ranked[:, 0]), 1)
    sizes = confusion.sum(axis=0) + confusion.sum(axis=1)
    f1 = 2 * confusion.diagonal()[sizes > 0] / sizes[sizes > 0]  # without absent, never predicted classes
    return {
        "accuracy": float((ranked[:, 0] == target).mean()),
        "top3_accuracy": float((ranked[:, :3] == target[:, None]).any(axis=1).mean()),
        "macro_f1": float(f1.mean()),
        "ece": calibration.ece(probs, target),
        "nll": calibration.nll(probs, target),
        "num_clips": len(target),
        "reliability": calibration.reliability(probs, target),
        "confusion": confusion.tolist(),
    }


def per_class(confusion: list[list[int]], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """`precision`, `recall`, `f1` (0 to 1) and `support` (clips) of every class.

    A class that was never predicted has precision 0; one that is also absent is left out.
    """
    counts = np.array(confusion)
    table = {}
    for number, name in enumerate(names):
        hits, present, predicted = counts[number, number], counts[number].sum(), counts[:, number].sum()
        if present + predicted:
            table[name] = {
                "precision": float(hits / max(predicted, 1)),
                "recall": float(hits / max(present, 1)),
                "f1": float(2 * hits / (present + predicted)),
                "support": int(present),
            }
    return table


def worst_confusions(
    confusion: list[list[int]], names: Sequence[str], count: int = 10
) -> list[dict[str, Any]]:
    """The most frequent mistakes, each `{true, predicted, count}`."""
    mistakes = np.array(confusion)
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
    pairs = [divmod(int(flat), len(names)) for flat in order]
    return [
        {"true": names[t], "predicted": names[p], "count": int(mistakes[t, p])}
        for t, p in pairs
        if mistakes[t, p]
    ]


def accuracy_tta(classifier: Classifier, dataset: Dataset, folds: Sequence[int], probs: FloatArray) -> float:
    """Accuracy (0 to 1) of the mean of `probs`, those of the unchanged clips, and of four circular shifts."""
    views = [probs]
    for share in _TTA_SHIFTS:
        shifted, target = predict(
            classifier, dataset, folds, condition=robustness.shift(share), desc=f"shift by {share:.0%}"
        )
        views.append(shifted)
    return float((np.mean(views, axis=0).argmax(axis=1) == target).mean())


def evaluate(
    model: Path,
    data: Path,
    folds: Sequence[int],
    *,
    tta: bool = False,
    robust: bool = False,
    by_class: bool = False,
) -> dict[str, Any]:
    """`metrics` of a checkpoint folder, .onnx or .pt file on folds of a dataset, with what was measured.

    `tta` adds `accuracy_tta`, `robust` adds `robustness` (see `training.robustness.measure`). Raises
    `ModelFileError` for the model, `DatasetError` for the clips, and with `by_class` or any of these two
    where a clip may have several labels: there is no confusion matrix then.
    """
    classifier = Classifier.load(model)
    dataset = read_dataset(data)
    several = classifier.config.activation == "sigmoid" or dataset.has_several_labels
    if several and (tta or robust or by_class):
        raise DatasetError("--tta, --robustness and --report are for models and tables with one label a clip")
    began = time.monotonic()
    probs, target = predict(classifier, dataset, folds)
    seconds = round(time.monotonic() - began, 1)
    report = (multilabel.metrics if several else metrics)(probs, target) | {"seconds": seconds}
    report |= _description(report.get("confusion"), classifier, dataset, folds)
    if tta:
        report["accuracy_tta"] = accuracy_tta(classifier, dataset, folds, probs)
    if robust:

        def accuracy_under(name: str, condition: Condition) -> float:
            changed, _ = predict(classifier, dataset, folds, condition=condition, desc=name)
            return float((changed.argmax(axis=1) == target).mean())

        report["robustness"] = robustness.measure(accuracy_under, report["accuracy"])
    return report


def _description(
    confusion: list[list[int]] | None, classifier: Classifier, dataset: Dataset, folds: Sequence[int]
) -> dict[str, Any]:
    """The tables by class, where a clip has one label, and what was measured."""
    names = list(classifier.config.class_names)
    tables: dict[str, Any] = {}
    if confusion is not None:
        tables["per_class"] = per_class(confusion, names)
        tables["worst_confusions"] = worst_confusions(confusion, names)
    return tables | {
        "dataset": dataset.name,
        "folds": list(folds),
        "trained_on": trained_on(classifier.config, dataset, folds),
        "class_names": names,
        "model_sha256": classifier.engine.sha256,
    }


def trained_on(config: Config, dataset: Dataset, folds: Sequence[int]) -> list[int]:
    """Those of `folds` that the model was trained on: its accuracy there says nothing about new clips."""
    if config.provenance.get("dataset") != dataset.name:
        return []
    return sorted(set(folds) & set(config.provenance.get("train_folds", [])))


def print_report(report: dict[str, Any]) -> None:
    """Print the report for people."""
    if report["trained_on"]:
        print(f"warning: the model was trained on fold {report['trained_on']}: this is not its accuracy")
    print(
        f"{report['num_clips']} clips of {report['dataset']}, folds {report['folds']}, {report['seconds']} s"
    )
    if "map" in report:
        print(
            f"mAP {report['map']:.3f}   micro F1 {report['micro_f1']:.3f}   ECE {report['ece']:.2%}   "
            f"NLL {report['nll']:.3f}"
        )
        return
    print(
        f"accuracy {report['accuracy']:.2%}   top-3 {report['top3_accuracy']:.2%}   "
        f"macro F1 {report['macro_f1']:.3f}   ECE {report['ece']:.2%}   NLL {report['nll']:.3f}"
    )
    if "accuracy_tta" in report:
        print(f"accuracy with test-time augmentation, for comparison only: {report['accuracy_tta']:.2%}")
    for row in report["worst_confusions"][:5]:
        print(f"{row['true']} predicted as {row['predicted']}: {row['count']}")
    if "robustness" in report:
        robustness.print_table(report["robustness"])


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="MODEL", help="checkpoint folder, .onnx or .pt")
    add_data_option(parser)
    add("--folds", type=parse_folds, required=True, help="folds to measure on: 4, or 4,5")
    add("--json", type=Path, metavar="FILE", help="also write the numbers to this file (none)")
    add("--report", type=Path, metavar="DIR", help="also write report.html and its plots (none)")
    add("--tta", action="store_true", help="also measure the mean over five circular shifts (off)")
    add("--robustness", action="store_true", help="also measure under noise, codecs, gain, ... (off)")


@command.entry_point(_options, "--checkpoint runs/mine --data data/ESC-50 --folds 4 --json metrics.json")
def main(args: argparse.Namespace) -> None:
    """Measure, print and write. Raises as `evaluate` does."""
    options = {"tta": args.tta, "robust": args.robustness, "by_class": bool(args.report)}
    report = evaluate(args.checkpoint, args.data, args.folds, **options)
    print_report(report)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report) + "\n", encoding="utf-8")
    if args.report:
        from training.report import write_report  # here: importing matplotlib takes a second

        print(f"report: {write_report(report, args.report)}")


if __name__ == "__main__":
    sys.exit(main())

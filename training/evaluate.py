"""Accuracy of a model on folds it has not seen: `python -m training.evaluate --folds 4 --json FILE`.

Every clip goes as a file through `audiocnn.classifier` with default options: the way it is served. No
test-time augmentation, no second look.
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
import numpy.typing as npt
from tqdm import tqdm

from audiocnn.classifier import Classifier
from audiocnn.datasets import Dataset, read_dataset
from audiocnn.errors import AudioError, DatasetError, ModelFileError
from training.data import parse_folds

_BATCH = 8


def predict(classifier: Classifier, dataset: Dataset, folds: Sequence[int]) -> tuple[Any, Any]:
    """Probabilities `(num_clips, num_classes)` float32 and true class indices `(num_clips,)`.

    Raises `DatasetError` for a clip that cannot be read or whose class the model does not have.
    """
    names = {name: number for number, name in enumerate(classifier.config.class_names)}
    clips = dataset.folds(folds)
    if unknown := sorted({clip.label for clip in clips} - set(names)):
        raise DatasetError(f"the model has no class {', '.join(unknown)}")
    probs = []
    for first in tqdm(range(0, len(clips), _BATCH), desc="classify", unit="batch"):
        batch = clips[first : first + _BATCH]
        answers = classifier.classify([clip.path.read_bytes() for clip in batch])
        for clip, answer in zip(batch, answers, strict=True):
            if isinstance(answer, AudioError):
                raise DatasetError(f"{clip.path}: {answer}")
            probs.append(answer.probs)
    return np.stack(probs), np.array([names[clip.label] for clip in clips])


def metrics(probs: npt.NDArray[np.float32], target: npt.NDArray[np.int64]) -> dict[str, Any]:
    """`accuracy`, `top3_accuracy`, `macro_f1` (0 to 1), `num_clips`, and `confusion[true][predicted]`."""
    ranked = np.argsort(-probs, axis=1, kind="stable")
    num_classes = probs.shape[1]
    confusion = np.zeros((num_classes, num_classes), dtype=int)
    np.add.at(confusion, (target, ranked[:, 0]), 1)
    hits = confusion.diagonal()
    sizes = confusion.sum(axis=0) + confusion.sum(axis=1)
    f1 = 2 * hits[sizes > 0] / sizes[sizes > 0]  # classes neither present nor predicted do not count
    return {
        "accuracy": float((ranked[:, 0] == target).mean()),
        "top3_accuracy": float((ranked[:, :3] == target[:, None]).any(axis=1).mean()),
        "macro_f1": float(f1.mean()),
        "num_clips": len(target),
        "confusion": confusion.tolist(),
    }


def worst_confusions(report: dict[str, Any], names: Sequence[str], count: int = 5) -> list[str]:
    """The most frequent mistakes, as lines for people."""
    confusion = np.array(report["confusion"])
    np.fill_diagonal(confusion, 0)
    order = np.argsort(-confusion, axis=None, kind="stable")[:count]
    pairs = [divmod(int(flat), len(names)) for flat in order]
    return [f"{names[t]} heard as {names[p]}: {confusion[t, p]}" for t, p in pairs if confusion[t, p]]


def evaluate(model: Path, data: Path, folds: Sequence[int]) -> dict[str, Any]:
    """`metrics` of a checkpoint folder, .onnx or .pt on folds of a dataset, with what was measured."""
    classifier = Classifier.load(model)
    dataset = read_dataset(data)
    began = time.monotonic()
    report = metrics(*predict(classifier, dataset, folds))
    provenance = classifier.config.provenance
    is_same_data = provenance.get("dataset") == dataset.name
    trained_on = sorted(set(folds) & set(provenance.get("train_folds", []))) if is_same_data else []
    return report | {
        "dataset": dataset.name,
        "folds": list(folds),
        "trained_on": trained_on,  # folds that were also trained on: then this is not the model's accuracy
        "class_names": list(classifier.config.class_names),
        "model_sha256": classifier.engine.sha256,
        "seconds": round(time.monotonic() - began, 1),
    }


def print_report(report: dict[str, Any]) -> None:
    """The report for people."""
    if report["trained_on"]:
        print(f"warning: the model was trained on fold {report['trained_on']}: this is not its accuracy")
    print(
        f"{report['num_clips']} clips of {report['dataset']}, folds {report['folds']}, {report['seconds']} s"
    )
    print(
        f"accuracy {report['accuracy']:.2%}   top-3 {report['top3_accuracy']:.2%}   "
        f"macro F1 {report['macro_f1']:.3f}"
    )
    print("\n".join(worst_confusions(report, report["class_names"])))


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint folder, .onnx or .pt")
    parser.add_argument("--data", type=Path, required=True, help="ESC-50 or UrbanSound8K folder, or a CSV")
    parser.add_argument("--folds", type=parse_folds, required=True, help="folds to measure on, such as 4")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args(arguments)
    try:
        report = evaluate(args.checkpoint, args.data, args.folds)
    except (DatasetError, ModelFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_report(report)
    if args.json:
        args.json.write_text(json.dumps(report) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

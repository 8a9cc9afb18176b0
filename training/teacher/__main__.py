"""Fit a linear head on the teacher's features, measure it, and write soft labels of the training clips.

Features are kept on disk: an interrupted command resumes when it runs again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from audiocnn import calibration, command
from audiocnn.arrays import FloatArray, IntArray
from audiocnn.backbone.weights import ATTRIBUTION, WHEEL_SHA256, cache_folder, load_weights
from audiocnn.command import parse_folds
from audiocnn.datasets import Dataset, LabelledClip, read_dataset
from audiocnn.errors import DatasetError
from audiocnn.machine import cpu_name
from audiocnn.probabilities import softmax
from audiocnn.teach.views import DEFAULT_VIEWS, VIEWS
from training.calibrate import load_fold_model
from training.data import add_data_option, load_waveforms, targets, without_classes
from training.evaluate import predict
from training.teacher.features import FeatureStore
from training.teacher.fine_tuning import FRONTEND, Tuning, fine_tuned_teacher
from training.teacher.head import L2, fit_head
from training.teacher.soft_labels import (
    GROUPS,
    SoftLabels,
    Teach,
    all_views,
    check_names,
    cross_fitted,
    linear_teacher,
    mean_over_views,
    recording_groups,
)

_ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Examples:
    """Features of clips in all views, and their class indices."""

    features: FloatArray  # (num_views, num_clips, d); the first view is the unchanged clip
    target: IntArray  # (num_clips,)


def measure(
    training: Examples, test: Examples, num_classes: int, *, network: FloatArray | None = None, **options: Any
) -> dict[str, Any]:
    """`{variant: {accuracy, nll, ece, seconds}}` on `test`, for heads fitted on `training`.

    `network` are log-probabilities `(num_clips, num_classes)` of AudioCNN, to average with.
    """
    rows: dict[str, Any] = {}
    if network is not None:
        rows["network"] = _scores(network, test.target) | {"seconds": 0.0}
    for name, fit_views in (("frozen", 1), ("views", len(training.features))):
        began = time.monotonic()
        head = fit_head(*all_views(training.features[:fit_views], training.target), num_classes, **options)
        seconds = round(time.monotonic() - began, 1)
        log_probs = head.log_probs(test.features)
        variants = {name: log_probs[0], f"{name}, averaged": mean_over_views(log_probs)}
        if network is not None:
            both = np.stack([variants[f"{name}, averaged"], network])
            variants[f"{name}, averaged, and network"] = mean_over_views(both)
        rows |= {key: _scores(value, test.target) | {"seconds": seconds} for key, value in variants.items()}
    return rows


def measure_fine_tuned(
    clips: Sequence[LabelledClip],
    training: Examples,
    tested: Sequence[LabelledClip],
    test: Examples,
    teach: Callable[[Sequence[LabelledClip], Examples], Teach],
) -> dict[str, Any]:
    """The rows of `measure` for a teacher whose network is fine-tuned too."""
    began = time.monotonic()
    both = Examples(
        np.concatenate([training.features, test.features], axis=1),
        np.concatenate([training.target, test.target]),
    )
    is_test = np.arange(len(both.target)) >= len(clips)
    log_probs = teach([*clips, *tested], both)(~is_test, is_test)
    seconds = round(time.monotonic() - began, 1)
    variants = {"fine-tuned": log_probs[0], "fine-tuned, averaged": mean_over_views(log_probs)}
    return {name: _scores(value, test.target) | {"seconds": seconds} for name, value in variants.items()}


def _scores(log_probs: FloatArray, target: IntArray) -> dict[str, float]:
    probs = softmax(log_probs)
    return {
        "accuracy": float((probs.argmax(axis=1) == target).mean()),
        "nll": calibration.nll(probs, target),
        "ece": calibration.ece(probs, target),
    }


def network_log_probs(folder: Path, dataset: Dataset, folds: Sequence[int]) -> FloatArray:
    """Log-probabilities of a checkpoint for these folds. Raises `DatasetError` if it was trained on one."""
    classifier = load_fold_model(folder, dataset, folds)
    if classifier.config.class_names != dataset.class_names:
        raise DatasetError(f"{folder} has other classes than {dataset.name}")
    probs, _ = predict(classifier, dataset, folds)
    return np.asarray(calibration.as_logits(probs, 1.0), dtype=np.float32)


def soft_labels(
    clips: Sequence[LabelledClip], target: IntArray, dataset: Dataset, args: argparse.Namespace, teach: Teach
) -> SoftLabels:
    """Cross-fitted labels of the training clips, with their provenance."""
    log_probs = cross_fitted(recording_groups(clips, args.groups), teach)
    provenance = {
        "dataset": dataset.name,
        "train_folds": args.train_folds,
        "teacher": ATTRIBUTION,
        "teacher_sha256": WHEEL_SHA256,
        "views": args.views,
        "groups": args.groups,
        "l2": args.l2,
        "commit": _commit(),
        "torch": torch.__version__,
        "fine_tuned_epochs": args.fine_tune,
        "cross_fitted": _scores(log_probs, target),
    }
    names = tuple(clip.path.name for clip in clips)
    return SoftLabels(torch.from_numpy(log_probs), names, dataset.class_names, provenance)


def _commit() -> str:
    """The commit of this code, with `-dirty` if it was changed since; empty outside git."""
    line = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def print_table(rows: dict[str, Any], folds: Sequence[int]) -> None:
    """Print the measurement."""
    table = Table("head", "accuracy", "ECE", "NLL", "seconds", title=f"teacher on fold {folds}")
    for name, row in rows.items():
        cells = (f"{row['accuracy']:.2%}", f"{row['ece']:.2%}", f"{row['nll']:.3f}", f"{row['seconds']:g}")
        table.add_row(name, *cells)
    Console().print(table)


def parse_views(text: str) -> list[str]:
    """`clean,shift` -> names of views; for argparse."""
    names = text.split(",")
    if unknown := [name for name in names if name not in VIEWS]:
        raise argparse.ArgumentTypeError(f"no view {', '.join(unknown)}; there are {', '.join(VIEWS)}")
    return names


class TeacherRun:
    """The dataset, the features and the teacher of one command line."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Raises `DatasetError` for a dataset that cannot be read, or folds to fit and to measure on."""
        dataset = read_dataset(args.data)
        self.args, self.dataset = args, dataset
        if args.exclude:
            self.dataset = without_classes(dataset, args.exclude.split(","))
        if seen := sorted(set(args.measure) & set(args.train_folds)):
            raise DatasetError(f"fold {seen} is fitted on: measure another one")
        self.store = FeatureStore(args.cache, device=args.device, cache=args.cache)
        self.clips = self.dataset.folds(args.train_folds)
        check_names(self.clips)
        self.training = self.examples(self.clips)

    def examples(self, clips: Sequence[LabelledClip]) -> Examples:
        """Features and classes of clips."""
        features = self.store.features(clips, self.args.views)
        return Examples(features, targets(clips, self.dataset.class_names).numpy())

    def teach(self, clips: Sequence[LabelledClip], known: Examples) -> Teach:
        """A linear head on the features of these clips, or with `--fine-tune` a fine-tuned network."""
        args, num_classes = self.args, len(self.dataset.class_names)
        options: dict[str, Any] = {"num_classes": num_classes, "l2": args.l2, "device": args.device}
        if not args.fine_tune:
            return linear_teacher(known.features, known.target, **options)
        waveforms = load_waveforms(clips, FRONTEND)
        tuning = Tuning(load_weights(args.cache), args.fine_tune, args.device)
        fit = partial(fit_head, **options)
        return fine_tuned_teacher(tuning, fit, waveforms, known.features, known.target, args.views)

    def measure(self) -> dict[str, Any]:
        """Accuracy, NLL and ECE on `--measure`, see `measure` and `measure_fine_tuned`."""
        args = self.args
        clips = self.dataset.folds(args.measure)
        test = self.examples(clips)
        network = network_log_probs(args.ensemble, self.dataset, args.measure) if args.ensemble else None
        num_classes = len(self.dataset.class_names)
        rows = measure(self.training, test, num_classes, network=network, l2=args.l2, device=args.device)
        if args.fine_tune:
            rows |= measure_fine_tuned(self.clips, self.training, clips, test, self.teach)
        print_table(rows, args.measure)
        return rows

    def write_labels(self) -> dict[str, float]:
        """Write the soft labels; returns their accuracy, NLL and ECE."""
        teach = self.teach(self.clips, self.training)
        labels = soft_labels(self.clips, self.training.target, self.dataset, self.args, teach)
        labels.save(self.args.soft_labels)
        print(f"cross-fitted labels of {len(self.clips)} clips written to {self.args.soft_labels}")
        scores: dict[str, float] = labels.provenance["cross_fitted"]
        return scores


def _options(parser: argparse.ArgumentParser) -> None:
    add_data_option(parser)
    add = parser.add_argument
    add("--train-folds", type=parse_folds, required=True, metavar="FOLDS", help="folds to fit on: 1,2,4")
    add("--measure", type=parse_folds, default=[], metavar="FOLDS", help="folds to measure on (none)")
    add("--ensemble", type=Path, metavar="CHECKPOINT", help="also measure the mean with this network (none)")
    add("--soft-labels", type=Path, metavar="FILE", help="write labels of the training clips (none)")
    add("--exclude", metavar="CLASS,...", help="leave these classes out (none)")
    views = f"views to fit on, of {', '.join(VIEWS)} ({','.join(DEFAULT_VIEWS)})"
    add("--views", type=parse_views, default=list(DEFAULT_VIEWS), metavar="NAME,...", help=views)
    add(
        "--l2",
        type=command.number(float, 0),
        default=L2,
        metavar="X",
        help="L2 penalty of the head (%(default)s)",
    )
    add(
        "--groups",
        type=command.number(int, 2),
        default=GROUPS,
        metavar="N",
        help="groups for cross-fitting (%(default)s)",
    )
    help_text = "fine-tune the network for so many epochs; needs a GPU (0: frozen)"
    add("--fine-tune", type=command.natural, default=0, metavar="EPOCHS", help=help_text)
    default_cache = cache_folder()
    add("--cache", type=Path, default=default_cache, metavar="DIR", help="weights, features (%(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    add("--threads", type=command.natural, default=0, metavar="N", help="CPU threads (0: PyTorch's choice)")


@command.entry_point(
    _options, "--data data/ESC-50 --train-folds 1,2,4 --measure 3 --soft-labels runs/labels.safetensors"
)
def main(args: argparse.Namespace) -> None:
    """Measure, write labels and print the JSON. Raises `DatasetError` and `ModelFileError`."""
    if args.threads:
        torch.set_num_threads(args.threads)
    teacher = TeacherRun(args)
    summary: dict[str, Any] = {
        "train_folds": args.train_folds,
        "measured_folds": args.measure,
        "views": args.views,
        "hardware": f"{args.device}, {cpu_name()}, {torch.get_num_threads()} threads",
    }
    if args.measure:
        summary["heads"] = teacher.measure()
    if args.soft_labels:
        summary["soft_labels"] = teacher.write_labels()
    print(json.dumps(summary))


if __name__ == "__main__":
    sys.exit(main())

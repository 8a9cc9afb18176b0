"""Fit a linear head on the teacher's features, measure it, and label the training clips softly.

Example: `python -m training.teacher --data data/ESC-50 --train-folds 1,2,4 --measure 3 --soft-labels
runs/labels.safetensors`. Features are kept on disk; stop and repeat the command to go on.
"""

from __future__ import annotations

import argparse
import json
import platform
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

from audiocnn.classifier import Classifier
from audiocnn.datasets import Dataset, LabelledClip, read_dataset
from audiocnn.errors import DatasetError, ModelFileError
from training import calibration
from training.data import load_waveforms, parse_folds, targets, without_classes
from training.evaluate import predict, trained_on
from training.teacher.features import FeatureStore
from training.teacher.fine_tuning import FRONTEND, Tuning, fine_tuned_teacher
from training.teacher.head import FloatArray, IntArray, fit_head
from training.teacher.soft_labels import (
    SoftLabels,
    Teach,
    all_views,
    check_names,
    cross_fitted,
    linear_teacher,
    mean_over_views,
    recording_groups,
)
from training.teacher.views import VIEWS
from training.teacher.weights import ATTRIBUTION, WHEEL_SHA256, cache_folder, load_weights

_DEFAULT_VIEWS = ["clean", "slower", "faster", "peak", "gain-20dB"]
_ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Examples:
    """Features of clips in all views, and their classes."""

    features: FloatArray  # (num_views, num_clips, d); the first view is the clip as it is
    target: IntArray  # (num_clips,)


def measure(
    training: Examples,
    test: Examples,
    num_classes: int,
    *,
    network: FloatArray | None = None,
    **options: Any,
) -> dict[str, Any]:
    """`{variant: {accuracy, nll, ece, seconds}}` on `test`, of heads fitted on `training`.

    `network` are log-probabilities `(num_clips, num_classes)` of our own network, to average with.
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
    """The rows of `measure` for a teacher whose network is fine-tuned as well."""
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
    probs = calibration.softmax(log_probs)
    return {
        "accuracy": float((probs.argmax(axis=1) == target).mean()),
        "nll": calibration.nll(probs, target),
        "ece": calibration.ece(probs, target),
    }


def network_log_probs(folder: Path, dataset: Dataset, folds: Sequence[int]) -> FloatArray:
    """What a checkpoint that never saw the folds answers to them; `DatasetError` if it saw one."""
    classifier = Classifier.load(folder)
    if seen := trained_on(classifier.config, dataset, folds):
        raise DatasetError(f"{folder} was trained on fold {seen}: its answers there prove nothing")
    if classifier.config.class_names != dataset.class_names:
        raise DatasetError(f"{folder} has other classes than {dataset.name}")
    probs, _ = predict(classifier, dataset, folds)
    return np.asarray(calibration.as_logits(probs, 1.0), dtype=np.float32)


def soft_labels(
    clips: Sequence[LabelledClip], target: IntArray, dataset: Dataset, args: argparse.Namespace, teach: Teach
) -> SoftLabels:
    """Cross-fitted labels of the training clips, with where they come from."""
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
    """The commit of this code; with `-dirty` if it was changed since; empty outside of git."""
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def print_table(rows: dict[str, Any], folds: Sequence[int]) -> None:
    """The measurement for people."""
    table = Table("head", "accuracy", "ECE", "NLL", "seconds", title=f"teacher on fold {folds}")
    for name, row in rows.items():
        cells = (f"{row['accuracy']:.2%}", f"{row['ece']:.2%}", f"{row['nll']:.3f}", f"{row['seconds']:g}")
        table.add_row(name, *cells)
    Console().print(table)


def parse_views(text: str) -> list[str]:
    """`clean,shift` -> names of views; for argparse."""
    names = text.split(",")
    if strangers := [name for name in names if name not in VIEWS]:
        raise argparse.ArgumentTypeError(f"no view {', '.join(strangers)}; there are {', '.join(VIEWS)}")
    return names


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    summary, example = (__doc__ or "").split("\n\n")[:2]
    parser = argparse.ArgumentParser(prog="python -m training.teacher", description=summary, epilog=example)
    parser.add_argument("--data", type=Path, required=True, help="ESC-50 or UrbanSound8K folder, or a CSV")
    parser.add_argument("--train-folds", type=parse_folds, required=True, help="folds to fit on: 1,2,4")
    parser.add_argument("--measure", type=parse_folds, default=[], metavar="FOLDS", help="measure on these")
    parser.add_argument("--ensemble", type=Path, metavar="CHECKPOINT", help="average with it when measuring")
    parser.add_argument("--soft-labels", type=Path, metavar="FILE", help="write labels of the training clips")
    parser.add_argument("--exclude", metavar="CLASS,...", help="as if these classes did not exist")
    views = f"of {', '.join(VIEWS)} ({','.join(_DEFAULT_VIEWS)})"
    parser.add_argument("--views", type=parse_views, default=_DEFAULT_VIEWS, metavar="NAME,...", help=views)
    parser.add_argument("--l2", type=float, default=2e-3, help="weight penalty of the head (%(default)s)")
    parser.add_argument("--groups", type=int, default=8, help="of recordings, to cross-fit (%(default)s)")
    parser.add_argument("--fine-tune", type=int, default=0, metavar="EPOCHS", help="the network too (GPU)")
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="weights, features (%(default)s)")
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if has_gpu else "cpu", help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: as many as torch chooses)")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All that the command line asks for; what is printed as JSON."""
    dataset = read_dataset(args.data)
    if args.exclude:
        dataset = without_classes(dataset, args.exclude.split(","))
    if seen := sorted(set(args.measure) & set(args.train_folds)):
        raise DatasetError(f"fold {seen} is fitted on: measure another one")
    store = FeatureStore(args.cache, device=args.device, cache=args.cache)

    def examples(clips: Sequence[LabelledClip]) -> Examples:
        return Examples(store.features(clips, args.views), targets(clips, dataset.class_names).numpy())

    def teach(clips: Sequence[LabelledClip], known: Examples) -> Teach:
        num_classes, device = len(dataset.class_names), args.device
        head = linear_teacher(known.features, known.target, num_classes, l2=args.l2, device=device)
        if not args.fine_tune:
            return head
        waveforms = load_waveforms(clips, FRONTEND)
        fit = partial(fit_head, num_classes=num_classes, l2=args.l2, device=device)
        tuning = Tuning(load_weights(args.cache), args.fine_tune, device)
        return fine_tuned_teacher(tuning, fit, waveforms, known.features, known.target, args.views)

    clips = dataset.folds(args.train_folds)
    check_names(clips)
    training = examples(clips)
    summary: dict[str, Any] = {
        "train_folds": args.train_folds,
        "measured_folds": args.measure,
        "views": args.views,
        "hardware": f"{args.device}, {platform.machine()}, {torch.get_num_threads()} threads",
    }
    if args.measure:
        tested = dataset.folds(args.measure)
        test = examples(tested)
        options: dict[str, Any] = {"l2": args.l2, "device": args.device}
        if args.ensemble:
            options["network"] = network_log_probs(args.ensemble, dataset, args.measure)
        summary["heads"] = measure(training, test, len(dataset.class_names), **options)
        if args.fine_tune:
            summary["heads"] |= measure_fine_tuned(clips, training, tested, test, teach)
        print_table(summary["heads"], args.measure)
    if args.soft_labels:
        labels = soft_labels(clips, training.target, dataset, args, teach(clips, training))
        labels.save(args.soft_labels)
        summary["soft_labels"] = labels.provenance["cross_fitted"]
        print(f"cross-fitted labels of {len(clips)} clips written to {args.soft_labels}")
    return summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the last line printed is JSON."""
    args = parse_arguments(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        summary = run(args)
    except (DatasetError, ModelFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        return 130
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())

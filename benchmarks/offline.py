"""Throughput and accuracy without a server: `python -m benchmarks.offline --model FILE --data DIR`.

Reads ESC-50, UrbanSound8K, a CSV, or a folder of sound files, and classifies them in one process: clips a
second, the real-time factor, the share that is unknown to the model, and the accuracy if there are labels.
Use `--folds` to choose clips that the model was not trained on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from audiocnn import command
from audiocnn.classifier import Classifier
from audiocnn.command import parse_folds
from audiocnn.datasets import read_dataset
from audiocnn.errors import AudioError, DatasetError, ModelFileError
from audiocnn.results import Result
from benchmarks.corpus import sound_files


@dataclass(frozen=True)
class Item:
    """A file, and its label if one is known."""

    path: Path
    label: str | None


@dataclass
class Totals:
    """Sums over all clips; `seconds` of audio, `wall_seconds` of time, reading included."""

    clips: int = 0
    errors: int = 0
    seconds: float = 0.0
    wall_seconds: float = 0.0
    labelled: int = 0
    right: int = 0
    unknown: int = 0


def items(data: Path, folds: Sequence[int]) -> list[Item]:
    """The labelled clips of a table, or all sound files below a folder, labelled by the folder of each.

    Raises `DatasetError` if there are none, or if `folds` are given without a dataset.
    """
    try:
        dataset = read_dataset(data)
    except DatasetError:
        if folds or not (files := sound_files(data)):
            raise
        return [Item(path, None) for path in files]
    chosen = dataset.folds(folds) if folds else dataset.clips
    labels: dict[Path, str | None] = {clip.path: clip.label for clip in chosen}
    if not (dataset.has_table or folds):  # folders may be no classes, and have files beside them
        labels = {path: labels.get(path) for path in sound_files(data)}
    return [Item(path, label) for path, label in labels.items()]


def load_on_first(model: Path, providers: Sequence[str]) -> Classifier:
    """The classifier on the first of the devices ("cpu", "cuda", "cuda:1") that can run it.

    Raises `ModelFileError` with the reasons if none can.
    """
    reasons = []
    for provider in providers:
        device = "cuda:0" if provider == "cuda" else provider
        try:
            return Classifier.load(model, device=device)
        except (ModelFileError, RuntimeError, AssertionError) as error:  # the last two: a CPU-only torch
            reasons.append(f"{provider}: {error}")
            print(f"not on {provider}: {error}", file=sys.stderr)
    raise ModelFileError("no provider works; " + "; ".join(reasons))


def batches(chosen: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Slices of `size`, the last perhaps shorter."""
    for first in range(0, len(chosen), size):
        yield chosen[first : first + size]


def run(classifier: Classifier, chosen: Sequence[Item], batch: int) -> Totals:
    """Classify everything, `batch` files at a time, after one unmeasured batch."""
    totals = Totals()
    known = set(classifier.config.class_names)
    classifier.predict_batch([item.path.read_bytes() for item in chosen[:batch]])
    count = -(-len(chosen) // batch)
    for part in track(batches(chosen, batch), "classifying", total=count, console=Console(stderr=True)):
        began = time.perf_counter()
        results = classifier.predict_batch([item.path.read_bytes() for item in part])
        totals.wall_seconds += time.perf_counter() - began
        for item, result in zip(part, results, strict=True):
            add(totals, item, result, known)
    return totals


def add(totals: Totals, item: Item, result: Result | AudioError, known: set[str]) -> None:
    """Count one result. Labels that are no class of the model do not count for the accuracy."""
    totals.clips += 1
    if isinstance(result, AudioError):
        totals.errors += 1
        print(f"{item.path.name}: {result}", file=sys.stderr)
        return
    totals.seconds += result.clip.seconds
    totals.unknown += result.is_unknown
    if item.label in known:
        totals.labelled += 1
        totals.right += result.config.class_names[int(result.probs.argmax())] == item.label


def summarise(classifier: Classifier, totals: Totals) -> dict[str, object]:
    """The line of JSON. `real_time_factor` is seconds of computing per second of audio, `unknown` a share."""
    return {
        "model": classifier.engine.path.name,  # float32 if int8 fails its parity check here
        "device": classifier.engine.device,
        "clips": totals.clips,
        "errors": totals.errors,
        "clips_per_second": totals.clips / totals.wall_seconds,
        "real_time_factor": totals.wall_seconds / totals.seconds if totals.seconds else None,
        "times_real_time": totals.seconds / totals.wall_seconds,
        "unknown": totals.unknown / answered if (answered := totals.clips - totals.errors) else None,
        "labelled": totals.labelled,
        "accuracy": totals.right / totals.labelled if totals.labelled else None,
    }


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help=".onnx, .pt or a checkpoint folder")
    parser.add_argument("--data", type=Path, required=True, help="dataset, CSV or folder of sound files")
    parser.add_argument("--providers", default="cuda,cpu", help="the first that works is used (%(default)s)")
    parser.add_argument("--folds", type=parse_folds, default=[], help="of a dataset, such as 4 or 1,2 (all)")
    parser.add_argument("--limit", type=command.count, help="at most this many clips, evenly spaced")
    parser.add_argument("--batch", type=command.count, default=8, help="files at a time (%(default)s)")


@command.entry_point(_options, "--model model_store/audiocnn-int8.onnx --data data/ESC-50 --folds 4")
def main(args: argparse.Namespace) -> int:
    """Entry point; the last line is JSON. Exit code 2: the model or the data cannot be used."""
    try:
        chosen = items(args.data, args.folds)
        if args.limit:
            chosen = chosen[:: max(1, len(chosen) // args.limit)][: args.limit]
        classifier = load_on_first(args.model, args.providers.split(","))
        summary = summarise(classifier, run(classifier, chosen, args.batch))
    except (OSError, ValueError) as error:  # ModelFileError and DatasetError are ValueErrors
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = Table(show_header=False)
    for name, value in summary.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())

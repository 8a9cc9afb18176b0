"""Fit thresholds of detections for every class, out of fold, and write them into a checkpoint.

Each fold model is measured on folds that it was not trained on: on their clips, on scenes of one minute over
background at three signal-to-noise ratios, and on background alone (`--background`: a folder of your own
recordings without events). A class's upper threshold is the lowest at which its detections have the wanted
precision and, on background, the wanted number of false alarms per hour. What is reported for a fold is at
the thresholds fitted on the other folds; the checkpoint gets those fitted on all.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from audiocnn import command, detections
from audiocnn.calibration import LEVELS, precise_levels
from audiocnn.classifier import Classifier
from audiocnn.config import Config, Threshold
from audiocnn.datasets import read_dataset
from audiocnn.detections import OFF_SHARE, Detection, DetectionRules, EventTracker, FrameAverager
from audiocnn.errors import DatasetError
from audiocnn.files import write_text
from audiocnn.model import checkpoint
from training import model_card
from training.calibrate import add_pair_option
from training.data import add_data_option
from training.fold_scores import SCENES, FoldScores, fold_scores
from training.scene_scores import Frame, ScoredScene
from training.scenes import SceneEvent


@dataclass
class Counts:
    """Detections of every class at every level of the upper threshold: arrays `(num_classes, num_levels)`."""

    detections: npt.NDArray[np.int64]
    true: npt.NDArray[np.int64]  # of these, those that overlap an event of their class
    found: npt.NDArray[np.int64]  # events that a detection of their class overlaps
    false_alarms: npt.NDArray[np.int64]  # on background
    events: npt.NDArray[np.int64]  # (num_classes,)
    hours: float  # of background

    @classmethod
    def none(cls, num_classes: int) -> Counts:
        """All zero."""
        a, b, c, d = (np.zeros((num_classes, len(LEVELS)), np.int64) for _ in range(4))
        return cls(a, b, c, d, np.zeros(num_classes, np.int64), 0.0)

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def at(self, levels: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float64]]:
        """`precision`, `recall` and `false_alarms_per_hour` of every class at its level; NaN: unknown."""
        row = np.arange(len(levels))
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "precision": self.true[row, levels] / self.detections[row, levels],
                "recall": self.found[row, levels] / self.events,
                "false_alarms_per_hour": self.false_alarms[row, levels] / self.hours,
            }


def count(scores: FoldScores, config: Config) -> Counts:
    """Detections of a fold at every level."""
    counts = Counts.none(len(config.class_names))
    for scene in (scene for scenes_ in scores.sets.values() for scene in scenes_):
        _count_scene(counts, scene, config)
    for scene in scores.background:
        counts.hours += scene.duration / 3600
        for level, found in enumerate(_detections_by_level(scene, config)):
            for one in found:
                counts.false_alarms[config.class_names.index(one.label), level] += 1
    return counts


def _count_scene(counts: Counts, scene: ScoredScene, config: Config) -> None:
    index = {name: number for number, name in enumerate(config.class_names)}
    for event in scene.events:
        counts.events[index[event.label]] += 1
    for level, found in enumerate(_detections_by_level(scene, config)):
        for one in found:
            counts.detections[index[one.label], level] += 1
            counts.true[index[one.label], level] += any(overlaps(one, event) for event in scene.events)
        for event in scene.events:
            counts.found[index[event.label], level] += any(overlaps(one, event) for one in found)


def overlaps(one: Detection, event: SceneEvent) -> bool:
    """Whether a detection that is over and an event of its class have a moment in common."""
    assert one.end is not None, "the event is not over"
    return one.label == event.label and one.start < event.end and event.start < one.end


def frames_of(windows: Iterable[Frame], frame_seconds: float) -> list[Frame]:
    """Frames of this length from the windows of a scene."""
    averager = FrameAverager(frame_seconds)
    frames = [frame for window in windows for frame in averager.update(*window)]
    return [*frames, *averager.finish()]


def events_of(frames: Sequence[Frame], config: Config, chosen: dict[str, Threshold]) -> list[Detection]:
    """The events in the frames of a scene, at the thresholds of each class."""
    tracker = EventTracker(config.class_names, chosen, DetectionRules())
    return detections.ended([one for frame in frames for one in tracker.update(*frame)] + tracker.finish())


def one_threshold(config: Config, level: float) -> dict[str, Threshold]:
    """The same for all classes."""
    return dict.fromkeys(config.class_names, Threshold(on=level, off=OFF_SHARE * level))


def _detections_by_level(scene: ScoredScene, config: Config) -> list[list[Detection]]:
    """The detections of a scene with one threshold for all classes, for each of `LEVELS`."""
    frames = frames_of(scene.windows, detections.HOP_SECONDS / 2)
    return [events_of(frames, config, one_threshold(config, level)) for level in LEVELS]


def fit(counts: Counts, *, precision: float, false_alarms_per_hour: float) -> npt.NDArray[np.int64]:
    """The level of every class: the lowest from which on precision and false alarms are as wanted.

    See `precise_levels`.
    """
    is_quiet = counts.false_alarms <= false_alarms_per_hour * counts.hours
    return precise_levels(counts.detections, counts.true, precision=precision, is_allowed=is_quiet)


def summarise(by_fold: dict[int, Counts], class_names: Sequence[str], **wanted: float) -> dict[str, Any]:
    """Thresholds fitted on all folds, with what was measured on each fold at those fitted on the others.

    Raises `DatasetError` if there is only one fold.
    """
    if len(by_fold) < 2:
        raise DatasetError("thresholds are reported on other folds than they are fitted on: give two or more")
    held_out = Counts.none(len(class_names))
    folds = []
    for fold, counts in by_fold.items():
        levels = fit(total(other for name, other in by_fold.items() if name != fold), **wanted)
        chosen = _chosen(counts, levels)
        folds.append({"fold": fold} | _total(chosen))
        held_out = held_out + chosen
    levels = fit(total(by_fold.values()), **wanted)
    rates = held_out.at(np.zeros_like(levels))
    thresholds = {
        name: replace(
            one,
            precision=_rounded(rates["precision"][number]),
            recall=_rounded(rates["recall"][number]),
            false_alarms_per_hour=_rounded(rates["false_alarms_per_hour"][number]),
        )
        for number, (name, one) in enumerate(to_thresholds(class_names, levels).items())
    }
    return {**wanted, "folds": folds, "all": _total(held_out), "thresholds": thresholds}


def to_thresholds(class_names: Sequence[str], levels: npt.NDArray[np.int64]) -> dict[str, Threshold]:
    """The thresholds of the levels that `fit` returns."""
    ons = [LEVELS[level] for level in levels]
    return {
        name: Threshold(on=on, off=round(OFF_SHARE * on, 4))
        for name, on in zip(class_names, ons, strict=True)
    }


def total(parts: Iterable[Counts]) -> Counts:
    """The sum."""
    first, *others = parts
    return sum(others, start=first)


def _chosen(counts: Counts, levels: npt.NDArray[np.int64]) -> Counts:
    """The counts at one level for each class, in all columns."""
    row = np.arange(len(levels))
    arrays = (counts.detections, counts.true, counts.found, counts.false_alarms)
    a, b, c, d = (np.repeat(array[row, levels][:, None], len(LEVELS), axis=1) for array in arrays)
    return Counts(a, b, c, d, counts.events, counts.hours)


def _total(counts: Counts) -> dict[str, float]:
    """Over all classes, of counts that `_chosen` made."""
    detected = int(counts.detections[:, 0].sum())
    return {
        "events": int(counts.events.sum()),
        "detections": detected,
        "precision": float(counts.true[:, 0].sum() / max(detected, 1)),
        "recall": float(counts.found[:, 0].sum() / counts.events.sum()),
        "false_alarms_per_hour": float(counts.false_alarms[:, 0].sum() / counts.hours),
        "background_hours": counts.hours,
    }


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def print_summary(summary: dict[str, Any]) -> None:
    """Print the thresholds for people."""
    table = Table("class", "on", "off", "precision", "recall", "false alarms / h")
    for name, one in summary["thresholds"].items():
        numbers = [one.precision, one.recall, one.false_alarms_per_hour]
        texts = ["-" if value is None else f"{value:.2f}" for value in numbers]
        table.add_row(name, f"{one.on:.2f}", f"{one.off:.3f}", *texts)
    Console().print(table)
    for row in [*summary["folds"], summary["all"]]:
        where = f"fold {row['fold']}, thresholds of the others" if "fold" in row else "together"
        print(
            f"{where}: precision {row['precision']:.3f}, recall {row['recall']:.3f} of {row['events']} "
            f"events, {row['false_alarms_per_hour']:.2f} false alarms per hour in "
            f"{row['background_hours']:.1f} h"
        )


def write(folder: Path, summary: dict[str, Any]) -> None:
    """Put the thresholds into the config.json of a checkpoint.

    What was measured goes into the metrics and the card of a release.
    """
    path, metrics = folder / checkpoint.CONFIG, folder / "metrics.json"
    config = Config.from_json(path.read_text(encoding="utf-8"))
    config = replace(config, thresholds=summary["thresholds"])
    write_text(path, config.to_json())
    if metrics.exists():
        measured = {name: value for name, value in summary.items() if name != "thresholds"}
        report = json.loads(metrics.read_text(encoding="utf-8")) | {"detections": measured}
        write_text(metrics, json.dumps(report) + "\n")
        write_text(folder / "README.md", model_card.render(report, config))


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_pair_option(parser)
    add_data_option(parser)
    help_text = "write the thresholds into this checkpoint, and use its temperature (none: only print)"
    add("--checkpoint", type=Path, metavar="DIR", help=help_text)
    add(
        "--precision",
        type=command.number(float, 0, 1),
        default=0.9,
        help="wanted precision of a class (%(default)s)",
    )
    help_text = "most false alarms of a class on background (%(default)s)"
    add("--false-alarms-per-hour", type=command.positive, default=0.5, metavar="N", help=help_text)
    add("--background", type=Path, metavar="DIR", help="your recordings without events (synthetic noise)")
    help_text = "scenes per fold and signal-to-noise ratio (%(default)s)"
    add("--scenes", type=command.count, default=SCENES, metavar="N", help=help_text)
    add("--cache", type=Path, metavar="DIR", help="folder that keeps what the models answered (none)")
    add("--threads", type=command.count, metavar="N", help="CPU threads (all)")
    add("--json", type=Path, metavar="FILE", help="also write the numbers to this file (none)")


@command.entry_point(
    _options, "--pair runs/fold3=3 --pair runs/fold4=4 --data data/ESC-50 --checkpoint runs/mine"
)
def main(args: argparse.Namespace) -> None:
    """Measure, fit, print and write. Raises `DatasetError` and `ModelFileError`."""
    dataset = read_dataset(args.data)
    config = Classifier.load(args.checkpoint or args.pair[0][0], threads=args.threads).config
    by_fold = {
        scores.fold: count(scores, config)
        for model in args.pair
        for scores in fold_scores(model, dataset, config.temperature, args)
    }
    wanted = {"precision": args.precision, "false_alarms_per_hour": args.false_alarms_per_hour}
    summary = summarise(by_fold, config.class_names, **wanted)
    print_summary(summary)
    if args.checkpoint:
        write(args.checkpoint, summary)
    if args.json:
        rows = {name: asdict(one) for name, one in summary["thresholds"].items()}
        args.json.write_text(json.dumps(summary | {"thresholds": rows}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

"""How well events are found and placed: `python -m benchmarks.detections --pair MODEL=FOLD`.

Scenes of one minute are made from clips of a fold that the weights were not trained on (`training.scenes`):
1 to 6 events at known times over synthetic background at 0, 10 and 20 dB. Metrics are those of sed_eval, in
an environment of its own (`benchmarks.event_metrics`). Every method has thresholds that were chosen on the
other folds: one for all classes with the best segment F1 at 10 dB, or one for each class as
`training.thresholds` fits them. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from audiocnn import command
from audiocnn.calibration import LEVELS
from audiocnn.classifier import Classifier
from audiocnn.config import Config, Threshold
from audiocnn.datasets import Dataset, read_dataset
from audiocnn.detections import Detection
from audiocnn.errors import DatasetError
from audiocnn.machine import cpu_name
from benchmarks import event_metrics
from benchmarks.event_metrics import Rows
from training import fold_scores, thresholds
from training.calibrate import add_pair_option
from training.fold_scores import EMPTY_SCENES, SNRS_DB
from training.scene_scores import Frame, ScoredScene, Windowing, score
from training.scenes import empty_scenes

SHORT, LONG = Windowing(2.0, 0.5), Windowing(5.0, 0.5)
CHOSEN_AT_DB = 10.0  # where the threshold of a method is chosen, and all methods are compared
_SED_EVAL = Path("build/sed-eval/bin/python")


@dataclass(frozen=True)
class Method:
    """How window probabilities become events."""

    name: str
    windowing: Windowing  # of the windows that are scored
    step: int = 1  # each `step`th of them is used
    per_class: bool = False  # thresholds of `training.thresholds`

    @property
    def hop(self) -> float:
        """Seconds between the windows that are used."""
        return self.step * self.windowing.hop

    def frames_of(self, scene: ScoredScene) -> list[Frame]:
        """Confidences over time."""
        return thresholds.frames_of(list(scene.windows)[:: self.step], self.hop / 2)


METHODS = (
    Method("5 s windows, hop 2.5 s", LONG, step=5),
    Method("5 s windows, hop 0.5 s", LONG),
    Method("2 s windows, hop 1 s", SHORT, step=2),
    Method("2 s windows, hop 0.5 s", SHORT),
    Method("2 s windows, hop 0.5 s, a threshold per class", SHORT, per_class=True),
)


@dataclass
class Fold:
    """The scores of one fold by a model that was not trained on it."""

    fold: int
    classifier: Classifier
    scenes: dict[tuple[Windowing, float], list[ScoredScene]]  # by signal-to-noise ratio
    empty: dict[Windowing, list[ScoredScene]]
    counts: thresholds.Counts  # for the thresholds of each class


def truth(scene: ScoredScene) -> Rows:
    """What is in a scene."""
    return [(event.label, event.start, event.end) for event in scene.events]


def rows_of(found: Sequence[Detection]) -> Rows:
    """Detections for the metrics."""
    return [(one.label, one.start, one.end) for one in found if one.end is not None]


def segment_f1(pairs: Sequence[tuple[Rows, Rows]]) -> float:
    """F1 in segments of 1 s, micro-averaged; to choose a threshold (the tables have that of sed_eval)."""
    hits = total = 0
    for true, found in pairs:
        one, other = (
            {(label, second) for label, a, b in rows for second in range(int(a), int(np.ceil(b)))}
            for rows in (true, found)
        )
        hits, total = hits + len(one & other), total + len(one) + len(other)
    return 2 * hits / total if total else 0.0


def choose(
    folds: Sequence[Fold], method: Method, frames: Callable[[ScoredScene], list[Frame]]
) -> dict[str, Threshold]:
    """Thresholds from these folds."""
    config = folds[0].classifier.config
    if method.per_class:
        levels = thresholds.fit(
            thresholds.total([fold.counts for fold in folds]), precision=0.9, false_alarms_per_hour=0.5
        )
        return thresholds.to_thresholds(config.class_names, levels)
    scenes = [scene for fold in folds for scene in fold.scenes[method.windowing, CHOSEN_AT_DB]]

    def found(scene: ScoredScene, level: float) -> Rows:
        chosen = thresholds.one_threshold(config, level)
        return rows_of(thresholds.events_of(frames(scene), config, chosen))

    def f1(level: float) -> float:
        return segment_f1([(truth(scene), found(scene, level)) for scene in scenes])

    return thresholds.one_threshold(config, max(LEVELS, key=f1))


@dataclass(frozen=True)
class Evaluation:
    """All folds, and the interpreter that has sed_eval."""

    folds: Sequence[Fold]
    python: Path

    def rows(self, method: Method) -> list[dict[str, Any]]:
        """One row of the table for each signal-to-noise ratio that the method was scored at."""
        config = self.folds[0].classifier.config
        kept: dict[int, list[Frame]] = {}

        def frames(scene: ScoredScene) -> list[Frame]:
            if id(scene) not in kept:
                kept[id(scene)] = method.frames_of(scene)
            return kept[id(scene)]

        chosen = {
            fold.fold: choose([other for other in self.folds if other is not fold], method, frames)
            for fold in self.folds
        }

        def events(fold: Fold, scene: ScoredScene) -> list[Detection]:
            return thresholds.events_of(frames(scene), config, chosen[fold.fold])

        alarms = [len(events(fold, scene)) for fold in self.folds for scene in fold.empty[method.windowing]]
        hours = sum(scene.duration for fold in self.folds for scene in fold.empty[method.windowing]) / 3600
        rows = []
        for snr_db in SNRS_DB:
            scenes = [(f, s) for f in self.folds for s in f.scenes.get((method.windowing, snr_db), [])]
            if scenes:
                found = [(scene, events(fold, scene)) for fold, scene in scenes]
                rows.append({"method": method.name, "snr_db": snr_db, **self._measure(config, found)})
        levels = sorted({one.on for each in chosen.values() for one in each.values()})
        shared = {"false_alarms_per_hour": sum(alarms) / hours, "on": levels if method.per_class else None}
        return [row | shared for row in rows]

    def _measure(
        self, config: Config, found: Sequence[tuple[ScoredScene, list[Detection]]]
    ) -> dict[str, float]:
        files = [(scene.duration, truth(scene), rows_of(events)) for scene, events in found]
        metrics = event_metrics.measure(self.python, config.class_names, files)
        errors = [error for scene, events in found for error in start_errors(scene, events)]
        total = sum(len(scene.events) for scene, _ in found)
        median = float(np.median(errors)) if errors else float("nan")
        return metrics | {"start_error": median, "found": len(errors) / total, "scenes": len(found)}


def start_errors(scene: ScoredScene, found: Sequence[Detection]) -> list[float]:
    """Seconds from the true start to that of the first overlapping detection of its class, where one is."""
    errors = []
    for event in scene.events:
        over = [one.start for one in found if thresholds.overlaps(one, event)]
        errors += [abs(min(over) - event.start)] if over else []
    return errors


def milliseconds_per_minute(classifier: Classifier, method: Method) -> float:
    """Processor time for one minute of audio: decoding, log-mel and network."""
    rate = classifier.config.frontend.sample_rate
    windowing, spent = Windowing(method.windowing.seconds, method.hop), []
    for minute in empty_scenes(3, sample_rate=rate, seed=1):
        began = time.process_time()
        score(classifier, [minute], windowing, desc="", quiet=True)
        spent.append(1000 * (time.process_time() - began))
    return min(spent)


def load_fold(path: Path, fold: int, dataset: Dataset, temperature: float, args: argparse.Namespace) -> Fold:
    """Score all that the methods need."""
    classifier = fold_scores.load(path, dataset, [fold], temperature, args.threads)
    (own,) = fold_scores.fold_scores((path, [fold]), dataset, temperature, args)
    short = fold_scores.windowing_of(classifier.config)
    assert short == SHORT, "the windows of detections are scored already"
    scenes = {(SHORT, snr_db): own.sets[f"{snr_db:g} dB"] for snr_db in SNRS_DB}
    scenes[LONG, CHOSEN_AT_DB] = fold_scores.scene_scores(
        classifier, dataset, fold, LONG, snr_db=CHOSEN_AT_DB, count=args.scenes, cache=args.cache
    )
    empty = {
        SHORT: own.background,
        LONG: fold_scores.empty_scores(classifier, LONG, EMPTY_SCENES // 2, args.cache),
    }
    return Fold(fold, classifier, scenes, empty, thresholds.count(own, classifier.config))


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print the results for people."""
    heads = ("method", "SNR", "segment F1", "error rate", "event F1, 0.5 s", "1 s", "start error", "found")
    table = Table(*heads, "false alarms / h", "CPU ms / min")
    for row in rows:
        numbers = ("segment_f1", "segment_error_rate", "event_f1_0.5", "event_f1_1.0")
        table.add_row(
            row["method"],
            f"{row['snr_db']:g} dB",
            *(f"{row[name]:.3f}" for name in numbers),
            f"{row['start_error']:.2f} s",
            f"{row['found']:.0%}",
            f"{row['false_alarms_per_hour']:.1f}",
            f"{row['cpu_ms_per_minute']:.0f}",
        )
    Console().print(table)


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_pair_option(parser)
    add("--data", type=Path, default=Path("data/ESC-50"), metavar="DIR", help="ESC-50 (%(default)s)")
    help_text = "temperature of the confidences (that of checkpoints/esc50)"
    add("--temperature", type=command.positive, metavar="T", help=help_text)
    help_text = "scenes per fold and signal-to-noise ratio (%(default)s)"
    add("--scenes", type=command.count, default=fold_scores.SCENES, metavar="N", help=help_text)
    add("--cache", type=Path, metavar="DIR", help="folder that keeps what the models answered (none)")
    add("--threads", type=command.count, default=1, metavar="N", help="CPU threads (%(default)s)")
    add("--sed-eval", type=Path, default=_SED_EVAL, metavar="PYTHON", help="with sed_eval (%(default)s)")
    parser.set_defaults(background=None)


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Score, choose, measure. Raises `DatasetError` and `ModelFileError`."""
    dataset = read_dataset(args.data)
    released = Config.from_json(Path("checkpoints/esc50/config.json").read_text(encoding="utf-8"))
    temperature = args.temperature or released.temperature
    pairs = [(path, fold) for path, folds in args.pair for fold in folds]
    if len(pairs) < 2:
        raise DatasetError("thresholds are chosen on other folds than they are measured on: give two pairs")
    folds = [load_fold(path, fold, dataset, temperature, args) for path, fold in pairs]
    evaluation = Evaluation(folds, args.sed_eval)
    rows = []
    for method in METHODS:
        cost = milliseconds_per_minute(folds[0].classifier, method)
        rows += [row | {"cpu_ms_per_minute": cost} for row in evaluation.rows(method)]
    return rows


@command.entry_point(
    _options, "--pair fold3/audiocnn-int8.onnx=3 --pair fold4/audiocnn-int8.onnx=4 --cache build/scores"
)
def main(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    try:
        rows = run(args)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        print(f"error: {args.sed_eval}: {reason}\nsee benchmarks/event_metrics.py", file=sys.stderr)
        return 2
    print_table(rows)
    print(json.dumps({"rows": rows, "machine": cpu_name()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

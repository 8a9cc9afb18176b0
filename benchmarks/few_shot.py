"""Accuracy of `audiocnn teach` with few clips a class: `python -m benchmarks.few_shot --data data/ESC-50`.

Ten classes are drawn, and clips of each from all folds but one; a head is fitted as `audiocnn teach` does
and tested on all clips of the fold that was left out: those of the ten classes are known sounds, all others
unknown ones, and so are the home noises of `training.far_sounds`. The backbones: `aisfx`, which was not
trained on ESC-50, and the embedding of a checkpoint. Those in `checkpoints/validation` did not see their
fold. If a checkpoint lacks ten classes, as `without-ten` does, the draws are of these; the other checkpoints
know the classes that are drawn.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from audiocnn import command
from audiocnn.arrays import FloatArray
from audiocnn.backbone.backbone import Backbone
from audiocnn.backbone.weights import cache_folder
from audiocnn.config import Config, FrontendConfig
from audiocnn.datasets import Dataset, LabelledClip, read_dataset
from audiocnn.errors import DatasetError
from audiocnn.machine import cpu_name
from audiocnn.model.engine import Engine
from audiocnn.teach.background import COUNT, made_background
from audiocnn.teach.features import FeatureTable, table_of_made, views_for
from audiocnn.teach.fit import TaughtHead, fit
from audiocnn.teach.views import VIEWS
from training import far_sounds
from training.data import load_waveforms
from training.teacher.features import FeatureStore

_BATCH = 8


@dataclass(frozen=True)
class Features:
    """Features of clips in a view, each computed once, of the background that is made, and of home noise."""

    name: str
    of: Callable[[Sequence[LabelledClip], str], FloatArray]  # (num_clips, d)
    made: FloatArray  # (COUNT, d)
    home: FloatArray  # (far_sounds.COUNT, d)


def aisfx_features(cache: Path) -> Features:
    """Those of `aisfx`, kept on disk between runs."""
    store, backbone = FeatureStore(cache, cache=cache), Backbone("aisfx", cache=cache)
    made = backbone.features(made_background(backbone.frontend))
    home = backbone.features(_home_noise(backbone.frontend))
    return Features("aisfx", lambda clips, view: store.features(clips, [view])[0], made, home)


def _home_noise(config: FrontendConfig) -> FloatArray:
    return far_sounds.make("home noise", config, far_sounds.COUNT)


def checkpoint_features(folder: Path) -> Features:
    """The embedding of a checkpoint."""
    engine, known = Engine(folder), dict[tuple[Path, str], FloatArray]()
    frontend = engine.config.frontend

    def embedding(windows: FloatArray) -> FloatArray:
        inputs = np.stack([engine.prepare(window) for window in windows])
        return engine.run(inputs, ("embedding",))["embedding"]

    def of(clips: Sequence[LabelledClip], view: str) -> FloatArray:
        missing = [clip for clip in clips if (clip.path, view) not in known]
        for first in range(0, len(missing), _BATCH):
            batch = missing[first : first + _BATCH]
            rows = embedding(VIEWS[view](load_waveforms(batch, frontend, quiet=True)).numpy())
            known.update(((clip.path, view), row) for clip, row in zip(batch, rows, strict=True))
        return np.stack([known[clip.path, view] for clip in clips])

    made, home = embedding(made_background(frontend)), embedding(_home_noise(frontend))
    return Features(f"embedding of {folder}", of, made, home)


@dataclass(frozen=True)
class Draw:
    """Clips to teach, and the clips of the fold that was left out."""

    classes: tuple[str, ...]
    taught: tuple[LabelledClip, ...]
    test: tuple[LabelledClip, ...]


def candidates(dataset: Dataset, checkpoint: Path, num_classes: int) -> list[str]:
    """The classes that the checkpoint was not told, if these are enough; else all."""
    known = Config.from_json((checkpoint / "config.json").read_text(encoding="utf-8")).class_names
    untold = [name for name in dataset.class_names if name not in known]
    return untold if len(untold) >= num_classes else list(dataset.class_names)


def draw(
    dataset: Dataset, fold: int, names: Sequence[str], num_classes: int, shots: int, rng: np.random.Generator
) -> Draw:
    """Clips of random classes of `names`. Raises `DatasetError` if a class has fewer clips than `shots`."""
    chosen = sorted(rng.choice(np.array(names), num_classes, replace=False).tolist())
    others = dataset.folds({clip.fold for clip in dataset.clips} - {fold})
    taught: list[LabelledClip] = []
    for label in chosen:
        own = [clip for clip in others if clip.label == label]
        if len(own) < shots:
            raise DatasetError(f"{label} has {len(own)} clips outside fold {fold}, fewer than {shots}")
        taught += [own[number] for number in rng.choice(len(own), shots, replace=False)]
    return Draw(tuple(chosen), tuple(taught), tuple(dataset.folds([fold])))


def table_of(clips: Sequence[LabelledClip], features: Features) -> FeatureTable:
    """What `audiocnn teach` would compute of these clips."""
    views = views_for(len(clips), COUNT)
    rows = np.concatenate([features.of(clips, view) for view in views])
    names = tuple(clip.path.name for clip in clips)
    own = FeatureTable(
        rows.astype(np.float16).astype(np.float32),
        np.repeat(np.arange(len(views)), len(clips)),
        np.tile(np.arange(len(clips)), len(views)),
        names,
        tuple(clip.label for clip in clips),
        tuple(clip.source for clip in clips),
        tuple(f"file {name}" for name in names),
    )
    return own.merged(table_of_made(features.made))


def score(head: TaughtHead, test: Sequence[LabelledClip], features: Features) -> dict[str, float]:
    """Shares from 0 to 1 on the clips of the fold that was left out, and on home noise."""
    number = {name: index for index, name in enumerate(head.class_names)}
    target = np.array([number.get(clip.label, -1) for clip in test])
    probs, is_known = head.probs(features.of(test, "clean")), target >= 0
    is_refused = probs.max(axis=1) < head.unknown_threshold
    is_home_refused = head.probs(features.home).max(axis=1) < head.unknown_threshold
    return {
        "accuracy": float((probs[is_known].argmax(axis=1) == target[is_known]).mean()),
        "left_out_accuracy": head.held_out.accuracy,
        "known_refused": float(is_refused[is_known].mean()),
        "unknown_refused": float(is_refused[~is_known].mean()),
        "home_noise_refused": float(is_home_refused.mean()),
    }


def measure(features: Features, draws: Sequence[Draw]) -> list[dict[str, float]]:
    """The scores of every draw, with the seconds of the fit."""
    rows = []
    for one in track(draws, description=f"{features.name}, {len(draws[0].taught)} clips", transient=True):
        table = table_of(one.taught, features)
        began = time.monotonic()
        head = fit(table)
        seconds = time.monotonic() - began
        rows.append(score(head, one.test, features) | {"fit_seconds": seconds})
    return rows


def summarise(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the draws, and the standard deviation of the accuracy."""
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return means | {"accuracy_std": float(np.std([row["accuracy"] for row in rows], ddof=1))}


def print_table(results: Sequence[dict[str, Any]], console: Console) -> None:
    """One row for each backbone and number of clips."""
    refused = ("known refused", "unknown refused", "home noise refused")
    table = Table("backbone", "clips a class", "accuracy", *refused, "fit, seconds")
    for row in results:
        accuracy = f"{row['accuracy']:.1%} ± {row['accuracy_std']:.1%}"
        shares = [f"{row[name.replace(' ', '_')]:.1%}" for name in refused]
        table.add_row(row["backbone"], str(row["clips"]), accuracy, *shares, f"{row['fit_seconds']:.1f}")
    console.print(table)


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", type=Path, default=Path("data/ESC-50"), metavar="DIR", help="(%(default)s)")
    add("--fold", type=command.count, default=3, help="fold to test on (%(default)s)")
    add("--checkpoint", type=Path, metavar="DIR", help="not trained on it (checkpoints/validation/foldN)")
    add("--backbone", choices=["aisfx", "checkpoint"], help="only this one (both)")
    add("--clips", default="5,10,20", metavar="N,...", help="clips a class (%(default)s)")
    add("--classes", type=command.count, default=10, help="classes in a draw (%(default)s)")
    add("--draws", type=command.count, default=10, help="(%(default)s)")
    add("--seed", type=command.natural, default=0, help="(%(default)s)")
    add("--cache", type=Path, default=cache_folder(), metavar="DIR", help="(%(default)s)")


@command.entry_point(_options, "--data data/ESC-50 --fold 3")
def main(args: argparse.Namespace) -> None:
    """Print the table. The last line printed is JSON."""
    dataset = read_dataset(args.data)
    folder = args.checkpoint or Path("checkpoints/validation") / f"fold{args.fold}"
    names = candidates(dataset, folder, args.classes)
    results = []
    for name in [args.backbone] if args.backbone else ["checkpoint", "aisfx"]:
        features = checkpoint_features(folder) if name == "checkpoint" else aisfx_features(args.cache)
        for shots in map(int, args.clips.split(",")):
            rng = np.random.default_rng(args.seed)  # the same draws for each backbone
            draws = [draw(dataset, args.fold, names, args.classes, shots, rng) for _ in range(args.draws)]
            row = summarise(measure(features, draws))
            results.append({"backbone": features.name, "clips": shots, **row})
    print_table(results, Console())
    hardware = f"{cpu_name()}, {torch.get_num_threads()} threads"
    print(json.dumps({"fold": args.fold, "draws": args.draws, "hardware": hardware, "results": results}))


if __name__ == "__main__":
    sys.exit(main())

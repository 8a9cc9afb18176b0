"""What fold models say about the folds that they were not trained on: of clips, scenes and background."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from audiocnn import detections, inputs
from audiocnn.classifier import Classifier
from audiocnn.command import FoldModel
from audiocnn.config import Config
from audiocnn.datasets import Dataset
from audiocnn.errors import DatasetError
from audiocnn.inputs import InputError, Notes
from training import scenes
from training.calibrate import load_fold_model
from training.scene_scores import ScoredScene, Windowing, cached, score
from training.scenes import Scene

SNRS_DB = (0.0, 10.0, 20.0)
SCENES, EMPTY_SCENES = 34, 30  # for each fold and signal-to-noise ratio; for each fold
_SCENES_VERSION = 1  # of the drawing of scenes: older caches do not fit


@dataclass(frozen=True)
class FoldScores:
    """What a fold model says about a fold that it was not trained on."""

    fold: int
    sets: dict[str, list[ScoredScene]]  # clips, 0 dB, 10 dB, 20 dB
    background: list[ScoredScene]


def windowing_of(config: Config) -> Windowing:
    """The windows that detections are made from."""
    return Windowing(detections.window_seconds(config), detections.HOP_SECONDS)


def fold_scores(
    model: FoldModel, dataset: Dataset, temperature: float, args: argparse.Namespace
) -> list[FoldScores]:
    """Score clips, scenes and background of the folds of one model, at a temperature.

    Raises `DatasetError` if the model was trained on one of the folds.
    """
    path, folds = model
    classifier = load(path, dataset, folds, temperature, args.threads)
    windowing = windowing_of(classifier.config)
    background = _background_scores(classifier, windowing, args)
    results = []
    for fold in folds:
        rate = classifier.config.frontend.sample_rate
        clips = partial(scenes.clip_scenes, dataset.folds([fold]), sample_rate=rate)
        key, desc = [dataset.name, fold, "clips"], f"fold {fold}, clips"
        sets = {"clips": _scores(classifier, clips, windowing, desc, key, args.cache)}
        for snr_db in SNRS_DB:
            sets[f"{snr_db:g} dB"] = scene_scores(
                classifier, dataset, fold, windowing, snr_db=snr_db, count=args.scenes, cache=args.cache
            )
        results.append(FoldScores(fold, sets, background))
    return results


def load(
    path: Path, dataset: Dataset, folds: Sequence[int], temperature: float, threads: int | None = None
) -> Classifier:
    """A fold model with another temperature; raises `DatasetError` if it was trained on one of the folds."""
    classifier = load_fold_model(path, dataset, folds, threads=threads)
    classifier.config = replace(classifier.config, temperature=temperature)
    return classifier


def scene_scores(
    classifier: Classifier,
    dataset: Dataset,
    fold: int,
    windowing: Windowing,
    *,
    snr_db: float,
    count: int,
    cache: Path | None,
) -> list[ScoredScene]:
    """`count` scenes of the clips of a fold."""
    rate = classifier.config.frontend.sample_rate
    make = partial(scenes.scenes, dataset.folds([fold]), count, snr_db=snr_db, sample_rate=rate)
    key = [dataset.name, fold, snr_db, count]
    return _scores(classifier, make, windowing, f"fold {fold}, {snr_db:g} dB", key, cache)


def empty_scores(
    classifier: Classifier, windowing: Windowing, count: int, cache: Path | None
) -> list[ScoredScene]:
    """`count` minutes of synthetic background."""
    make = partial(scenes.empty_scenes, count, sample_rate=classifier.config.frontend.sample_rate)
    return _scores(classifier, make, windowing, "background", ["empty", count], cache)


def _scores(
    classifier: Classifier,
    make: Callable[[], Iterable[Scene]],
    windowing: Windowing,
    desc: str,
    key: Sequence[object],
    cache: Path | None,
) -> list[ScoredScene]:
    """The scores of scenes that `make` draws as `key` says: drawn and scored only if not in the cache."""
    model = [classifier.engine.sha256, classifier.config.temperature]
    return cached(
        cache,
        [_SCENES_VERSION, *model, windowing, *key],
        lambda: score(classifier, make(), windowing, desc=desc),
    )


def _background_scores(
    classifier: Classifier, windowing: Windowing, args: argparse.Namespace
) -> list[ScoredScene]:
    """The user's recordings without events, else synthetic background."""
    if not args.background:
        return empty_scores(classifier, windowing, EMPTY_SCENES, args.cache)
    try:
        found = [Path(path) for path, _ in inputs.find([str(args.background)], Notes())]
    except InputError as error:
        raise DatasetError(str(error)) from error
    recordings = [Scene(path.name, path, ()) for path in found]
    if not recordings:
        raise DatasetError(f"{args.background} has no sound files")
    return score(classifier, recordings, windowing, desc="background")

"""Fit a linear classifier to a table of features, and measure it on recordings that were left out.

Linear discriminant analysis with a shrunk covariance: the score of a class is the log-likelihood ratio of a
Gaussian at its mean and one at the origin, with the covariance of both. The origin (the mean of all
standardised features) and the means of the background sounds (of each kind, if they were made) stand for "no
class": the logarithm of the sum of their likelihoods is subtracted from every score. In a softmax with a
further logit of 0, a sound that is unlike every class gets low confidences (relative Mahalanobis distance:
Ren et al., 2021).

Shrinkage, temperature and the threshold for unknown sounds come from predictions for left-out recordings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from audiocnn import calibration
from audiocnn.arrays import FloatArray, IntArray
from audiocnn.calibration import LEVELS, precise_levels
from audiocnn.config import Threshold
from audiocnn.detections import OFF_SHARE
from audiocnn.errors import DatasetError
from audiocnn.probabilities import softmax
from audiocnn.teach.background import SILENCE
from audiocnn.teach.examples import BACKGROUND
from audiocnn.teach.features import FeatureTable

Doubles = npt.NDArray[np.float64]

SHRINKAGES = (0.1, 1.0)  # of the mean variance, added to the diagonal of the covariance
REJECTED_SHARE = 0.05  # of the known sounds, that the threshold for unknown sounds is to reject
DETECTION_PRECISION = 0.9  # wanted of detections
# The classifier of all clips gives new ones higher confidences than left-out ones got: 7.5 % of the latter
# are about 5 % of the former (`benchmarks.few_shot`).
_LEFT_OUT_SHARE = 0.075
# Fewer clips have no 5th percentile: a class has to be more likely than all else together.
FEW_CLIPS, FEW_CLIPS_THRESHOLD = 20, 0.5
# A kind of made sounds resembles a class, and is no background, if this share of them is assigned to it, with
# this share of the score of its own clips.
_RESEMBLING_SHARE, _RESEMBLING_SCORE = 0.8, 0.5
MAX_GROUPS = 40  # of recordings that are left out together; fewer recordings: one at a time
_FEW_GROUPS = 10  # for the choice of the shrinkage
_UNIT = 10.0  # scores are divided by it before a temperature is fitted, which has bounds
_SMALLEST_STD = 1e-6  # of a feature that counts


@dataclass(frozen=True)
class HeldOut:
    """Predictions for clips by classifiers that were fitted without their recording."""

    probs: FloatArray  # (num_clips, num_classes), calibrated; the rest to 1 is background
    target: IntArray  # (num_clips,); `num_classes` for background
    clip: IntArray  # (num_clips,): row in the table of features
    num_groups: int

    @property
    def known(self) -> HeldOut:
        """Without background."""
        is_known = self.target < self.probs.shape[1]
        return HeldOut(self.probs[is_known], self.target[is_known], self.clip[is_known], self.num_groups)

    @property
    def accuracy(self) -> float:
        """Of the known sounds, 0 to 1."""
        known = self.known
        return float((known.probs.argmax(axis=1) == known.target).mean())


@dataclass(frozen=True)
class TaughtHead:
    """A linear layer on raw features; the rows after those of the classes are background."""

    class_names: tuple[str, ...]
    weight: FloatArray  # (num_classes + num_backgrounds, d)
    bias: FloatArray  # (num_classes + num_backgrounds,)
    temperature: float  # is in the logits already
    unknown_threshold: float
    shrinkage: float
    held_out: HeldOut
    resembling: tuple[str, ...] = ()  # kinds of made background that are left out: they resemble a class

    @property
    def thresholds(self) -> dict[str, Threshold]:
        """Of detections: 9 of 10 left-out clips that reach it are right. At least `unknown_threshold`."""
        probs, target = self.held_out.probs, self.held_out.target
        reached = [probs >= level for level in LEVELS]
        is_own = target[:, None] == np.arange(len(self.class_names))
        detections = np.stack([each.sum(axis=0) for each in reached], axis=1)
        true = np.stack([(each & is_own).sum(axis=0) for each in reached], axis=1)
        levels = precise_levels(detections, true, precision=DETECTION_PRECISION)
        ons = [max(self.unknown_threshold, LEVELS[level]) for level in levels]
        return {
            name: Threshold(on=round(on, 4), off=round(OFF_SHARE * on, 4))
            for name, on in zip(self.class_names, ons, strict=True)
        }

    def logits(self, features: FloatArray) -> FloatArray:
        """`(n, d)` -> calibrated logits `(n, num_classes)`; that of background is 0."""
        scores = _relative(features @ self.weight.T + self.bias, len(self.class_names))
        return np.asarray(scores / self.temperature, np.float32)

    def probs(self, features: FloatArray) -> FloatArray:
        """`(n, d)` -> `(n, num_classes)`; the rest to 1 is background."""
        return _probs(self.logits(features), 1.0)


def fit(table: FeatureTable) -> TaughtHead:
    """The classifier for the classes of a table, which needs two and background.

    Raises `DatasetError` if all clips are the same to the backbone.
    """
    names = tuple(sorted({*table.labels} - {BACKGROUND}))
    resembling = _resembling_kinds(table, names)
    kept = np.flatnonzero([kind not in resembling for kind in _made_kinds(table)])
    table = table.only(kept)
    target = _targets(table, names)
    space = _RowSpace(table.features)
    few, groups = recording_groups(table, _FEW_GROUPS), recording_groups(table, MAX_GROUPS)

    def loss(shrinkage: float) -> float:
        logits, clips = _held_out_logits(space, table, target, few, shrinkage, len(names))
        truth = np.minimum(target[clips], len(names))
        return _nll(logits, truth, _fit_temperature(logits, truth))

    shrinkage = min(SHRINKAGES, key=loss)
    logits, clips = _held_out_logits(space, table, target, groups, shrinkage, len(names))
    truth = np.minimum(target[clips], len(names))
    temperature = _fit_temperature(logits, truth)
    held_out = HeldOut(_probs(logits, temperature), truth, kept[clips], int(groups.max()) + 1)
    threshold = unknown_threshold(held_out.known.probs.max(axis=1))
    weight, bias = space.to_features(*_discriminant(space.coordinates, target[table.clip], shrinkage))
    return TaughtHead(names, weight, bias, temperature, threshold, shrinkage, held_out, resembling)


def unknown_threshold(confidences: FloatArray) -> float:
    """The threshold for unknown sounds from the top confidences of left-out clips `(num_clips,)`."""
    threshold = calibration.threshold_for(confidences, _LEFT_OUT_SHARE)
    return max(threshold, FEW_CLIPS_THRESHOLD) if len(confidences) < FEW_CLIPS else threshold


def _made_kinds(table: FeatureTable) -> list[str]:
    """The kind of each clip that was made, empty for recordings."""
    pairs = zip(table.recordings, table.digests, strict=True)
    return [recording.split()[1] if digest == recording else "" for recording, digest in pairs]


def _resembling_kinds(table: FeatureTable, names: tuple[str, ...]) -> tuple[str, ...]:
    """Kinds of made sounds that a classifier without any assigns to one class, as white noise to rain."""
    kinds = np.array(_made_kinds(table))
    own = table.only(np.flatnonzero(kinds == ""))
    space, target = _RowSpace(own.features), _targets(own, names)
    layer = _discriminant(space.coordinates, target[own.clip], max(SHRINKAGES))
    weight, bias = space.to_features(*layer)
    scores = _relative(table.features @ weight.T + bias, len(names))
    own_scores = _relative(own.features @ weight.T + bias, len(names))
    found = []
    for kind in sorted(set(kinds) - {"", SILENCE}):
        rows = scores[kinds[table.clip] == kind]
        top = int(np.bincount(rows.argmax(axis=1)).argmax())
        typical = np.median(own_scores[target[own.clip] == top, top])
        is_top = (rows.argmax(axis=1) == top) & (rows[:, top] > 0)
        if is_top.mean() >= _RESEMBLING_SHARE and np.median(rows[:, top]) >= _RESEMBLING_SCORE * typical:
            found.append(str(kind))
    return tuple(found)


def _targets(table: FeatureTable, names: tuple[str, ...]) -> IntArray:
    """A number for each clip: that of its class, or one above of its background: recorded, or a made kind."""
    kinds = [kind or label for kind, label in zip(_made_kinds(table), table.labels, strict=True)]
    is_class = [label != BACKGROUND for label in table.labels]
    others = sorted({kind for kind, is_own in zip(kinds, is_class, strict=True) if not is_own})
    own = {name: number for number, name in enumerate(names)}
    other = {name: len(names) + number for number, name in enumerate(others)}
    return np.array([(own if is_own else other)[kind] for kind, is_own in zip(kinds, is_class, strict=True)])


def recording_groups(table: FeatureTable, most: int) -> IntArray:
    """A group for each clip, from 0; -1 for made sounds and a single background recording: never left out.

    The clips of a recording are in one group. There is a group for each recording, up to `most`.
    """
    group_of: dict[str, int] = {}
    both = sorted(zip(table.labels, table.recordings, table.digests, strict=True))
    recorded = {r for label, r, digest in both if label == BACKGROUND and r != digest}
    kept = recorded if len(recorded) < 2 else set()
    for _, recording, digest in both:
        if digest != recording and recording not in group_of and recording not in kept:
            group_of[recording] = len(group_of) % most
    return np.array([group_of.get(recording, -1) for recording in table.recordings])


class _RowSpace:
    """Standardised features in an orthonormal basis of their span: equal distances, at most n columns."""

    def __init__(self, features: FloatArray) -> None:
        x = features.astype(np.float64)
        self.mean, std = x.mean(axis=0), x.std(axis=0)
        self.std = np.where(std > _SMALLEST_STD, std, np.inf)
        self._x = (x - self.mean) / self.std
        values, vectors = np.linalg.eigh(self._x @ self._x.T)
        is_kept = values > 1e-9 * values[-1]
        if not is_kept.any():
            raise DatasetError("the clips cannot be told apart: all have the same features. Are they silent?")
        self._values, self._vectors = np.sqrt(values[is_kept]), vectors[:, is_kept]
        self.coordinates: Doubles = self._vectors * self._values  # (n, r)

    def to_features(self, weight: Doubles, bias: Doubles) -> tuple[FloatArray, FloatArray]:
        """A layer on coordinates -> the same layer on raw features."""
        on_features = (weight / self._values) @ self._vectors.T @ self._x / self.std
        return on_features.astype(np.float32), (bias - on_features @ self.mean).astype(np.float32)


def _discriminant(z: Doubles, target: IntArray, shrinkage: float) -> tuple[Doubles, Doubles]:
    """Weight `(num_classes, r)` and bias of linear discriminant analysis; classes weigh the same."""
    counts = np.bincount(target)
    means = np.stack([z[target == number].mean(axis=0) for number in range(len(counts))])
    residuals = (z - means[target]) / np.sqrt(counts[target] * len(counts))[:, None]
    covariance = residuals.T @ residuals
    covariance += shrinkage * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    weight = np.linalg.solve(covariance, means.T).T
    return weight, -0.5 * (means * weight).sum(axis=1)


def _relative(scores: npt.NDArray[Any], num_classes: int) -> npt.NDArray[Any]:
    """Scores `(n, num_classes + ...)` -> those of the classes over those of no class, one of which is 0."""
    none = np.logaddexp.reduce(scores[:, num_classes:], axis=1, initial=0.0)
    return np.asarray(scores[:, :num_classes] - none[:, None])


def _held_out_logits(
    space: _RowSpace,
    table: FeatureTable,
    target: IntArray,
    groups: IntArray,
    shrinkage: float,
    num_classes: int,
) -> tuple[Doubles, IntArray]:
    """Logits `(m, num_classes)`, each the mean over the windows of a clip, and the clips' numbers."""
    group, y = groups[table.clip], target[table.clip]
    logits: dict[int, Doubles] = {}
    for number in range(int(groups.max()) + 1):
        fitted = group != number
        weight, bias = _discriminant(space.coordinates[fitted], y[fitted], shrinkage)
        held_out = np.flatnonzero((group == number) & (table.view == 0))
        rows = _relative(space.coordinates[held_out] @ weight.T + bias, num_classes)
        for clip in np.unique(table.clip[held_out]):
            logits[int(clip)] = rows[table.clip[held_out] == clip].mean(axis=0)
    order = sorted(logits)
    return np.stack([logits[clip] for clip in order]), np.array(order)


def _with_background(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.concatenate([logits, np.zeros((len(logits), 1))], axis=1)


def _probs(logits: npt.NDArray[Any], temperature: float) -> FloatArray:
    return softmax(_with_background(logits), temperature)[:, :-1].astype(np.float32)


def _fit_temperature(logits: Doubles, target: IntArray) -> float:
    """With the targets of Platt ("Probabilistic outputs for support vector machines", 1999): else a few clips
    that are all right would make every confidence 1."""
    smoothing = 1 / (len(target) + 2)
    return _UNIT * calibration.fit_temperature(_with_background(logits) / _UNIT, target, smoothing=smoothing)


def _nll(logits: Doubles, target: IntArray, temperature: float) -> float:
    return calibration.nll(softmax(_with_background(logits), temperature), target)

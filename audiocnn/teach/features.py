"""Features of a user's clips in several views: computed once, kept beside the model for `--add`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from audiocnn import npz
from audiocnn.arrays import FloatArray, IntArray
from audiocnn.backbone.backbone import Backbone
from audiocnn.errors import ModelFileError
from audiocnn.teach.background import kind_of, made_background
from audiocnn.teach.examples import BACKGROUND, Example
from audiocnn.teach.views import TEACH_VIEWS, VIEWS

MAX_PASSES = 600  # of the backbone, as far as more than one view a window is concerned
MADE = "made"  # begins the recording of a background sound that was made


@dataclass(frozen=True)
class FeatureTable:
    """One row for each view of each window of each clip."""

    features: FloatArray  # (n, d)
    view: IntArray  # (n,): 0 for the unchanged sound
    clip: IntArray  # (n,): index into the following four
    names: tuple[str, ...]
    labels: tuple[str, ...]
    recordings: tuple[str, ...]
    digests: tuple[str, ...]  # SHA-256 of the files

    def merged(self, other: FeatureTable) -> FeatureTable:
        """The rows of both."""
        return FeatureTable(
            np.concatenate([self.features, other.features]),
            np.concatenate([self.view, other.view]),
            np.concatenate([self.clip, other.clip + len(self.names)]),
            self.names + other.names,
            self.labels + other.labels,
            self.recordings + other.recordings,
            self.digests + other.digests,
        )

    def only(self, clips: IntArray) -> FeatureTable:
        """The rows of these clips, given by rising index."""
        rows = np.isin(self.clip, clips)
        texts = (self.names, self.labels, self.recordings, self.digests)
        return FeatureTable(
            self.features[rows],
            self.view[rows],
            np.searchsorted(clips, self.clip[rows]),
            *(tuple(own[clip] for clip in clips) for own in texts),
        )

    def save(self, path: Path) -> None:
        """Write them as `.npz`, features as float16."""
        npz.save(path, vars(self) | {"features": self.features.astype(np.float16)})

    @classmethod
    def load(cls, path: Path) -> FeatureTable:
        """Read what `save` wrote. Raises `ModelFileError`."""
        try:
            arrays = npz.load(path, [field.name for field in fields(cls)])
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path} has no features to add to: {error}") from error
        features, view, clip, *texts = arrays.values()
        return cls(features.astype(np.float32), view, clip, *(tuple(map(str, each)) for each in texts))


def views_for(num_windows: int, num_others: int) -> tuple[str, ...]:
    """As many views as `MAX_PASSES` passes allow, one at least."""
    count = (MAX_PASSES - num_others) // max(1, num_windows)
    return TEACH_VIEWS[: max(1, count)]


def compute(
    clips: Sequence[Example], backbone: Backbone, views: Sequence[str], advance: Callable[[int], None]
) -> FeatureTable:
    """Features of every view of every window; `advance` is told of passes that are done."""
    rows, numbers, of_clip = [], [], []
    for number, clip in enumerate(clips):
        for view, name in enumerate(views):
            rows.append(view_features(clip.windows, name, backbone))
            numbers += [view] * len(clip.windows)
            of_clip += [number] * len(clip.windows)
            advance(len(clip.windows))
    return FeatureTable(
        np.concatenate(rows),
        np.array(numbers),
        np.array(of_clip),
        tuple(clip.path.name for clip in clips),
        tuple(clip.label for clip in clips),
        tuple(clip.recording for clip in clips),
        tuple(clip.sha256 for clip in clips),
    )


def made_table(backbone: Backbone, advance: Callable[[int], None]) -> FeatureTable:
    """Features of made background sounds."""
    rows = []
    for sound in made_background(backbone.frontend):
        rows.append(_rounded(backbone.features(sound[None])))
        advance(1)
    return table_of_made(np.concatenate(rows))


def table_of_made(features: FloatArray) -> FeatureTable:
    """Features `(n, d)` of `made_background` as a table; the recording is `made KIND NUMBER`."""
    count = len(features)
    names = tuple(f"{MADE} {kind_of(number)} {number}" for number in range(count))
    numbers = np.arange(count)
    return FeatureTable(features, 0 * numbers, numbers, names, (BACKGROUND,) * count, names, names)


def view_features(windows: FloatArray, view: str, backbone: Backbone) -> FloatArray:
    """Features `(n, d)` of one view of windows `(n, window_samples)`, as precise as they are kept."""
    return _rounded(backbone.features(VIEWS[view](torch.from_numpy(windows)).numpy()))


def _rounded(features: FloatArray) -> FloatArray:
    return features.astype(np.float16).astype(np.float32)

"""Teacher features of clips in several views, cached on disk by content: float16, 12 kB each.

Cached features are not computed again, so an interrupted run resumes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from audiocnn.arrays import FloatArray
from audiocnn.backbone.network import NUM_FEATURES, SAMPLE_RATE, BackboneFeatures
from audiocnn.backbone.weights import WHEEL_SHA256, load_weights
from audiocnn.config import FrontendConfig
from audiocnn.datasets import LabelledClip
from audiocnn.files import replacing
from audiocnn.teach.views import VIEWS
from training.data import load_waveforms

_BATCH = 8
_GPU_BATCH = 64
_REVISION = 1  # raise it when features or views change and keep their names


class FeatureStore:
    """Teacher features of clips; `folder` caches them, `cache` has the teacher's weights."""

    def __init__(self, folder: Path, *, device: str = "cpu", cache: Path | None = None) -> None:
        self.folder = folder / f"features-{WHEEL_SHA256[:12]}-{_REVISION}"
        self.device, self.cache = device, cache
        self._network: BackboneFeatures | None = None
        self._keys: dict[Path, str] = {}

    def features(self, clips: Sequence[LabelledClip], views: Sequence[str]) -> FloatArray:
        """float32 `(num_views, num_clips, 5952)`; `DatasetError` names files that cannot be read."""
        missing = [(view, clip) for view in views for clip in clips if not self._path(clip, view).is_file()]
        if missing:
            self._compute(missing)
        result = np.empty((len(views), len(clips), NUM_FEATURES), np.float32)
        for row, view in enumerate(views):
            for column, clip in enumerate(clips):
                result[row, column] = np.load(self._path(clip, view))
        return result

    def _path(self, clip: LabelledClip, view: str) -> Path:
        if clip.path not in self._keys:
            data = clip.path.read_bytes() if clip.path.is_file() else b""
            self._keys[clip.path] = hashlib.sha256(data).hexdigest()[:24]
        return self.folder / view / f"{self._keys[clip.path]}.npy"

    def _compute(self, wanted: Sequence[tuple[str, LabelledClip]]) -> None:
        if self._network is None:
            self._network = BackboneFeatures(load_weights(self.cache)).to(self.device)
        bar = tqdm(total=len(wanted), desc="features", unit="clip")
        for view, clips in _batches(wanted, _BATCH if self.device == "cpu" else _GPU_BATCH):
            waveform = load_waveforms(clips, FrontendConfig(sample_rate=SAMPLE_RATE), quiet=True)
            features = self._network(VIEWS[view](waveform.to(self.device)))
            for clip, row in zip(clips, features.half().cpu().numpy(), strict=True):
                _save(self._path(clip, view), row)
            bar.update(len(clips))
        bar.close()


def _batches(
    wanted: Sequence[tuple[str, LabelledClip]], size: int
) -> Iterator[tuple[str, list[LabelledClip]]]:
    """Groups of at most `size` clips of one view."""
    for view in dict.fromkeys(view for view, _ in wanted):
        clips = [clip for other, clip in wanted if other == view]
        for first in range(0, len(clips), size):
            yield view, clips[first : first + size]


def _save(path: Path, row: npt.NDArray[np.float16]) -> None:
    with replacing(path) as part:
        np.save(part, row)

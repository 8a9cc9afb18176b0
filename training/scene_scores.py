"""Window probabilities of scenes, computed once and kept in a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from audiocnn.arrays import FloatArray
from audiocnn.classifier import Classifier
from audiocnn.errors import DatasetError
from audiocnn.files import replacing
from audiocnn.results import StreamEnd
from training.scenes import Scene, SceneEvent

Frame = tuple[float, float, FloatArray]  # start and end in seconds, (num_classes,)


@dataclass(frozen=True)
class Windowing:
    """Length and distance of windows, seconds."""

    seconds: float
    hop: float


@dataclass(frozen=True)
class ScoredScene:
    """What the model says about a scene, and what is in it."""

    name: str
    duration: float  # seconds
    events: tuple[SceneEvent, ...]
    starts: FloatArray  # (num_windows,) seconds
    ends: FloatArray
    probs: FloatArray  # (num_windows, num_classes)

    @property
    def windows(self) -> Iterator[Frame]:
        """Start, end and probabilities of each window."""
        return zip(self.starts, self.ends, self.probs, strict=True)


def score(
    classifier: Classifier, scenes: Iterable[Scene], windowing: Windowing, *, desc: str, quiet: bool = False
) -> list[ScoredScene]:
    """Classify the windows of scenes. Raises `DatasetError` for one that cannot be read."""
    bar = tqdm(scenes, desc=desc, unit="scene", disable=quiet)
    return [_score(classifier, scene, windowing) for scene in bar]


def cached(
    folder: Path | None, key: Sequence[object], compute: Callable[[], list[ScoredScene]]
) -> list[ScoredScene]:
    """What `compute` returns, kept in `folder` under a digest of `key` (None: computed each time)."""
    if folder is None:
        return compute()
    path = folder / f"scores-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.npz"
    if not path.is_file():
        with replacing(path) as part:
            _save(part, compute())
    return _load(path)


def _score(classifier: Classifier, scene: Scene, windowing: Windowing) -> ScoredScene:
    rows, seconds = [], 0.0
    streams = classifier.predict_streams(
        [scene.audio], window_seconds=windowing.seconds, overlap_seconds=windowing.seconds - windowing.hop
    )
    for _, item in streams:
        if not isinstance(item, StreamEnd):
            rows.append((item.start, item.end, item.probs))
        elif item.error:
            raise DatasetError(f"{scene.name}: {item.error}")
        else:
            seconds = item.seconds
    starts, ends, probs = (np.stack(each).astype(np.float32) for each in zip(*rows, strict=True))
    return ScoredScene(scene.name, seconds, scene.events, starts, ends, probs)


def _save(path: Path, scenes: Sequence[ScoredScene]) -> None:
    arrays: dict[str, np.ndarray] = {}
    for number, scene in enumerate(scenes):
        arrays[f"{number}.name"] = np.array(scene.name)
        arrays[f"{number}.duration"] = np.array(scene.duration)
        arrays[f"{number}.labels"] = np.array([event.label for event in scene.events], dtype=str)
        arrays[f"{number}.times"] = np.array([(event.start, event.end) for event in scene.events])
        arrays |= {f"{number}.{name}": getattr(scene, name) for name in ("starts", "ends", "probs")}
    with path.open("wb") as file:
        np.savez_compressed(file, count=np.array(len(scenes)), **arrays)  # type: ignore[arg-type]


def _load(path: Path) -> list[ScoredScene]:
    with np.load(path, allow_pickle=False) as arrays:
        return [_scene_of(arrays, number) for number in range(int(arrays["count"]))]


def _scene_of(arrays: dict[str, np.ndarray], number: int) -> ScoredScene:
    def of(name: str) -> np.ndarray:
        return arrays[f"{number}.{name}"]

    events = tuple(
        SceneEvent(str(label), float(start), float(end))
        for label, (start, end) in zip(of("labels"), of("times"), strict=True)
    )
    name, duration = str(of("name")), float(of("duration"))
    return ScoredScene(name, duration, events, of("starts"), of("ends"), of("probs"))

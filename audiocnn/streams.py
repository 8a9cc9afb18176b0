"""Windows of files of any length through the network, in the memory of a few windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from audiocnn.arrays import FloatArray
from audiocnn.audio.audio_input import AudioInput
from audiocnn.audio.window_stream import WindowStream
from audiocnn.clip_windows import with_window_seconds
from audiocnn.config import SERVED_OUTPUTS
from audiocnn.model.engine import MAX_BATCH, Engine
from audiocnn.probabilities import probabilities
from audiocnn.results import StreamEnd, WindowProbs

File = TypeVar("File", bound=AudioInput)


@dataclass
class _Window:
    """A window that waits for the network."""

    start: float  # seconds
    end: float
    samples: FloatArray  # (window_samples,)


def predict_streams(
    engine: Engine,
    files: Iterable[File],
    *,
    overlap_seconds: float | None = None,
    window_seconds: float | None = None,
    outputs: Sequence[str] = (),
) -> Iterator[tuple[File, WindowProbs | StreamEnd]]:
    """See `Classifier.predict_streams`."""
    waiting: list[tuple[File, _Window | StreamEnd]] = []
    num_windows = 0
    for file, item in _windows_of(engine, files, overlap_seconds, window_seconds):
        waiting.append((file, item))
        num_windows += isinstance(item, _Window)
        if num_windows in (0, MAX_BATCH):
            yield from _run_waiting(engine, waiting, outputs)
            waiting, num_windows = [], 0
    yield from _run_waiting(engine, waiting, outputs)


def _windows_of(
    engine: Engine, files: Iterable[File], overlap_seconds: float | None, window_seconds: float | None
) -> Iterator[tuple[File, _Window | StreamEnd]]:
    frontend = with_window_seconds(engine.config.frontend, window_seconds)
    for file in files:
        stream = WindowStream(file, frontend, overlap_seconds=overlap_seconds)
        error = None
        try:
            for start, end, samples in stream:
                yield file, _Window(start, end, samples)
        except Exception as caught:  # also unforeseen ones: the other files do not depend on this one
            error = caught
        yield file, StreamEnd(stream.seconds, stream.peak, stream.warnings, error)


def _run_waiting(
    engine: Engine, waiting: Sequence[tuple[File, _Window | StreamEnd]], outputs: Sequence[str]
) -> Iterator[tuple[File, WindowProbs | StreamEnd]]:
    samples = [item.samples for _, item in waiting if isinstance(item, _Window)]
    rows = iter(_run_samples(engine, samples, outputs) if samples else ())
    for file, item in waiting:
        if isinstance(item, _Window):
            probs, further = next(rows)
            yield file, WindowProbs(item.start, item.end, probs, further)
        else:
            yield file, item


def _run_samples(
    engine: Engine, samples: Sequence[FloatArray], outputs: Sequence[str]
) -> Iterator[tuple[FloatArray, dict[str, FloatArray]]]:
    """Probabilities and further outputs of each window."""
    inputs = np.stack([engine.prepare(window) for window in samples])
    served = [name for name in SERVED_OUTPUTS if name == "logits" or name in outputs]
    further = engine.run(inputs, served)
    probs = probabilities(further["logits"], engine.config)
    if others := [name for name in outputs if name not in served]:
        further |= engine.run(inputs, others)
    for row in range(len(samples)):
        yield probs[row], {name: further[name][row] for name in outputs}

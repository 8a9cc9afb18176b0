"""Long audio -> windows of one length -> one answer.

The rule, shared by training, evaluation, serving and batch: a clip that is shorter than one window of
`clip_seconds` is repeated until it fills one (zeros behind it would halve the accuracy on 1 s excerpts, see
docs/decisions/010-short-clips-are-repeated.md); a longer one is cut with 50 % overlap. What is left after
the last whole window is dropped if it is shorter than 0.25 s, else a last window is aligned to the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from audiocnn.arrays import FloatArray
from audiocnn.config import MIN_TAIL_SECONDS, FrontendConfig


def starts(num_samples: int, config: FrontendConfig, *, hop: int | None = None) -> list[int]:
    """First sample of every window over a clip of `num_samples` at `config.sample_rate`.

    `hop` is the distance in samples from one window to the next; None: half a window.
    """
    window = config.window_samples
    if num_samples <= window:
        return [0]
    result = list(range(0, num_samples - window + 1, hop or window // 2))
    if num_samples - (result[-1] + window) >= MIN_TAIL_SECONDS * config.sample_rate:
        result.append(num_samples - window)
    return result


def cut(waveform: FloatArray, config: FrontendConfig) -> FloatArray:
    """The windows of a waveform `(num_samples,)`: float32 `(num_windows, window_samples)`."""
    window = config.window_samples
    if len(waveform) < window:
        waveform = np.resize(waveform, window)
    return np.stack([waveform[start : start + window] for start in starts(len(waveform), config)])


def iter_windows(
    blocks: Iterable[FloatArray], config: FrontendConfig, *, hop: int | None = None
) -> Iterator[tuple[int, FloatArray]]:
    """What `cut` makes of a waveform that comes in blocks, in the memory of two windows.

    Yields the first sample of each window and the window `(window_samples,)`. `hop` is the distance in
    samples from one window to the next, 1 to `window_samples`; None: half a window. Blocks without one
    sample in them give no window.
    """
    window, hop = config.window_samples, hop or config.window_samples // 2
    pieces: list[FloatArray] = [np.zeros(0, np.float32)]  # the samples from `first` on: what is needed yet
    first, end, start = 0, 0, 0
    for block in blocks:
        pieces.append(block)
        end += len(block)
        if end - start < window:
            continue
        kept = np.concatenate(pieces)
        while end - start >= window:
            yield start, kept[start - first :][:window]
            start += hop
        done = min(start - first, len(kept) - window)
        pieces, first = [kept[done:]], first + done
    kept = np.concatenate(pieces)
    if start == 0 and end:
        yield 0, np.resize(kept, window)
    elif end - (start - hop + window) >= MIN_TAIL_SECONDS * config.sample_rate:
        yield end - window, kept[-window:]


def spans(num_samples: int, config: FrontendConfig, *, hop: int | None = None) -> list[tuple[float, float]]:
    """Start and end in seconds of the real audio in every window."""
    last = num_samples / config.sample_rate
    begins = [start / config.sample_rate for start in starts(num_samples, config, hop=hop)]
    return [(begin, min(begin + config.clip_seconds, last)) for begin in begins]


def pool(probs: FloatArray, how: str = "mean") -> FloatArray:
    """Probabilities of the windows `(num_windows, num_classes)` -> those of the clip `(num_classes,)`.

    `how` is `mean`, weighted by seconds of real audio (only a clip of one window is ever repeated, so within
    a clip all weights are equal), or `max`: a sound in one window of many counts, and the sum may exceed 1.
    """
    pooled = probs.max(axis=0) if how == "max" else probs.mean(axis=0)
    return np.asarray(pooled, dtype=np.float32)

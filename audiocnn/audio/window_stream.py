"""Windows of a sound file of any length, in the memory of a few windows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from audiocnn.arrays import FloatArray
from audiocnn.audio import windows
from audiocnn.audio.decoder import stream
from audiocnn.config import AudioLimits, FrontendConfig

_UNLIMITED = AudioLimits(max_seconds=math.inf, decode_seconds=math.inf)


class WindowStream:
    """Iterates over start and end in seconds and samples `(window_samples,)` of each window.

    Raises what `audiocnn.audio.stream` raises, perhaps after windows that were good.
    """

    def __init__(
        self, file: BinaryIO, config: FrontendConfig, *, hop: int, warnings: list[str] | None = None
    ) -> None:
        """`file` is open for reading and can seek; `hop` is in samples from one window to the next.

        What is to be told about the file is appended to `warnings`.
        """
        self.seconds = 0.0  # that have been decoded so far
        self.peak = 0.0  # of these, 0 to 1
        self._file, self._config, self._hop = file, config, hop
        self._warnings = [] if warnings is None else warnings

    def __iter__(self) -> Iterator[tuple[float, float, FloatArray]]:
        for first, window in windows.iter_windows(self._blocks(), self._config, hop=self._hop):
            start = first / self._config.sample_rate
            yield start, min(start + self._config.clip_seconds, self.seconds), window

    def _blocks(self) -> Iterator[FloatArray]:
        rate, num_samples = self._config.sample_rate, 0
        for block in stream(self._file, sample_rate=rate, limits=_UNLIMITED, warnings=self._warnings):
            num_samples += len(block)
            self.seconds = num_samples / rate
            self.peak = max(self.peak, float(np.abs(block).max(initial=0.0)))
            yield block

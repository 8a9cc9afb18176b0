"""Windows of a sound file of any length, in the memory of a few windows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from audiocnn.arrays import FloatArray
from audiocnn.audio import windows
from audiocnn.audio.audio_input import AudioInput, opened
from audiocnn.audio.decoder import stream
from audiocnn.config import UNLIMITED, FrontendConfig


class WindowStream:
    """Iterates over start and end in seconds and samples `(window_samples,)` of each window.

    The file is open during the iteration only. Raises what `audiocnn.audio.stream` raises, perhaps after
    windows that were good.
    """

    def __init__(self, audio: AudioInput, config: FrontendConfig, *, overlap_seconds: float | None) -> None:
        """Neighbouring windows overlap by `overlap_seconds`; None: by half a window.

        Raises `ValueError` for an overlap that is not from 0 to less than a window.
        """
        self.seconds = 0.0  # decoded so far
        self.peak = 0.0  # of these, 0 to 1
        self.warnings: list[str] = []  # complete at the end
        self._audio, self._config = audio, config
        self._hop = config.window_samples // 2  # samples from one window to the next
        if overlap_seconds is not None:
            if not 0 <= overlap_seconds < config.clip_seconds:
                raise ValueError(
                    f"windows of {config.clip_seconds:g} s cannot overlap by {overlap_seconds:g} s: give less"
                )
            self._hop = max(1, config.window_samples - round(overlap_seconds * config.sample_rate))

    def __iter__(self) -> Iterator[tuple[float, float, FloatArray]]:
        for first, window in windows.iter_windows(self._blocks(), self._config, hop=self._hop):
            start = first / self._config.sample_rate
            yield start, min(start + self._config.clip_seconds, self.seconds), window

    def _blocks(self) -> Iterator[FloatArray]:
        rate, num_samples = self._config.sample_rate, 0
        with opened(self._audio) as file:
            for block in stream(file, sample_rate=rate, limits=UNLIMITED, warnings=self.warnings):
                num_samples += len(block)
                self.seconds = num_samples / rate
                self.peak = max(self.peak, float(np.abs(block).max(initial=0.0)))
                yield block

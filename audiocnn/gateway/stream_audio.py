"""The sound of one stream: resampled once, the newest window kept, levels measured."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import soxr

from audiocnn.levels import LOWEST_DBFS, level_dbfs
from audiocnn.probe import pcm_wav

FloatArray = npt.NDArray[np.float32]

SILENCE_DBFS = LOWEST_DBFS
_LOUD = 2.0  # full scale is 1; beyond twice of it the scale is wrong, as 16-bit numbers sent as floats


class BadSoundError(ValueError):
    """Bytes that are not little-endian float32 samples, or samples that are no numbers."""


class RingBuffer:
    """The newest sound of a stream at the model's rate: memory that does not grow.

    It keeps `window_seconds`, or `kept_seconds` if these are more. The buffer is made with the first sample:
    a connection that sends nothing costs nothing.
    """

    def __init__(
        self, *, input_rate: int, sample_rate: int, window_seconds: float, kept_seconds: float = 0.0
    ) -> None:
        self.input_rate = input_rate  # Hz, of what comes
        self.sample_rate = sample_rate  # Hz, of what is kept
        self.received = 0  # samples at the input rate
        self.is_too_loud = False
        self.end = 0  # samples at the model's rate since the beginning; the next one goes there, modulo size
        self._window = max(1, round(window_seconds * sample_rate))
        self._size = max(self._window, round(kept_seconds * sample_rate))
        self._ring: FloatArray | None = None  # (size,)
        self._total = self._energy = 0.0  # sums of samples and of their squares since the last `take_level`
        self._count = 0
        self._resampler: soxr.ResampleStream | None = None

    def push(self, frame: bytes) -> None:
        """Append float32 samples, little-endian, mono; raises `BadSoundError`."""
        if len(frame) % 4:
            raise BadSoundError(f"A frame of {len(frame)} bytes is no whole number of float32 samples.")
        samples: FloatArray = np.frombuffer(frame, "<f4").astype(np.float32, copy=False)
        if not np.isfinite(samples).all():
            raise BadSoundError("The samples have NaN or infinite values.")
        if not len(samples):
            return
        self.is_too_loud |= bool(np.abs(samples).max() > _LOUD)
        self._total += float(samples.sum(dtype=np.float64))
        self._energy += float(np.square(samples, dtype=np.float64).sum())
        self._count += len(samples)
        self.received += len(samples)
        self._keep(self._resampled(np.clip(samples, -1.0, 1.0)))

    def finish(self) -> None:
        """Append what the resampler holds back (some milliseconds); no frame may come afterwards."""
        if self._resampler is not None:
            self._keep(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))

    def _resampled(self, samples: FloatArray) -> FloatArray:
        if self.input_rate == self.sample_rate:
            return samples
        if self._resampler is None:
            self._resampler = soxr.ResampleStream(
                self.input_rate, self.sample_rate, 1, dtype="float32", quality="HQ"
            )
        resampled: FloatArray = self._resampler.resample_chunk(samples)
        return resampled

    def _keep(self, samples: FloatArray) -> None:
        """Over the oldest. Browsers send 128 samples at a time: moving the whole window would cost."""
        if self._ring is None:
            self._ring = np.zeros(self._size, np.float32)
        self.end += max(0, len(samples) - self._size)
        samples = samples[-self._size :]
        place = self.end % self._size
        first = samples[: self._size - place]
        self._ring[place : place + len(first)] = first
        self._ring[: len(samples) - len(first)] = samples[len(first) :]
        self.end += len(samples)

    @property
    def start(self) -> int:
        """The oldest sample that is kept, counted from the beginning of the stream."""
        return max(0, self.end - self._size)

    def part(self, start: int, end: int) -> FloatArray:
        """A copy of the samples from `start` up to `end`, which are kept yet."""
        assert self.start <= start <= end <= self.end
        if self._ring is None:
            return np.zeros(0, np.float32)
        return self._ring.take(np.arange(start, end), mode="wrap")

    def newest(self) -> FloatArray:
        """The window, oldest sample first: `(num_samples,)`, shorter at the beginning of the stream."""
        return self.part(max(0, self.end - self._window), self.end)

    @property
    def seconds(self) -> float:
        """Of sound received so far."""
        return self.received / self.input_rate

    def take_level(self) -> float:
        """RMS level in dB of full scale since the last call; `SILENCE_DBFS` at least."""
        level = level_dbfs(self._total, self._energy, self._count)
        self._total, self._energy, self._count = 0.0, 0.0, 0
        return level

    def wav(self) -> bytes | None:
        """The newest window as a 16-bit WAV file; None before the first sample."""
        waveform = self.newest()
        return wav_of(waveform, self.sample_rate) if len(waveform) else None


def wav_of(waveform: FloatArray, sample_rate: int) -> bytes:
    """Samples `(num_samples,)` as a 16-bit WAV file."""
    return pcm_wav(np.round(waveform * 32_767).astype("<i2").tobytes(), sample_rate)


class ExponentialAverage:
    """Exponential average of all confidences, with a time constant in seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._confidences: dict[str, float] = {}

    def update(self, predictions: list[dict[str, object]], elapsed_seconds: float) -> list[tuple[str, float]]:
        """Class and confidence, surest first; `elapsed_seconds` of sound since the last update."""
        new = {str(row["class"]): float(str(row["confidence"])) for row in predictions}
        keep = math.exp(-elapsed_seconds / self._seconds) if self._seconds else 0.0
        old = self._confidences or new
        self._confidences = {name: keep * old.get(name, 0.0) + (1 - keep) * p for name, p in new.items()}
        return sorted(self._confidences.items(), key=lambda pair: -pair[1])

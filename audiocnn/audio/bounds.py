"""What one clip may have: channels, sample rate, seconds, and samples in all channels together."""

from __future__ import annotations

from audiocnn.config import AudioLimits
from audiocnn.errors import AudioTooLongError, SampleRateOutOfRangeError, TooManyChannelsError


class Bounds:
    """The limits, and what has been decoded so far."""

    def __init__(self, limits: AudioLimits) -> None:
        self._limits = limits
        self._seconds = self._samples = 0.0

    def check_kind(self, channels: int, sample_rate: int) -> None:
        """Raises `TooManyChannelsError` or `SampleRateOutOfRangeError`."""
        limits = self._limits
        if channels > limits.max_channels:
            raise TooManyChannelsError(f"{channels} channels; at most {limits.max_channels} are accepted.")
        if not limits.min_sample_rate <= sample_rate <= limits.max_sample_rate:
            raise SampleRateOutOfRangeError(
                f"A sample rate of {sample_rate} Hz; it must be between {limits.min_sample_rate} and "
                f"{limits.max_sample_rate} Hz."
            )

    def add(self, frames: int, channels: int, sample_rate: int) -> None:
        """Count what was decoded. Raises `AudioTooLongError`."""
        self.check_length(frames, channels, sample_rate)
        self._seconds += frames / sample_rate
        self._samples += frames * channels

    def check_length(self, frames: float, channels: int, sample_rate: int) -> None:
        """Raises `AudioTooLongError` if so many frames more were too many."""
        seconds, samples = self._seconds + frames / sample_rate, self._samples + frames * channels
        limits = self._limits
        if seconds > limits.max_seconds:
            excess = f"longer than {limits.max_seconds:g} s ({seconds:.0f} s or more)"
        elif samples > limits.max_samples:
            excess = (
                f"of more than {limits.max_samples / 1e6:g} million samples ({samples / 1e6:.0f} million or "
                f"more, in {channels} channels at {sample_rate} Hz)"
            )
        else:
            return
        raise AudioTooLongError(
            f"The audio is {excess}. Cut it, or score it offline with the batch job: "
            "audiocnn batch FILE --out DIR"
        )

"""The windows of the clip of one request: which ones the options ask for, and what was computed of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from audiocnn import detections
from audiocnn.arrays import FloatArray
from audiocnn.audio import Clip, windows
from audiocnn.config import AudioLimits, Config, FrontendConfig
from audiocnn.errors import AudioTooLongError, BadOptionError
from audiocnn.options import Options

MIN_WINDOW_SECONDS = 0.05
_MAX_EMBEDDING_VALUES = 2_000_000  # in one answer: 20 MB of JSON


@dataclass
class WindowSeries:
    """Windows of one length, and what is computed of them, in their order."""

    waveform: FloatArray  # (num_samples,)
    config: FrontendConfig  # with the length of these windows
    hop: int  # samples from one window to the next
    logits: list[FloatArray] = field(default_factory=list)  # (num_classes,) each
    embeddings: list[FloatArray] = field(default_factory=list)  # (d,) each; none if the model has none
    log_mel_ms: float = 0.0

    @cached_property
    def spans(self) -> list[tuple[float, float]]:
        """Start and end of every window, seconds."""
        return windows.spans(len(self.waveform), self.config, hop=self.hop)

    @property
    def is_complete(self) -> bool:
        """Whether the network has run on all of them."""
        return len(self.logits) == len(self.spans)

    def __iter__(self) -> Iterator[FloatArray]:
        """Samples `(window_samples,)` of each."""
        return (window for _, window in windows.iter_windows([self.waveform], self.config, hop=self.hop))


@dataclass
class ClipWindows:
    """All windows of one clip."""

    clip: Clip
    whole: WindowSeries  # of the model's length
    short: WindowSeries | None = None  # for detections

    @property
    def parts(self) -> list[WindowSeries]:
        """Both kinds, those of the model's length first."""
        return [self.whole, self.short] if self.short else [self.whole]

    @property
    def num_windows(self) -> int:
        """Of both kinds."""
        return sum(len(part.spans) for part in self.parts)

    @property
    def is_complete(self) -> bool:
        """Whether the network has run on all of them."""
        return all(part.is_complete for part in self.parts)


def with_window_seconds(config: FrontendConfig, seconds: float | None) -> FrontendConfig:
    """The front end with windows of this length, at most the model's (None: the model's).

    Raises `ValueError` for a length of less than `MIN_WINDOW_SECONDS`.
    """
    if seconds is None:
        return config
    if not seconds >= MIN_WINDOW_SECONDS:
        raise ValueError(f"windows of {seconds:g} s: give {MIN_WINDOW_SECONDS:g} s or more")
    return replace(config, clip_seconds=min(seconds, config.clip_seconds))


def plan_windows(clip: Clip, options: Options, config: Config, limits: AudioLimits) -> ClipWindows:
    """The windows of the part that the options ask for.

    Raises `BadOptionError` for a part without samples, `AudioTooLongError` for more windows, or numbers in
    the answer, than one request may have.
    """
    rate = clip.sample_rate
    last = None if options.end is None else round(options.end * rate)
    part = replace(clip, waveform=clip.waveform[round(options.start * rate) : last])
    if not len(part.waveform):
        raise BadOptionError(f"start={options.start:g} is not possible: the file has {clip.seconds:g} s.")
    hop = round((options.hop_seconds or config.frontend.clip_seconds / 2) * rate)
    result = ClipWindows(part, WindowSeries(part.waveform, config.frontend, hop))
    if options.detections:
        frontend = with_window_seconds(config.frontend, detections.window_seconds(config))
        hop = round(detections.hop_of(options, config) * rate)
        result.short = WindowSeries(part.waveform, frontend, hop)
    _check(result, options, config, limits)
    return result


def _check(planned: ClipWindows, options: Options, config: Config, limits: AudioLimits) -> None:
    num_values = len(planned.whole.spans) * (config.num_features or 0)
    if options.gives_window_embeddings and num_values > _MAX_EMBEDDING_VALUES:
        raise AudioTooLongError(
            f"The embeddings of all windows are {num_values:,} numbers; one answer may have "
            f"{_MAX_EMBEDDING_VALUES:,}: raise hop_seconds, send a part (start, end), or use "
            "`audiocnn embed`."
        )
    if planned.num_windows > limits.max_windows:
        raise AudioTooLongError(
            f"{planned.clip.seconds:g} s are {planned.num_windows} windows; one request may have "
            f"{limits.max_windows}: raise hop_seconds, send a part (start, end), or use "
            "`audiocnn detect` or the batch job."
        )

"""Audio bytes -> waveform: the only place that decodes, mixes to mono and resamples.

Contract of a **waveform**: float32 `(num_samples,)`, mono, at `sample_rate` Hz, in [-1, 1], finite.
Everything up to here is Python, per clip, and may fail; everything after it is batched arithmetic.

A file is read in blocks, so that its bounds hold against what is decoded and not only against what
its header claims, and so that memory stays near the size of the mono waveform.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import BinaryIO

import numpy as np
import soxr

from audiocnn.arrays import FloatArray
from audiocnn.audio.channels import Mixer
from audiocnn.audio.parts import FORMATS, FileParts
from audiocnn.audio.pyav import load_av
from audiocnn.audio.recordings import Recordings
from audiocnn.config import AudioLimits
from audiocnn.errors import (
    AudioError,
    EmptyAudioError,
    NotFiniteAudioError,
    UndecodableAudioError,
    UnsupportedFormatError,
)

__all__ = ["FORMATS", "Clip", "ClipDecoder", "decode", "stream"]

_LOUD = 2.0  # lossy codecs overshoot full scale a little; beyond twice of it the scale is wrong


@dataclass(frozen=True, eq=False)
class Clip:
    """A decoded clip: its waveform and what the listener should be told about the file."""

    waveform: FloatArray  # see the contract above
    sample_rate: int  # Hz
    warnings: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Length of the waveform in seconds."""
        return len(self.waveform) / self.sample_rate


def decode(data: bytes, *, sample_rate: int, limits: AudioLimits | None = None) -> Clip:
    """Decode a whole audio file to a waveform at `sample_rate` Hz.

    Channels are averaged; resampling is soxr's HQ setting. A file that breaks off is decoded as far
    as it goes, with a warning.

    Raises the subclasses of `AudioError` that its docstring lists with codes `empty_audio`,
    `undecodable_audio`, `not_finite_audio`, `audio_too_long`, `too_many_channels`,
    `sample_rate_out_of_range` and `unsupported_format`.
    """
    decoder = ClipDecoder(data, sample_rate=sample_rate, limits=limits)
    while decoder.step():
        pass
    return decoder.clip


class ClipDecoder:
    """`decode` in steps, so that several clips can take turns. `clip` is there once `step` returned False.

    >>> decoder = ClipDecoder(Path("rain.wav").read_bytes(), sample_rate=44_100)
    >>> while decoder.step():
    ...     pass
    >>> decoder.clip.seconds
    5.0
    """

    clip: Clip

    def __init__(self, data: bytes, *, sample_rate: int, limits: AudioLimits | None = None) -> None:
        self.seconds_spent = 0.0  # wall time of all steps
        self._sample_rate = sample_rate
        self._warnings: list[str] = []
        self._blocks: list[FloatArray] = []
        self._stream = _blocks_of(data, sample_rate, limits or AudioLimits(), self._warnings)

    def step(self) -> bool:
        """Decode the next block; whether there may be more. Raises what `decode` raises."""
        began = time.perf_counter()
        try:
            block = next(self._stream, None)
        finally:
            self.seconds_spent += time.perf_counter() - began
        if block is not None:
            self._blocks.append(block)
            return True
        self.clip = Clip(np.concatenate(self._blocks), self._sample_rate, self._warnings)
        self._blocks.clear()
        return False


def _blocks_of(
    data: bytes, sample_rate: int, limits: AudioLimits, warnings: list[str]
) -> Iterator[FloatArray]:
    """`stream`, in a process of its own where that is wanted and a format in the file needs it."""
    if not (limits.isolate and data):
        yield from stream(io.BytesIO(data), sample_rate=sample_rate, limits=limits, warnings=warnings)
        return
    source = _Source(io.BytesIO(data), limits.decode_seconds)
    parts = FileParts(source, max_seconds=limits.max_seconds)
    risky = next((part for part in parts if part.is_risky), None)
    if risky is None:
        yield from _timed(source, parts, sample_rate, limits, warnings)
        return
    from audiocnn.audio.isolation import isolated  # late: not on Windows, where clients import this package

    if risky.demuxer:
        with contextlib.suppress(UnsupportedFormatError):
            load_av()  # once, and not in every process again
    yield from isolated(data, sample_rate, limits, warnings)


def stream(
    file: BinaryIO, *, sample_rate: int, limits: AudioLimits | None = None, warnings: list[str]
) -> Iterator[FloatArray]:
    """The waveform that `decode` returns, in blocks, so that a file of any length takes little memory.

    `file` is open for reading and can seek. What the listener should be told is appended to `warnings`,
    some of it only at the end. Raises what `decode` raises, perhaps after blocks that were good, and
    `OSError` where the file itself cannot be read.
    """
    limits = limits or AudioLimits()
    source = _Source(file, limits.decode_seconds)
    parts = FileParts(source, max_seconds=limits.max_seconds)
    yield from _timed(source, parts, sample_rate, limits, warnings)


def _timed(
    source: _Source, parts: FileParts, sample_rate: int, limits: AudioLimits, warnings: list[str]
) -> Iterator[FloatArray]:
    """The waveform in blocks; what is done between them does not count as decoding time."""
    try:
        for block in _waveform(source, parts, sample_rate, limits, warnings):
            source.check()
            source.pause()
            yield block
            source.resume()
    except AudioError:
        source.check()  # what came of it only looks like bad audio
        raise


def _waveform(
    source: _Source, parts: FileParts, sample_rate: int, limits: AudioLimits, warnings: list[str]
) -> Iterator[FloatArray]:
    if not source.size:
        raise EmptyAudioError("The request has no audio: the body is empty. Send the bytes of a sound file.")
    recordings, mono = Recordings(source, parts, limits), _Mono(sample_rate)
    num_samples, peak = 0, 0.0
    for block in mono.resampled(recordings):
        if not len(block):
            continue
        low, high = float(block.min()), float(block.max())
        if not (math.isfinite(low) and math.isfinite(high)):  # resampling adds: huge values overflow
            raise NotFiniteAudioError(
                "The audio has samples that are NaN, infinite, or too large to compute with."
            )
        num_samples += len(block)
        peak = max(peak, high, -low)
        yield block if low >= -1.0 and high <= 1.0 else np.clip(block, -1.0, 1.0)
    source.check()
    if not num_samples:
        raise EmptyAudioError(f"The audio is shorter than one sample at {sample_rate} Hz.")
    warnings += recordings.warnings()
    if mono.cancelled_seconds:
        warnings.append(
            f"The channels cancel each other (opposite phase) for {mono.cancelled_seconds:.1f} s; "
            "the loudest was used there."
        )
    if peak > _LOUD:
        warnings.append(f"Samples reach {peak:.3g} times full scale; they were clipped.")


class _Mono:
    """Recordings of any number of channels and any rate -> one mono waveform."""

    def __init__(self, sample_rate: int) -> None:
        """`sample_rate` in Hz, of the waveform."""
        self.cancelled_seconds = 0.0  # for how long channels cancelled each other
        self._sample_rate = sample_rate

    def resampled(self, blocks: Iterable[tuple[int, FloatArray]]) -> Iterator[FloatArray]:
        """Blocks `(num_samples,)` of the sample rate in Hz and a block `(frames, channels)`."""
        for (rate, channels), group in groupby(blocks, key=lambda block: (block[0], block[1].shape[1])):
            mixer = Mixer(channels=channels, sample_rate=rate)
            mixed = (mixer.mix(block) for _, block in group)
            yield from mixed if rate == self._sample_rate else self._resample(mixed, rate)
            self.cancelled_seconds += mixer.cancelled_seconds

    def _resample(self, blocks: Iterable[FloatArray], rate: int) -> Iterator[FloatArray]:
        resampler = soxr.ResampleStream(rate, self._sample_rate, 1, dtype="float32", quality="HQ")
        for block in blocks:
            yield resampler.resample_chunk(block)
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


class _Source:
    """A file as libsndfile and FFmpeg may read it from inside a callback, where nothing may be raised.

    Damaged headers make libsndfile seek before the start: the seek fails. A file that can no longer be
    read, or that has taken longer than `seconds` to decode, ends there; `check` raises the reason.
    """

    def __init__(self, file: BinaryIO, seconds: float) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        self._failed: OSError | None = None
        self._seconds_left = seconds
        self.resume()
        self.seek(0)

    def resume(self) -> None:
        """The time counts from here on."""
        self._resumed = time.monotonic()

    def pause(self) -> None:
        """The time does not count until `resume`: other work is done."""
        self._seconds_left -= time.monotonic() - self._resumed

    @property
    def _is_late(self) -> bool:
        return time.monotonic() - self._resumed > self._seconds_left

    def check(self) -> None:
        """Raises why the file ended early: `OSError`, or `UndecodableAudioError` if it took too long."""
        if self._failed:
            raise self._failed from None
        if self._is_late:
            raise UndecodableAudioError("Decoding took too long. Send the clip as WAV or FLAC.") from None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return -1 if self._is_late else self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        try:
            return b"" if self._is_late else self._file.read(size)
        except OSError as error:
            self._failed = error
            return b""

    def between(self, start: int, end: int) -> bytes:
        """The bytes there, or as many as there are; the next `read` starts wherever."""
        start = max(0, start)
        return b"" if self.seek(start) < 0 else self.read(max(0, end - start))

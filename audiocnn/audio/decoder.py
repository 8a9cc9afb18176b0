"""Audio bytes -> waveform: the only place that decodes, mixes to mono and resamples.

Contract of a **waveform**: float32 `(num_samples,)`, mono, at `sample_rate` Hz, in [-1, 1], finite.
Everything up to here is Python, per clip, and may fail; everything after it is batched arithmetic.

A file is read in blocks, so that its bounds hold against what is decoded and not only against what
its header claims, and so that memory stays near the size of the mono waveform.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from audiocnn.arrays import FloatArray
from audiocnn.audio.pyav import TRUNCATED, UNKNOWN_FRAMES, AvFile, demuxer_of, load_av
from audiocnn.config import AudioLimits
from audiocnn.errors import (
    AudioError,
    AudioTooLongError,
    EmptyAudioError,
    NotFiniteAudioError,
    SampleRateOutOfRangeError,
    TooManyChannelsError,
    UndecodableAudioError,
    UnsupportedFormatError,
)

FORMATS = "WAV, FLAC, Ogg (Vorbis, Opus), MP3, AIFF, M4A/AAC or WebM"
_NOT_FINITE = "The audio has samples that are NaN, infinite, or too large to compute with."
_BLOCK_FRAMES = 1 << 16
_STREAM_BYTES = 0x7FFF_F000  # sizes from here on are what encoders write when they cannot know
_TAIL_BYTES = 1 << 17  # two Ogg pages of the largest size
_LOUD = 2.0  # lossy codecs overshoot full scale a little; beyond twice of it the scale is wrong


@dataclass(frozen=True)
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
    """`stream`, in a process of its own where that is wanted and the format needs it."""

    demuxer = demuxer_of(data[:12])
    if not (limits.isolate and (demuxer or data[:4] == b"OggS")):
        return stream(io.BytesIO(data), sample_rate=sample_rate, limits=limits, warnings=warnings)
    from audiocnn.audio.isolation import isolated  # late: not on Windows, where clients import this package

    if demuxer:
        load_av()  # once, and not in every process again
    return isolated(data, sample_rate, limits, warnings)


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
    try:
        for block in _stream(source, sample_rate, limits, warnings):
            source.check()
            source.pause()
            yield block
            source.resume()
    except AudioError:
        source.check()  # what came of it only looks like bad audio
        raise


def _stream(
    source: _Source, sample_rate: int, limits: AudioLimits, warnings: list[str]
) -> Iterator[FloatArray]:
    num_samples, peak = 0, 0.0
    with _open(source, limits) as sound:
        _check_header(sound, limits)
        read = sound.blocks if isinstance(sound, AvFile) else partial(_blocks, sound)
        for block in _mono(sound, read(warnings), sample_rate, limits):
            if not np.isfinite(block).all():  # resampling adds: huge values overflow on the way
                raise NotFiniteAudioError(_NOT_FINITE)
            num_samples += len(block)
            peak = max(peak, float(np.abs(block).max(initial=0.0)))
            yield np.clip(block, -1.0, 1.0)
    source.check()
    if not num_samples:
        raise EmptyAudioError(f"The audio is shorter than one sample at {sample_rate} Hz.")
    if _is_cut_off(source) and TRUNCATED not in warnings:
        warnings.append(TRUNCATED)
    if peak > _LOUD:
        warnings.append(f"Samples reach {peak:.3g} times full scale; they were clipped.")


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
        """The time does not count until `resume`: somebody else works."""
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
        except (OSError, ValueError):
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
        self.seek(max(0, start))
        return self.read(end - max(0, start))


def _open(source: _Source, limits: AudioLimits) -> soundfile.SoundFile | AvFile:
    if not source.size:
        raise EmptyAudioError("The request has no audio: the body is empty. Send the bytes of a sound file.")
    head = source.between(0, 12)
    source.seek(0)
    if demuxer := demuxer_of(head):
        return AvFile(source, demuxer)
    source.check()
    if not _is_known_container(head):
        raise UnsupportedFormatError(f"The bytes are in no known audio container. Send {FORMATS}.")
    try:
        return soundfile.SoundFile(source)
    except soundfile.LibsndfileError as error:
        raise UndecodableAudioError(
            f"The file looks like audio but cannot be opened: {error.error_string} Is it complete?"
        ) from error


def _is_known_container(head: bytes) -> bool:
    if head[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return head[8:12] in (b"WAVE", b"")
    if head[:4] == b"FORM":
        return head[8:12] in (b"AIFF", b"AIFC", b"")
    is_mpeg_frame = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2  # layer III
    return head[:4] in (b"fLaC", b"OggS") or head[:3] == b"ID3" or is_mpeg_frame


def _is_cut_off(source: _Source) -> bool:
    """Whether the container promises more than came: sizes in RIFF and AIFF, the end flag in Ogg."""
    head = source.between(0, 28)
    if head[:4] == b"OggS":
        tail = source.between(source.size - _TAIL_BYTES, source.size)
        page = tail[max(0, tail.rfind(b"OggS")) :]
        segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
        is_last = page[:4] == b"OggS" and len(page) > 5 and bool(page[5] & 4)
        return not is_last or 27 + len(segments) + sum(segments) > len(page)
    if head[:4] == b"RF64":
        return int.from_bytes(head[20:28], "little") + 8 > source.size
    if head[:4] not in (b"RIFF", b"RIFX", b"FORM"):
        return False
    promised = int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
    return promised < _STREAM_BYTES and promised + 8 > source.size


def _check_header(file: soundfile.SoundFile | AvFile, limits: AudioLimits) -> None:
    if file.channels > limits.max_channels:
        raise TooManyChannelsError(f"{file.channels} channels; at most {limits.max_channels} are accepted.")
    if not limits.min_sample_rate <= file.samplerate <= limits.max_sample_rate:
        raise SampleRateOutOfRangeError(
            f"A sample rate of {file.samplerate} Hz; it must be between {limits.min_sample_rate} and "
            f"{limits.max_sample_rate} Hz."
        )
    if file.frames != UNKNOWN_FRAMES:
        _check_length(file.frames, file, limits)


def _check_length(frames: int, file: soundfile.SoundFile | AvFile, limits: AudioLimits) -> None:
    """Raises `AudioTooLongError` for more seconds than allowed, or more samples in all channels together."""
    seconds, samples = frames / file.samplerate, frames * file.channels
    if seconds > limits.max_seconds:
        excess = f"longer than {limits.max_seconds:g} s ({seconds:.0f} s or more)"
    elif samples > limits.max_samples:
        excess = (
            f"of more than {limits.max_samples / 1e6:g} million samples ({samples / 1e6:.0f} million or "
            f"more, in {file.channels} channels at {file.samplerate} Hz)"
        )
    else:
        return
    raise AudioTooLongError(
        f"The audio is {excess}. Cut it, or score it offline with the batch job: "
        "audiocnn batch FILE --out DIR"
    )


def _mono(
    file: soundfile.SoundFile | AvFile,
    channel_blocks: Iterator[FloatArray],
    sample_rate: int,
    limits: AudioLimits,
) -> Iterator[FloatArray]:
    """All blocks `(frames, channels)` of the file, mono and resampled."""
    resampler = None
    if file.samplerate != sample_rate:
        resampler = soxr.ResampleStream(file.samplerate, sample_rate, 1, dtype="float32", quality="HQ")
    frames = 0
    for block in channel_blocks:
        frames += len(block)
        _check_length(frames, file, limits)
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float64)
        if not np.isfinite(mono).all():
            raise NotFiniteAudioError(_NOT_FINITE)
        mono = mono.astype(np.float32, copy=False)
        yield resampler.resample_chunk(mono) if resampler else mono
    if frames == 0:
        error = UndecodableAudioError if file.frames else EmptyAudioError
        raise error("The file has a valid header but not one audio frame in it.")
    if resampler:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _blocks(file: soundfile.SoundFile, warnings: list[str]) -> Iterator[FloatArray]:
    """Blocks `(frames, channels)` until the file ends or breaks off.

    Where a file breaks off, libsndfile has written the last good frames into the buffer, and soundfile
    raises without saying how many: the NaNs that are left in the buffer do.
    """
    expected, got, goes_on = file.frames, 0, True
    while goes_on:
        block = np.full((_BLOCK_FRAMES, file.channels), np.nan, np.float32)
        try:
            frames = len(file.read(out=block))
        except soundfile.LibsndfileError:
            frames = int(np.append(np.isnan(block[:, 0]), True).argmax())
            goes_on = False
        goes_on &= frames > 0
        got += frames
        yield block[:frames]
    if 0 < got < expected != UNKNOWN_FRAMES:
        warnings.append(TRUNCATED)

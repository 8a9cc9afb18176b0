"""Audio bytes -> waveform: the only place that decodes, mixes to mono and resamples.

Contract of a **waveform**: float32 `(num_samples,)`, mono, at `sample_rate` Hz, in [-1, 1], finite.
Everything up to here is Python, per clip, and may fail; everything after it is batched arithmetic.

A file is read in blocks, so that its bounds hold against what is decoded and not only against what
its header claims, and so that memory stays near the size of the mono waveform.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from audiocnn.av_decoder import TRUNCATED, UNKNOWN_FRAMES, AvFile, demuxer_of
from audiocnn.config import AudioLimits
from audiocnn.errors import (
    AudioError,
    AudioTooLong,
    EmptyAudio,
    NotFiniteAudio,
    SampleRateOutOfRange,
    TooManyChannels,
    UndecodableAudio,
    UnsupportedFormat,
)

FloatArray = npt.NDArray[np.float32]

FORMATS = "WAV, FLAC, Ogg (Vorbis, Opus), MP3, AIFF, M4A/AAC or WebM"
_NOT_FINITE = "The audio has samples that are NaN, infinite, or too large to compute with."
_BLOCK_FRAMES = 1 << 16
_STREAM_BYTES = 0x7FFF_F000  # sizes from here on are what encoders write when they cannot know
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
    limits = limits or AudioLimits()
    warnings: list[str] = []
    with _open(data) as file:
        _check_header(file, limits)
        read = file.blocks if isinstance(file, AvFile) else partial(_blocks, file)
        blocks = _read(file, read(warnings), sample_rate, limits)
    if _is_cut_off(data) and TRUNCATED not in warnings:
        warnings.append(TRUNCATED)
    waveform = np.concatenate(blocks)
    if not len(waveform):
        raise EmptyAudio(f"The audio is shorter than one sample at {sample_rate} Hz.")
    if not np.isfinite(waveform).all():  # resampling adds: huge values overflow on the way
        raise NotFiniteAudio(_NOT_FINITE)
    if (peak := float(np.abs(waveform).max(initial=0.0))) > _LOUD:
        warnings.append(f"Samples reach {peak:.3g} times full scale; they were clipped.")
    return Clip(waveform=np.clip(waveform, -1.0, 1.0), sample_rate=sample_rate, warnings=warnings)


class _Bytes(io.BytesIO):
    """Damaged headers make libsndfile seek before the start: say no, as a file would, without a
    traceback from inside the callback."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return -1


def _open(data: bytes) -> soundfile.SoundFile | AvFile:
    if not data:
        raise EmptyAudio("The request has no audio: the body is empty. Send the bytes of a sound file.")
    if demuxer := demuxer_of(data):
        return AvFile(data, demuxer)
    if not _is_known_container(data):
        raise UnsupportedFormat(f"The bytes are in no known audio container. Send {FORMATS}.")
    try:
        return soundfile.SoundFile(_Bytes(data))
    except soundfile.LibsndfileError as error:
        raise UndecodableAudio(
            f"The file looks like audio but cannot be opened: {error.error_string} Is it complete?"
        ) from error


def _is_known_container(data: bytes) -> bool:
    head = bytes(data[:12])
    if head[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return head[8:12] in (b"WAVE", b"")
    if head[:4] == b"FORM":
        return head[8:12] in (b"AIFF", b"AIFC", b"")
    is_mpeg_frame = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2  # layer III
    return head[:4] in (b"fLaC", b"OggS") or head[:3] == b"ID3" or is_mpeg_frame


def _is_cut_off(data: bytes) -> bool:
    """Whether the container promises more than came: sizes in RIFF and AIFF, the end flag in Ogg."""
    if data[:4] == b"OggS":
        page = data.rfind(b"OggS")
        segments = data[page + 27 : page + 27 + data[page + 26]] if len(data) > page + 26 else b""
        is_last = len(data) > page + 5 and bool(data[page + 5] & 4)
        return not is_last or page + 27 + len(segments) + sum(segments) > len(data)
    if data[:4] == b"RF64":
        return int.from_bytes(data[20:28], "little") + 8 > len(data)
    if data[:4] not in (b"RIFF", b"RIFX", b"FORM"):
        return False
    promised = int.from_bytes(data[4:8], "little" if data[:4] == b"RIFF" else "big")
    return promised < _STREAM_BYTES and promised + 8 > len(data)


def _check_header(file: soundfile.SoundFile | AvFile, limits: AudioLimits) -> None:
    if file.channels > limits.max_channels:
        raise TooManyChannels(f"{file.channels} channels; at most {limits.max_channels} are accepted.")
    if not limits.min_sample_rate <= file.samplerate <= limits.max_sample_rate:
        raise SampleRateOutOfRange(
            f"A sample rate of {file.samplerate} Hz; it must be between {limits.min_sample_rate} and "
            f"{limits.max_sample_rate} Hz."
        )
    if UNKNOWN_FRAMES != file.frames > limits.max_seconds * file.samplerate:
        raise _too_long(file.frames / file.samplerate, limits)


def _too_long(seconds: float, limits: AudioLimits) -> AudioError:
    return AudioTooLong(
        f"The audio is longer than {limits.max_seconds:g} s ({seconds:.0f} s or more). Cut it, or score "
        "it offline with the batch job: python -m batch.score FILE --out DIR"
    )


def _read(
    file: soundfile.SoundFile | AvFile,
    channel_blocks: Iterator[FloatArray],
    sample_rate: int,
    limits: AudioLimits,
) -> list[FloatArray]:
    """All blocks `(frames, channels)` of the file, mono and resampled."""
    resampler = None
    if file.samplerate != sample_rate:
        resampler = soxr.ResampleStream(file.samplerate, sample_rate, 1, dtype="float32", quality="HQ")
    blocks: list[FloatArray] = []
    frames = 0
    for block in channel_blocks:
        frames += len(block)
        if frames > limits.max_seconds * file.samplerate:
            raise _too_long(frames / file.samplerate, limits)
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float64)
        if not np.isfinite(mono).all():
            raise NotFiniteAudio(_NOT_FINITE)
        mono = mono.astype(np.float32, copy=False)
        blocks.append(resampler.resample_chunk(mono) if resampler else mono)
    if frames == 0:
        error = UndecodableAudio if file.frames else EmptyAudio
        raise error("The file has a valid header but not one audio frame in it.")
    if resampler:
        blocks.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    return blocks


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

"""AAC in M4A and ADTS, Opus and Vorbis in WebM: what phones and browsers record, read through PyAV.

Optional, `pip install audiocnn-serve[formats]`: PyAV brings FFmpeg's libraries. Only the demuxers and
codecs named here are ever opened, however clever the bytes: FFmpeg knows hundreds, and playlists that
fetch from the network among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, Self

import numpy as np

from audiocnn.arrays import FloatArray
from audiocnn.errors import EmptyAudioError, UndecodableAudioError, UnsupportedFormatError

UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's word for a stream whose header gives no length
TRUNCATED = "The file is truncated; what could be decoded was used."
_CODECS = frozenset({"aac", "alac", "flac", "libopus", "mp3", "mp3float", "opus", "pcm_s16le", "vorbis"})
_BLOCK_FRAMES = 1 << 16
_MISSING_SECONDS = 0.25  # less than promised by so much is padding that encoders add, and no loss


class Source(Protocol):
    """A file that is open for reading; see `audiocnn.audio`."""

    def read(self, size: int = ..., /) -> bytes:
        """At most `size` bytes."""
        ...

    def seek(self, offset: int, whence: int = ..., /) -> int:
        """The new position."""
        ...

    def tell(self) -> int:
        """The position."""
        ...

    def check(self) -> None:
        """Raises why the file ended early, if it did."""
        ...


def demuxer_of(head: bytes) -> str | None:
    """FFmpeg's name of the container, if it is one of those read here; `head` is its first 12 bytes."""
    if head[4:8] == b"ftyp":
        return "mp4"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    is_adts = len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0
    return "aac" if is_adts else None


def load_av() -> Any:
    """The module of PyAV; raises `UnsupportedFormatError` without it."""
    try:
        import av
    except ImportError as error:
        raise UnsupportedFormatError(
            "This server does not read M4A, AAC and WebM: it lacks PyAV "
            "(pip install audiocnn-serve[formats]). Send WAV, FLAC, Ogg or MP3."
        ) from error
    return av


class AvFile:
    """A sound file as `soundfile.SoundFile` shows one: `channels`, `samplerate` (Hz), `frames`, blocks."""

    def __init__(self, file: Source, demuxer: str) -> None:
        """Read the header."""
        self._av = load_av()
        self._demuxer = demuxer
        self._file = file
        try:
            self._container: Any = self._av.open(file, mode="r", format=demuxer)
        except (self._av.FFmpegError, ValueError) as error:
            file.check()
            raise UndecodableAudioError(
                "The file looks like audio but cannot be opened. Is it complete?"
            ) from error
        try:
            self._read_header()
        except BaseException:
            self._container.close()
            raise

    def _read_header(self) -> None:
        if not self._container.streams.audio:
            raise EmptyAudioError("The file has no sound in it.")
        self._stream = self._container.streams.audio[0]
        codec = self._stream.codec_context
        if codec is None or codec.name not in _CODECS:
            name = codec.name if codec else "unknown"
            raise UnsupportedFormatError(
                f"The codec {name} is not read. Send AAC, Opus, WAV, FLAC, Ogg or MP3."
            )
        if not codec.sample_rate or not codec.channels:
            raise UndecodableAudioError("Not one audio frame can be read in the file.")
        codec.thread_count = 1
        self.channels: int = codec.channels
        self.samplerate: int = codec.sample_rate
        self.frames = self._promised_frames()

    def _promised_frames(self) -> int:
        if self._demuxer == "aac":
            return UNKNOWN_FRAMES  # it says nothing; FFmpeg guesses from the bit rate
        if self._stream.duration is not None:
            return int(self._stream.duration * self._stream.time_base * self.samplerate)
        if self._container.duration is not None:
            return int(self._container.duration * self.samplerate // 1_000_000)  # given in microseconds
        return UNKNOWN_FRAMES

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def blocks(self, warnings: list[str]) -> Iterator[FloatArray]:
        """Blocks `(frames, channels)` until the file ends, breaks off, or changes its kind midway."""
        got = 0
        parts: list[FloatArray] = []
        for part in self._parts(warnings):
            got += len(part)
            parts.append(part)
            if sum(map(len, parts)) >= _BLOCK_FRAMES:
                yield np.concatenate(parts)
                parts = []
        if parts:
            yield np.concatenate(parts)
        missing = self.frames - got
        if got > 0 and self.frames != UNKNOWN_FRAMES and missing > _MISSING_SECONDS * self.samplerate:
            warnings.append(TRUNCATED)
        warnings[:] = dict.fromkeys(warnings)

    def _parts(self, warnings: list[str]) -> Iterator[FloatArray]:
        to_float = self._av.AudioResampler(format="fltp")
        try:
            for frame in self._container.decode(self._stream):
                self._file.check()
                if (frame.sample_rate, frame.layout.nb_channels) != (self.samplerate, self.channels):
                    warnings.append(TRUNCATED)
                    return
                for planar in to_float.resample(frame):
                    yield planar.to_ndarray().astype(np.float32, copy=False).T
        except (self._av.FFmpegError, ValueError):
            self._file.check()
            warnings.append(TRUNCATED)

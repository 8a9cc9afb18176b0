"""AAC in M4A and ADTS, Opus and Vorbis in WebM, FLAC and Speex in Ogg, read through PyAV.

Optional, `pip install audiocnn-serve[formats]`: PyAV brings FFmpeg's libraries. Only the demuxers and
codecs named here are ever opened, however clever the bytes: FFmpeg knows hundreds, and playlists that
fetch from the network among them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from audiocnn.arrays import FloatArray
from audiocnn.audio.sndfile import UNKNOWN_FRAMES
from audiocnn.audio.source import Part, Source, find
from audiocnn.errors import EmptyAudioError, UndecodableAudioError, UnsupportedFormatError

_CODECS = frozenset({"aac", "alac", "flac", "libopus", "mp3", "mp3float", "opus", "speex", "vorbis"})
_PCM = re.compile(r"pcm_([sf](16|24|32)[lb]e|u8|s8|alaw|mulaw)")
_DURATION = re.compile(r"(\d{1,4}):(\d\d):(\d\d(?:\.\d+)?)")  # hours, minutes, seconds
_BLOCK_FRAMES = 1 << 16
_HEAD_BYTES = 1 << 16
_MAX_NAMES = 20
_MAX_ERRORS = 1_000  # packets in a row that cannot be decoded
_MAX_PLANES = 8
_MISSING_SECONDS = 0.25  # less than promised by so much is padding that encoders add, and no loss


def load_av() -> Any:
    """The module of PyAV; raises `UnsupportedFormatError` without it."""
    try:
        import av
    except ImportError as error:
        raise UnsupportedFormatError(
            "This server does not read M4A, AAC, WebM, and FLAC and Speex in Ogg: it lacks PyAV "
            "(pip install audiocnn-serve[formats]). Send WAV, FLAC, Ogg Vorbis, Opus or MP3."
        ) from error
    return av


class AvFile:
    """A recording as FFmpeg reads it; the attributes are those of `audiocnn.audio.sndfile.SndFile`."""

    def __init__(self, source: Source, part: Part) -> None:
        """Read the header.

        Raises `UndecodableAudioError`, `EmptyAudioError` if there is no audio track, and
        `UnsupportedFormatError` if none can be read.
        """
        self._av = load_av()
        self._source, self._part = source, part
        self.lost_seconds, self.is_cut = 0.0, False
        self.warnings: list[str] = []
        self._reached = 0.0  # seconds, by the file's own clock
        self._broken_seconds = 0.0  # of packets that could not be decoded, since the last good one
        self._container = self._open()
        try:
            self._tracks = self._readable_tracks()
            self._use(self._tracks[0])
        except BaseException:
            self._container.close()
            raise

    def _open(self) -> Any:
        try:
            return self._av.open(
                self._part.view(self._source),
                mode="r",
                format=self._part.demuxer,
                metadata_errors="replace",  # tags may be in Latin-1
            )
        except (self._av.FFmpegError, ValueError) as error:
            self._source.check()
            raise UndecodableAudioError(
                "The file looks like audio but cannot be opened. Is it complete?"
            ) from error

    def _readable_tracks(self) -> list[int]:
        """Numbers of the audio tracks that can be read, from 0."""
        tracks = self._container.streams.audio
        if not tracks:
            raise EmptyAudioError("The file has no audio track.")
        names = [track.codec_context.name if track.codec_context else None for track in tracks]
        readable = [n for n, name in enumerate(names) if name and (name in _CODECS or _PCM.fullmatch(name))]
        if not readable:
            guessed = _codec_names(self._part.view(self._source), self._part.demuxer)
            said = [name or (guessed[n] if n < len(guessed) else "unknown") for n, name in enumerate(names)]
            raise UnsupportedFormatError(
                f"The codec {', '.join(dict.fromkeys(said))} is not read. "
                "Send AAC, Opus, WAV, FLAC, Ogg or MP3."
            )
        complete = [
            n for n in readable if tracks[n].codec_context.sample_rate and tracks[n].codec_context.channels
        ]
        if not complete:
            raise UndecodableAudioError("Not one audio frame can be read in the file.")
        return complete

    def _use(self, number: int) -> None:
        self._track = self._container.streams.audio[number]
        codec = self._track.codec_context
        codec.thread_count = 1
        self.channels: int = codec.channels
        self.samplerate: int = codec.sample_rate
        self._promised = self._promised_seconds()
        self.frames = UNKNOWN_FRAMES if self._promised is None else int(self._promised * self.samplerate)

    def _promised_seconds(self) -> float | None:
        if self._part.demuxer == "aac":
            return None  # it says nothing; FFmpeg guesses from the bit rate
        if self._track.duration is not None:
            return float(self._track.duration * self._track.time_base)
        if match := _DURATION.fullmatch(self._track.metadata.get("DURATION", "")):
            hours, minutes, seconds = map(float, match.groups())
            return 3600 * hours + 60 * minutes + seconds
        if self._container.duration is not None and len(self._container.streams) == 1:
            return float(self._container.duration / 1_000_000)  # of the longest track
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def blocks(self) -> Iterator[tuple[int, FloatArray]]:
        """The sample rate in Hz and a block `(frames, channels)`, until the recording ends or breaks off.

        Of the tracks that can be read, the first one with a frame in it.
        """
        for number in self._tracks:
            if number != self._tracks[0]:
                self._container.close()
                self._container = self._open()
                self._use(number)
            got = False
            for rate, block in self._track_blocks():
                got = True
                yield rate, block
            if got:
                self._conclude(number)
                return

    def _conclude(self, number: int) -> None:
        count = len(self._container.streams.audio)
        if number:
            self.warnings.append(
                f"Audio track {number + 1} of {count} was used, the first one that can be read."
            )
        missing = 0.0 if self._promised is None else self._promised - self._reached
        is_short = missing > _MISSING_SECONDS
        self.is_cut = self._part.is_cut and (is_short or self._promised is None)
        if not self.is_cut:
            self.lost_seconds += max(missing if is_short else 0.0, self._broken_seconds)

    def _track_blocks(self) -> Iterator[tuple[int, FloatArray]]:
        """The track's frames, joined to blocks of one sample rate and number of channels."""
        kind, count = (0, 0), 0
        parts: list[FloatArray] = []
        for rate, samples in self._frames():
            if parts and ((rate, samples.shape[1]) != kind or count >= _BLOCK_FRAMES):
                yield kind[0], np.concatenate(parts)
                parts, count = [], 0
            kind = rate, samples.shape[1]
            parts.append(samples)
            count += len(samples)
        if parts:
            yield kind[0], np.concatenate(parts)

    def _frames(self) -> Iterator[tuple[int, FloatArray]]:
        kind, to_float = None, self._resampler(1)
        for frame in self._decoded():
            self._source.check()
            if (frame.sample_rate, frame.layout.name, frame.format.name) != kind:
                kind = frame.sample_rate, frame.layout.name, frame.format.name
                to_float = self._resampler(frame.layout.nb_channels)
            try:
                converted = to_float.resample(frame)
            except (self._av.FFmpegError, ValueError):  # a frame without a rate or a layout
                kind = None
                continue
            for each in converted:
                samples = each.to_ndarray().astype(np.float32, copy=False)
                yield (
                    frame.sample_rate,
                    samples.T if each.format.is_planar else samples.reshape(each.samples, -1),
                )

    def _resampler(self, channels: int) -> Any:
        """To float32; interleaved is slower, but PyAV 18 reads beyond the table of eight planes or more."""
        return self._av.AudioResampler(format="fltp" if channels < _MAX_PLANES else "flt")

    def _decoded(self) -> Iterator[Any]:
        """Frames; a packet that cannot be decoded is left out."""
        seconds, errors = 0.0, 0  # of a frame; packets in a row
        for packet in self._packets():
            try:
                for frame in packet.decode():
                    seconds, errors = frame.samples / max(frame.sample_rate, 1), 0
                    self.lost_seconds += self._broken_seconds
                    self._broken_seconds = 0.0
                    if frame.time is not None:
                        self._reached = max(self._reached, frame.time + seconds)
                    yield frame
            except (self._av.FFmpegError, ValueError):
                self._source.check()
                self._broken_seconds += seconds
                errors += 1
                if errors > _MAX_ERRORS:
                    return

    def _packets(self) -> Iterator[Any]:
        try:
            yield from self._container.demux(self._track)
        except (self._av.FFmpegError, ValueError):
            self._source.check()


def _codec_names(file: Source, demuxer: str | None) -> list[str]:
    """What the audio tracks of an MP4 or Matroska call their codecs, also those that FFmpeg does not know."""
    if demuxer == "matroska":
        head = file.between(0, _HEAD_BYTES)
        return [name.decode() for name in re.findall(rb"\x86[\x80-\xff](A_[A-Z0-9/_.]+)", head)]
    names: list[str] = []
    place: int | None = 0
    while place is not None and len(names) < _MAX_NAMES:
        sound = find(file, b"soun", place)
        place = None if sound is None else find(file, b"stsd", sound)
        if place is not None:
            names.append(ascii(file.between(place + 16, place + 20).decode("latin-1"))[1:-1])
    return names

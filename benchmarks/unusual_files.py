"""Files that libsndfile does not write, and unusual ones: no length in the header, several recordings, ..."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np

from audiocnn.arrays import FloatArray
from audiocnn.audio.audio_input import encode
from benchmarks import corpus

_AV_RATE = 48_000


def _without_lengths(written: bytes) -> Callable[[FloatArray], bytes]:
    """WAV whose two lengths are these bytes."""

    def encode(waveform: FloatArray) -> bytes:
        data = bytearray(corpus.encode(waveform, "wav"))
        at = data.index(b"data") + 4
        data[4:8] = data[at : at + 4] = written
        return bytes(data)

    return encode


def _cancelling(waveform: FloatArray) -> bytes:
    """Stereo whose channels are in opposite phase."""
    channels = np.stack([waveform, -waveform], axis=1)
    return encode(channels, corpus.SAMPLE_RATE, format="WAV", subtype="PCM_16")


def _tracks(container: str, *codecs: str, layout: str = "mono") -> Callable[[FloatArray], bytes]:
    """A file that PyAV writes, with a track for each codec."""

    def encode(waveform: FloatArray) -> bytes:
        file, samples = io.BytesIO(), np.repeat(waveform, av.AudioLayout(layout).nb_channels)[None]
        with av.open(file, "w", format=container) as output:
            streams: list[Any] = [output.add_stream(codec, rate=_AV_RATE, layout=layout) for codec in codecs]
            for stream in streams:
                frame = av.AudioFrame.from_ndarray(samples, "flt", layout)
                frame.sample_rate, frame.time_base, frame.pts = _AV_RATE, Fraction(1, _AV_RATE), 0
                for packet in (*stream.encode(frame), *stream.encode(None)):
                    output.mux(packet)
        return file.getvalue()

    return encode


def _joined(first: str, second: str) -> Callable[[FloatArray], bytes]:
    """Two recordings in one file, each with half of the sound."""

    def join(waveform: FloatArray) -> bytes:
        middle = len(waveform) // 2
        return corpus.encode(waveform[:middle], first) + corpus.encode(waveform[middle:], second)

    return join


ENCODERS: dict[str, Callable[[FloatArray], bytes]] = {
    "m4a": _tracks("mp4", "aac"),
    "aac": _tracks("adts", "aac"),
    "webm": _tracks("webm", "libopus"),
    "m4a-7.1": _tracks("mp4", "aac", layout="7.1"),
    "webm-7.1": _tracks("webm", "libopus", layout="7.1"),
    "unwritten": _without_lengths(bytes(4)),  # of a recorder that was killed
    "endless": _without_lengths(b"\xff" * 4),  # as `ffmpeg` writes it to a pipe
    "cancelling": _cancelling,
    "tracks": _tracks("matroska", "ac3", "aac"),  # AC-3 is not read
    "oggs": _joined("ogg", "opus"),
    "flacs": _joined("flac", "flac"),
    "mixed": _joined("mp3", "wav"),
}

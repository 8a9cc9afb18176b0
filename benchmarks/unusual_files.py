"""Whole files that are unusual: no length in the header, opposite channels, several tracks or recordings."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np
import soundfile

from audiocnn.arrays import FloatArray
from benchmarks import corpus

_AV_RATE = 48_000


def _unwritten(waveform: FloatArray) -> bytes:
    """WAV of a recorder that was killed: both lengths are 0."""
    data = bytearray(corpus.encode(waveform, "wav"))
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = bytes(4)
    return bytes(data)


def _endless(waveform: FloatArray) -> bytes:
    """WAV as `ffmpeg` writes it to a pipe: both lengths are the largest number."""
    data = bytearray(corpus.encode(waveform, "wav"))
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = b"\xff" * 4
    return bytes(data)


def _cancelling(waveform: FloatArray) -> bytes:
    """Stereo whose channels are in opposite phase."""
    file = io.BytesIO()
    channels = np.stack([waveform, -waveform], axis=1)
    soundfile.write(file, channels, corpus.SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _tracks(waveform: FloatArray) -> bytes:
    """Matroska with two audio tracks; the codec of the first, AC-3, is not read."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        streams: list[Any] = [
            output.add_stream(codec, rate=_AV_RATE, layout="mono") for codec in ("ac3", "aac")
        ]
        for stream in streams:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform[None]), "fltp", "mono")
            frame.sample_rate, frame.time_base, frame.pts = _AV_RATE, Fraction(1, _AV_RATE), 0
            for packet in (*stream.encode(frame), *stream.encode(None)):
                output.mux(packet)
    return file.getvalue()


def _joined(first: str, second: str) -> Callable[[FloatArray], bytes]:
    """Two recordings in one file, each with half of the sound."""

    def join(waveform: FloatArray) -> bytes:
        middle = len(waveform) // 2
        return corpus.encode(waveform[:middle], first) + corpus.encode(waveform[middle:], second)

    return join


ENCODERS: dict[str, Callable[[FloatArray], bytes]] = {
    "unwritten": _unwritten,
    "endless": _endless,
    "cancelling": _cancelling,
    "tracks": _tracks,
    "oggs": _joined("ogg", "opus"),
    "flacs": _joined("flac", "flac"),
    "mixed": _joined("mp3", "wav"),
}

"""What may be given as audio: a path, bytes, a file object, or a waveform with its sample rate."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from audiocnn.arrays import FloatArray

AudioInput = str | Path | bytes | BinaryIO | tuple[FloatArray, int]


def to_bytes(audio: AudioInput) -> bytes:
    """The bytes of a sound file; a waveform becomes a WAV file of float32."""
    if isinstance(audio, bytes | bytearray | memoryview):
        return bytes(audio)
    if isinstance(audio, str | Path):
        return Path(audio).read_bytes()
    if isinstance(audio, tuple):
        waveform, sample_rate = audio
        return encode(np.asarray(waveform, np.float32), sample_rate, format="WAV", subtype="FLOAT")
    return audio.read()


def encode(waveform: FloatArray, sample_rate: int, *, format: str, subtype: str, **options: Any) -> bytes:
    """The bytes of a sound file; integer formats clip at full scale. Arguments: see `soundfile.write`."""
    file = io.BytesIO()
    soundfile.write(file, waveform, sample_rate, format=format, subtype=subtype, **options)
    return file.getvalue()


@contextmanager
def opened(audio: AudioInput) -> Iterator[BinaryIO]:
    """A file that can seek: a path is opened, not read; a stream that cannot seek is read.

    Raises `OSError` for a path that is not a regular file; it does not wait for a named pipe.
    """
    if isinstance(audio, str | Path):
        with open(_regular_file(audio), "rb") as file:
            yield file
    elif isinstance(audio, bytes | bytearray | memoryview | tuple) or not audio.seekable():
        yield io.BytesIO(to_bytes(audio))
    else:
        yield audio


def _regular_file(path: str | Path) -> int:
    """A file descriptor, open for reading."""
    try:
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a NUL in the name
        raise OSError(f"There cannot be such a file: {error}") from error
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        raise OSError("It is a folder" if stat.S_ISDIR(mode) else "It is not a regular file")
    return number

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

AudioInput = str | os.PathLike[str] | bytes | BinaryIO | tuple[Any, int]
_EXPECTED = "a path, bytes, a file that is open in binary mode, or a tuple of a waveform and its sample rate"
_MAX_CHANNELS = 1024  # of libsndfile
_PCM = {"uint8": (128, 128.0), "int16": (0, 2.0**15), "int32": (0, 2.0**31)}  # zero, and full scale


def to_bytes(audio: AudioInput) -> bytes:
    """The bytes of a sound file; a waveform becomes a WAV file of float32.

    Raises `OSError` for a file that cannot be read, `TypeError` or `ValueError` for what is no `AudioInput`.
    """
    if isinstance(audio, bytes | bytearray | memoryview):
        return bytes(audio)
    if isinstance(audio, tuple) and len(audio) == 2:
        return encode(_as_float(audio[0]), _as_rate(audio[1]), format="WAV", subtype="FLOAT")
    if isinstance(audio, str | os.PathLike):
        return _read(audio)
    if _can_seek(audio):
        audio.seek(0)
    data = audio.read()
    if not isinstance(data, bytes):
        raise TypeError(f"audio is a file that is open in text mode: give {_EXPECTED}")
    return data


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except ValueError as error:  # a NUL in the name
        raise OSError(f"There cannot be such a file: {error}") from error


def _can_seek(audio: object) -> bool:
    """Whether a file can seek. Raises `TypeError` for an object that is no file."""
    if not hasattr(audio, "read"):
        raise TypeError(f"audio is {type(audio).__name__}: give {_EXPECTED}")
    return bool(getattr(audio, "seekable", bool)())


def _as_float(waveform: Any) -> FloatArray:
    """Float32 in [-1, 1], `(num_samples,)` or `(num_samples, channels)`; integers are PCM."""
    array = np.asarray(waveform)
    if array.ndim not in (1, 2) or (array.ndim == 2 and not 0 < array.shape[1] <= _MAX_CHANNELS):
        raise ValueError(
            f"the waveform has the shape {array.shape}: give (num_samples,) or (num_samples, channels)"
        )
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # infinite, and refused as such
            return array.astype(np.float32)
    if array.dtype.name not in _PCM:
        raise TypeError(f"the waveform has the type {array.dtype}: give floats in [-1, 1], int16 or int32")
    zero, full_scale = _PCM[array.dtype.name]
    return np.asarray((array.astype(np.float64) - zero) / full_scale, np.float32)


def _as_rate(sample_rate: Any) -> int:
    try:
        rate = int(sample_rate)
    except (TypeError, ValueError, OverflowError):
        rate = 0
    if rate != sample_rate or not 0 < rate < 1 << 31:
        raise ValueError(f"the sample rate is {sample_rate!r}: give a whole number of Hz")
    return rate


def encode(waveform: FloatArray, sample_rate: int, *, format: str, subtype: str, **options: Any) -> bytes:
    """The bytes of a sound file; integer formats clip at full scale. Arguments: see `soundfile.write`."""
    file = io.BytesIO()
    soundfile.write(file, waveform, sample_rate, format=format, subtype=subtype, **options)
    return file.getvalue()


@contextmanager
def opened(audio: AudioInput) -> Iterator[BinaryIO]:
    """A file that can seek: a path is opened, not read; a stream that cannot seek is read.

    Raises `OSError` for a path that is not a regular file; it does not wait for a named pipe. Else raises
    what `to_bytes` raises.
    """
    if isinstance(audio, str | os.PathLike):
        with open(_regular_file(audio), "rb") as file:
            yield file
    elif isinstance(audio, bytes | bytearray | memoryview | tuple | io.TextIOBase) or not _can_seek(audio):
        yield io.BytesIO(to_bytes(audio))
    else:
        yield audio


def _regular_file(path: str | os.PathLike[str]) -> int:
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

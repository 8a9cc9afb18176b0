"""Decoding in a process of its own, for files whose headers alone can take minutes or gigabytes.

An index of Matroska is sorted in quadratic time, 600 bytes of M4A announce 85 million packets, and 5 kB of
Vorbis 256 codebooks of 33 MB: all of it within one call of C, which no deadline interrupts. Here such a call
ends with its process, and so does a crash.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from audiocnn.errors import AudioError, UndecodableAudio

FloatArray = npt.NDArray[np.float32]
Blocks = Callable[[list[str]], Iterator[FloatArray]]  # a list for warnings in, blocks of the waveform out

_MEMORY_BYTES = 1 << 28  # that a decoder may take beyond what the process has: it holds a block at a time
_WAIT_SECONDS = 0.05
_BLOCK, _WARNINGS, _ERROR = b"b", b"w", b"e"


def isolated(blocks: Blocks, warnings: list[str], seconds: float) -> Iterator[FloatArray]:
    """What `blocks(warnings)` yields or raises, computed in a process of its own; an empty block where
    nothing came for a moment.

    Raises `UndecodableAudio` if it takes more than `seconds` of waiting, too much memory, or crashes.
    """
    ours, theirs = Pipe(duplex=False)
    child = os.fork()
    if not child:
        ours.close()
        _decode(blocks, theirs, seconds)
    theirs.close()
    try:
        yield from _received(ours, warnings, seconds)
    finally:
        ours.close()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _received(pipe: Connection, warnings: list[str], seconds: float) -> Iterator[FloatArray]:
    left = seconds
    while True:
        began = time.monotonic()
        has_come = pipe.poll(_WAIT_SECONDS)
        left -= time.monotonic() - began
        if not has_come:
            if left < 0:
                raise UndecodableAudio("Decoding took too long. Send the clip as WAV or FLAC.")
            yield np.zeros(0, np.float32)
            continue
        try:
            message = pipe.recv_bytes()
        except EOFError:
            raise UndecodableAudio(
                "Decoding took too much time or memory, or the file is damaged. Send the clip as WAV or FLAC."
            ) from None
        if message[:1] == _WARNINGS:
            warnings += json.loads(message[1:])
            return
        if message[:1] == _ERROR:
            raise _error(*json.loads(message[1:]))
        yield np.frombuffer(message, np.float32, offset=4)


def _decode(blocks: Blocks, pipe: Connection, seconds: float) -> NoReturn:
    """The child: nothing of the parent's is cleaned up, or printed again."""
    try:
        _limit(seconds)
        warnings: list[str] = []
        for block in blocks(warnings):
            pipe.send_bytes(_BLOCK.ljust(4) + block.tobytes())
        pipe.send_bytes(_WARNINGS + json.dumps(warnings).encode())
    except AudioError as error:
        pipe.send_bytes(_ERROR + json.dumps([error.code, str(error)]).encode())
    finally:
        os._exit(0)


def _limit(seconds: float) -> None:
    """Bounds that the kernel keeps, also when the parent is gone."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(OSError, ValueError):  # not where the system has none
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + _MEMORY_BYTES)
    with contextlib.suppress(OSError, ValueError):
        _lower(resource.RLIMIT_CPU, math.ceil(seconds) + 1)
    with contextlib.suppress(OSError, ValueError):
        _lower(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(OSError):  # if memory ends, rather this process than its parent
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _lower(limit: int, value: int) -> None:
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def _error(code: str, message: str) -> AudioError:
    kinds = {kind.code: kind for kind in AudioError.__subclasses__()}
    return kinds.get(code, UndecodableAudio)(message)

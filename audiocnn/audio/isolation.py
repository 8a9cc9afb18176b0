"""Decoding in processes of their own, for files whose headers alone can take minutes or gigabytes.

An index of Matroska is sorted in quadratic time, 600 bytes of M4A announce 85 million packets, and 5 kB of
Vorbis 256 codebooks of 33 MB: all of it within one call of C, which no deadline interrupts. Here such a call
ends with its process, and so does a crash. A process that did its work is used again: a fork for every file
would quadruple the time of an ordinary Ogg.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import resource
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import NoReturn

import numpy as np

from audiocnn.arrays import FloatArray
from audiocnn.audio import decoder
from audiocnn.config import AudioLimits
from audiocnn.errors import AudioError, BudgetExceededError, UndecodableAudioError, error_class

_MEMORY_BYTES = 3 << 27  # beyond what the process has when it starts: the file, and a block at a time
_WAIT_SECONDS = 0.05
_MAX_FILES = 500  # then a new process, whose memory is not in pieces
_BLOCK, _WARNINGS, _ERROR = b"b", b"w", b"e"
_NO_BLOCK = np.zeros(0, np.float32)

_idle: list[DecoderProcess] = []


def isolated(data: bytes, sample_rate: int, limits: AudioLimits, warnings: list[str]) -> Iterator[FloatArray]:
    """What `decoder.stream` yields or raises, computed in a process of its own; an empty block where nothing
    came for a moment.

    Raises `UndecodableAudioError` also if that takes too much memory, or crashes.
    """
    try:
        process = _idle_or_new()
    except OSError:  # no process can be made now
        raise BudgetExceededError from None
    try:
        yield from process.decode(data, sample_rate, limits, warnings)
    finally:
        if process.is_reusable:
            _idle.append(process)
        else:
            process.kill()


def _idle_or_new() -> DecoderProcess:
    with contextlib.suppress(IndexError):  # another thread may have taken the last one
        return _idle.pop()
    return DecoderProcess()


def end_idle_processes() -> None:
    """Kill the processes that wait for another file."""
    while _idle:
        _idle.pop().kill()


class DecoderProcess:
    """A child that decodes one file after another, until it is killed or this process ends."""

    def __init__(self) -> None:
        self._files = 0
        self._is_busy = False
        self._pipe, theirs = Pipe()
        self._pid = os.fork()
        if not self._pid:
            _serve(theirs)
        theirs.close()

    @property
    def is_reusable(self) -> bool:
        """Whether it is done with its last file, and may have another."""
        return not self._is_busy and self._files < _MAX_FILES

    def kill(self) -> None:
        """End it, whatever it is doing."""
        self._pipe.close()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def decode(
        self, data: bytes, sample_rate: int, limits: AudioLimits, warnings: list[str]
    ) -> Iterator[FloatArray]:
        """See `isolated`."""
        self._files += 1
        self._is_busy = True
        try:
            self._pipe.send_bytes(json.dumps({"sample_rate": sample_rate, "limits": asdict(limits)}).encode())
            self._pipe.send_bytes(data)
            yield from self._blocks(limits.decode_seconds, warnings)
        except (EOFError, OSError):
            raise UndecodableAudioError(
                "Decoding took too much time or memory, or the file is damaged. Send the clip as WAV or FLAC."
            ) from None

    def _blocks(self, seconds_left: float, warnings: list[str]) -> Iterator[FloatArray]:
        while True:
            began = time.monotonic()
            has_come = self._pipe.poll(_WAIT_SECONDS)
            seconds_left -= time.monotonic() - began
            if not has_come:
                if seconds_left < 0:
                    raise UndecodableAudioError("Decoding took too long. Send the clip as WAV or FLAC.")
                yield _NO_BLOCK
                continue
            message = self._pipe.recv_bytes()
            if message[:1] == _BLOCK:
                yield np.frombuffer(message, np.float32, offset=4)
                continue
            self._is_busy = False
            content = json.loads(message[1:])
            if message[:1] == _ERROR:
                raise error_class(content[0])(content[1])
            warnings += content
            return


def _serve(pipe: Connection) -> NoReturn:
    """The child. Nothing of the parent's is cleaned up, printed again or kept open."""
    try:
        os.closerange(3, pipe.fileno())
        os.closerange(pipe.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        _limit_memory()
        while True:
            request = json.loads(pipe.recv_bytes())
            _decode(pipe, pipe.recv_bytes(), request["sample_rate"], AudioLimits(**request["limits"]))
    finally:
        os._exit(0)


def _decode(pipe: Connection, data: bytes, sample_rate: int, limits: AudioLimits) -> None:
    _limit_time(limits.decode_seconds)
    warnings: list[str] = []
    try:
        for block in decoder.stream(
            io.BytesIO(data), sample_rate=sample_rate, limits=limits, warnings=warnings
        ):
            pipe.send_bytes(_BLOCK.ljust(4) + block.tobytes())
    except AudioError as error:
        pipe.send_bytes(_ERROR + json.dumps([error.code, str(error)]).encode())
    else:
        pipe.send_bytes(_WARNINGS + json.dumps(warnings).encode())


def _limit_memory() -> None:
    """Bounds that the kernel keeps."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(OSError, ValueError):  # not where the system has none
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + _MEMORY_BYTES)
    with contextlib.suppress(OSError, ValueError):
        _lower(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(OSError):  # if memory ends, rather this process than its parent
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _limit_time(seconds: float) -> None:
    """CPU seconds for this file: the kernel ends the process, also when its parent is gone."""
    if math.isfinite(seconds):
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + seconds) + 1, hard))


def _lower(limit: int, value: int) -> None:
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))

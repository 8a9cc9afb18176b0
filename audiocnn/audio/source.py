"""Files as decoders read them: a whole one, pieces of one, or one recording of several in it."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

Shortfall = Literal["cut", "damage", "unknown"]
Piece = bytes | tuple[int, int]  # bytes, or where they start and end in the file
_FIRST_CHUNK_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 20
_MANY_CANDIDATES = 1_000


class Source(Protocol):
    """A file that is open for reading; see `audiocnn.audio.decoder`."""

    size: int  # in bytes

    def read(self, size: int = ..., /) -> bytes:
        """At most `size` bytes."""
        ...

    def seek(self, offset: int, whence: int = ..., /) -> int:
        """The new position; -1 where there is none."""
        ...

    def tell(self) -> int:
        """The position."""
        ...

    def between(self, start: int, end: int) -> bytes:
        """The bytes there, or as many as there are; the next `read` starts wherever."""
        ...

    def check(self) -> None:
        """Raises why the file ended early, if it did."""
        ...


class View:
    """Pieces of a file, one behind another, as a file.

    >>> View(source, [b"RF64", (4, source.size)])  # a BW64 under its older name
    """

    def __init__(self, source: Source, pieces: Sequence[Piece]) -> None:
        self._source = source
        self._pieces = pieces
        self._starts = [0]
        for piece in pieces:
            self._starts.append(self._starts[-1] + _length(piece))
        self.size = self._starts[-1]
        self._position = self._number = 0

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, all that are left if it is negative."""
        wanted = self.size - self._position if size < 0 else size
        parts: list[bytes] = []
        while wanted > 0 and self._position < self.size:
            part = self._read_piece(wanted)
            if not part:
                break
            parts.append(part)
            self._position += len(part)
            wanted -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_piece(self, wanted: int) -> bytes:
        while self._position >= self._starts[self._number + 1]:
            self._number += 1
        piece, skip = self._pieces[self._number], self._position - self._starts[self._number]
        if isinstance(piece, bytes):
            return piece[skip : skip + wanted]
        start = piece[0] + skip
        return self._source.between(start, min(start + wanted, piece[1]))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `Source`."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}.get(whence)
        if base is None or base + offset < 0:
            return -1
        self._position = base + offset
        self._number = min(bisect_right(self._starts, self._position), len(self._pieces)) - 1
        return self._position

    def tell(self) -> int:
        """See `Source`."""
        return self._position

    def between(self, start: int, end: int) -> bytes:
        """See `Source`."""
        self.seek(max(0, start))
        return self.read(max(0, end - max(0, start)))

    def check(self) -> None:
        """See `Source`."""
        self._source.check()


def _length(piece: Piece) -> int:
    return len(piece) if isinstance(piece, bytes) else piece[1] - piece[0]


def find(
    source: Source, needles: bytes | tuple[bytes, ...], start: int, end: int | None = None
) -> int | None:
    """Where one of the needles next is, from `start` on; None if none is before `end`.

    Chunks grow: what is near costs little, however often it is looked for.
    """
    wanted = (needles,) if isinstance(needles, bytes) else needles
    longest = max(map(len, wanted))
    end, size = source.size if end is None else min(end, source.size), _FIRST_CHUNK_BYTES
    while start < end:
        chunk = source.between(start, min(start + size, end))
        if places := _first_places(chunk, wanted):
            return start + min(places)
        if len(chunk) < longest:
            return None
        start += len(chunk) - longest + 1
        size = min(2 * size, _CHUNK_BYTES)
    return None


def _first_places(chunk: bytes, needles: tuple[bytes, ...]) -> list[int]:
    """Where each needle, of 3 bytes or more, is first, if it is there.

    Pairs of bytes are compared as numbers, many at a time: on sound this is five times as fast as `find`.
    """
    places = []
    pairs = [
        np.frombuffer(chunk, "<u2", (len(chunk) - skip) // 2, skip) for skip in (0, 1) if len(chunk) > skip
    ]
    for needle in needles:
        key = int.from_bytes(needle[1:3], "little")
        found = [2 * np.flatnonzero(row == key) + skip - 1 for skip, row in enumerate(pairs)]
        candidates = np.concatenate(found) if found else np.zeros(0, int)
        if len(candidates) > _MANY_CANDIDATES:
            here = [chunk.find(needle)]
        else:
            here = [int(place) for place in candidates if place >= 0 and chunk.startswith(needle, place)]
        places += [place for place in here if place >= 0]
    return places


@dataclass
class Part:
    """One recording in a file."""

    start: int  # byte in the file
    end: int  # the byte behind it
    pieces: Sequence[Piece]  # what its decoder reads
    demuxer: str | None = None  # FFmpeg's name, for PyAV; None: libsndfile reads it
    is_risky: bool = False  # whether it is decoded in a process of its own where that is wanted
    if_short: Shortfall = "unknown"  # what it means that its header promises more than can be decoded
    is_cut: bool = False  # the file ends before the recording does
    samples: int = 0  # of one channel, if they were counted
    least_seconds: float = 0.0  # surely in it
    info_frame: bytes = (
        b""  # to be put in front where libsndfile guesses too few samples, and would stop there
    )
    damaged_bytes: int = 0  # that the pieces leave out
    lost_seconds: float = 0.0  # about, of damaged spots that the pieces leave out
    unread_codec: str | None = None  # its name, if neither decoder reads it
    warnings: Sequence[str] = ()

    def view(self, source: Source) -> Source:
        """What its decoder reads, as a file."""
        if list(self.pieces) != [(0, source.size)]:
            return View(source, self.pieces)
        source.seek(0)
        return source

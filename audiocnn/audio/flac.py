"""Frames of FLAC: where decoding can go on behind a damaged spot."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from audiocnn.audio.source import Part, Source

_CHUNK_BYTES = 1 << 20
_HEADER_BYTES = 16
_MOST_CANDIDATES = 10_000  # and one for so many bytes: a frame is larger
_BYTES_A_CANDIDATE = 256
_STREAMINFO = 42  # bytes from the magic to the end of the first block
_CANDIDATE = re.compile(rb"\xff[\xf8\xf9][^\x00-\x0f][\x00-\xaf]", re.DOTALL)


def _crc8_table() -> bytes:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte << 1) ^ (0x107 if byte & 0x80 else 0)
        table.append(byte)
    return bytes(table)


_CRC8 = _crc8_table()


def pieces_behind(source: Source, part: Part, position: int) -> tuple[Part, int] | None:
    """The part from the first frame on that begins behind sample `position`, and the sample it begins with.

    None if the part is no FLAC, or has no such frame.
    """
    head = part.view(source).between(0, _STREAMINFO)
    if head[:4] != b"fLaC" or len(head) < _STREAMINFO:
        return None
    largest = int.from_bytes(head[10:12], "big")
    total = int.from_bytes(head[21:26], "big") & ((1 << 36) - 1)
    for place, sample in _frames(source, _first_byte(part), part.end, largest):
        if sample > position and (not total or sample < total):
            # Without a length: libsndfile would stop at it, and count from 0.
            info = b"fLaC\x80" + head[5:21] + bytes([head[21] & 0xF0]) + bytes(20)
            return replace(part, pieces=[info, (place, part.end)]), sample
    return None


def _first_byte(part: Part) -> int:
    """Where the file's own bytes begin in the part: what is before has been read."""
    return next(piece[0] for piece in part.pieces if not isinstance(piece, bytes))


def _frames(source: Source, start: int, end: int, largest: int) -> Iterator[tuple[int, int]]:
    """The byte and the first sample of what is a frame by its header and the checksum of that."""
    candidates = _MOST_CANDIDATES + (end - start) // _BYTES_A_CANDIDATE
    while start < end and candidates > 0:
        chunk = source.between(start, min(start + _CHUNK_BYTES + _HEADER_BYTES, end))
        for match in _CANDIDATE.finditer(chunk, 0, min(_CHUNK_BYTES, len(chunk))):
            candidates -= 1
            sample = _first_sample(chunk[match.start() : match.start() + _HEADER_BYTES], largest)
            if sample is not None:
                yield start + match.start(), sample
        start += _CHUNK_BYTES


def _first_sample(head: bytes, largest: int) -> int | None:
    """The first sample of the frame with this header, `largest` being the largest block; None if the
    checksum does not fit."""
    first = head[4] if len(head) > 4 else 0
    length = 1 if first < 0x80 else 8 - (first ^ 0xFF).bit_length()  # as in UTF-8, with up to 7 bytes
    size_code, rate_code = head[2] >> 4, head[2] & 15
    end = 4 + length + {6: 1, 7: 2}.get(size_code, 0) + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if len(head) <= end or _crc8(head[:end]) != head[end]:
        return None
    number = first if length == 1 else first & (0x7F >> length)
    for byte in head[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    return number if head[1] & 1 else number * largest  # the last block may be smaller; all others are alike


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value = _CRC8[value ^ byte]
    return value

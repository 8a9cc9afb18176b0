"""Damage to sound files.

Some is blind (flips, cuts, splices), some knows the format: fields of WAV, FLAC, AIFF, MP4 and ID3 headers,
and Ogg pages with a valid checksum, so that a decoder reads the damage instead of refusing it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from typing import Literal, TypeVar

import numpy as np

from audiocnn.arrays import FloatArray
from benchmarks import corpus, unusual_files

SECONDS = (0.2, 0.5, 1.0, 1.5)
_WAVEFORMS = 24
KINDS = (*corpus.FORMATS, *unusual_files.ENCODERS)
_HEADER_BYTES = 96
_NUMBERS = [0, 1, 2, 3, 4, 8, 16, 24, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0xFFFFFF, 0x7FFFFFFF, 0x80000000]
_NUMBERS += [0xFFFFFFF0, 0xFFFFFFFF]
_CHUNKS = [b"LIST", b"fact", b"cue ", b"bext", b"JUNK", b"PEAK", b"fmt ", b"data", b"smpl", b"id3 ", b"COMM"]
Rng = np.random.Generator
Mutation = Callable[[bytes, Rng], bytes]
T = TypeVar("T")


def choice(values: Sequence[T], rng: Rng) -> T:
    """One of the values."""
    return values[int(rng.integers(len(values)))]


@cache
def _waveforms() -> list[FloatArray]:
    return corpus.recordings(_WAVEFORMS)[0]


@lru_cache(maxsize=512)
def intact_file(kind: str, sound: int, seconds: float) -> bytes:
    """An undamaged file of one of `KINDS`."""
    waveform = np.resize(_waveforms()[sound % len(_waveforms())], round(seconds * corpus.SAMPLE_RATE))
    if kind in unusual_files.ENCODERS:
        return unusual_files.ENCODERS[kind](waveform)
    return corpus.encode(waveform, kind)


def any_file(rng: Rng) -> tuple[str, bytes]:
    """An undamaged file and its key `KIND SOUND LENGTH`."""
    kind = choice(KINDS, rng)
    sound, length = int(rng.integers(_WAVEFORMS)), int(rng.integers(len(SECONDS)))
    return f"{kind} {sound} {length}", intact_file(kind, sound, SECONDS[length])


def mutate(data: bytes, rng: Rng) -> tuple[bytes, list[str]]:
    """One to three mutations; the damaged file and their names."""
    names = []
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        name, mutation = choice(_MUTATIONS, rng)
        data = mutation(data, rng)
        names.append(name)
    return data, names


def _offset(data: bytes, rng: Rng, *, header: bool = False) -> int:
    return int(rng.integers(max(1, min(len(data), _HEADER_BYTES if header else len(data)))))


def _flip(data: bytes, rng: Rng, *, header: bool = False) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 2, 4, 16, 64])) if changed else 0):
        changed[_offset(data, rng, header=header)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _cut(data: bytes, rng: Rng) -> bytes:
    return data[: _offset(data, rng)]


def _insert(data: bytes, rng: Rng) -> bytes:
    at = _offset(data, rng, header=bool(rng.random() < 0.3))
    return data[:at] + rng.bytes(int(rng.choice([1, 2, 3, 7, 64, 4096]))) + data[at:]


def _remove(data: bytes, rng: Rng) -> bytes:
    at = _offset(data, rng)
    return data[:at] + data[at + int(rng.choice([1, 2, 3, 16, 512])) :]


def _repeat(data: bytes, rng: Rng) -> bytes:
    at, size = _offset(data, rng), int(rng.choice([4, 64, 1024, 8192]))
    return data[:at] + data[at : at + size] * int(rng.choice([2, 3, 9])) + data[at + size :]


def _fill(data: bytes, rng: Rng) -> bytes:
    at, size = _offset(data, rng), int(rng.choice([4, 64, 1024, 8192]))
    filling = bytes([int(rng.choice([0, 255, 0x80]))]) * min(size, len(data) - at)
    return data[:at] + filling + data[at + size :]


def _splice(data: bytes, rng: Rng) -> bytes:
    _, other = any_file(rng)
    return data[: _offset(data, rng)] + other[_offset(other, rng) :]


def _odd_number(size: int, order: Literal["little", "big"], rng: Rng) -> bytes:
    return (choice(_NUMBERS, rng) % (1 << 8 * size)).to_bytes(size, order)


def _number(data: bytes, rng: Rng) -> bytes:
    """An odd number somewhere in the header."""
    size, order = choice((1, 2, 4), rng), choice(_ORDERS, rng)
    number = _odd_number(size, order, rng)
    at = _offset(data, rng, header=True) // 2 * 2
    return data[:at] + number + data[at + size :]


_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")
_RIFF = [(4, 4), (16, 4), (20, 2), (22, 2), (24, 4), (28, 4), (32, 2), (34, 2), (36, 4), (40, 4)]
_AIFF = [(4, 4), (16, 4), (20, 2), (22, 4), (26, 2), (28, 2), (30, 4), (42, 4)]
_FLAC = [(4, 4), (8, 2), (10, 2), (12, 2), (18, 4), (20, 2), (22, 4), (42, 4)]
_ID3 = [(5, 1), (6, 4), (14, 4)]
_OTHER = [(4, 4), (8, 4)]
_WAV_TAGS = [b"\x45\0", b"\x64\0", b"\x42\0", b"\x00\x20", b"\xff\0", b"\x34\x12"]
_CODEC_NAMES = {b"\x01vorbis": [b"\x80theora", b"\x01video\0"], b"OpusHead": [b"CELT    "]}
_CODEC_NAMES |= {b"A_AAC": [b"A_DTS"], b"A_OPUS": [b"A_WMAV"], b"mp4a": [b"ac-3", b"samr"]}
_MP4_BOXES = (b"stts", b"stsc", b"stsz", b"stco", b"mdhd", b"esds")


def _fields(data: bytes) -> tuple[Literal["little", "big"], list[tuple[int, int]]]:
    """Byte order, and offset and size of known header fields."""
    if data[4:8] == b"ftyp":
        boxes = [at for at in map(data.find, _MP4_BOXES) if at > 0]
        return "big", [(at + shift, 4) for at in boxes for shift in (-4, 8, 12, 16)] or _OTHER
    for start, order, fields in ((b"RIFF", "little", _RIFF), (b"FORM", "big", _AIFF)):
        if data.startswith(start):
            return order, fields  # type: ignore[return-value]
    if data.startswith((b"fLaC", b"ID3")):
        return "big", _FLAC if data.startswith(b"fLaC") else _ID3
    return "little", _OTHER


def _field(data: bytes, rng: Rng) -> bytes:
    """An odd number in a known field."""
    order, fields = _fields(data)
    at, size = choice(fields, rng)
    return data[:at] + _odd_number(size, order, rng) + data[at + size :]


def _chunk(data: bytes, rng: Rng) -> bytes:
    """One more RIFF or AIFF chunk, whose length may be wrong."""
    name, content = choice(_CHUNKS, rng), rng.bytes(int(rng.choice([0, 1, 4, 26, 700])))
    order: Literal["little", "big"] = "big" if data[:4] == b"FORM" else "little"
    size = len(content).to_bytes(4, order) if rng.random() < 0.5 else _odd_number(4, order, rng)
    at = int(rng.choice([12, 36, len(data)]))
    return data[:at] + name + size + content + data[at:]


def _length(data: bytes, rng: Rng) -> bytes:
    """A length of WAV or AIFF samples that was never written, or is the largest number."""
    changed = bytearray(data)
    for name in (b"data", b"SSND"):
        at = changed.find(name) + 4
        if 4 <= at - 4 < len(changed) - 8:
            changed[at : at + 4] = choice((bytes(4), b"\xff" * 4), rng)
    return bytes(changed)


def _codec(data: bytes, rng: Rng) -> bytes:
    """A codec that is not read: a tag of WAV, else an identifier of Ogg or Matroska."""
    if data.startswith(b"RIFF"):
        return data[:20] + choice(_WAV_TAGS, rng) + data[22:]
    for name, others in _CODEC_NAMES.items():
        data = data.replace(name, choice(others, rng), 1)
    return data


def _page(data: bytes, rng: Rng) -> bytes:
    """Damage to an Ogg page with a valid checksum; flips in other files."""
    starts = [at for at in range(len(data)) if data.startswith(b"OggS", at)] if data[:4] == b"OggS" else []
    if not starts:
        return _flip(data, rng)
    start = choice(starts, rng)
    end = next((at for at in starts if at > start), len(data))
    page = bytearray(data[start:end])
    if len(page) < 28:
        return data
    at = int(rng.choice([4, 5, 6, 14, 18, 26, 27, int(rng.integers(27, len(page)))]))
    page[at] = int(rng.choice([0, 1, 2, 4, 127, 255, int(rng.integers(256))]))
    return data[:start] + with_ogg_checksum(bytes(page)) + data[end:]


_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def with_ogg_checksum(page: bytes) -> bytes:
    """An Ogg page with its CRC-32 in bytes 22 to 25: zlib's with all bits reversed, and no inversion."""
    page = page[:22] + bytes(4) + page[26:]
    value = ~zlib.crc32(page.translate(_REVERSED_BITS), 0xFFFFFFFF) & 0xFFFFFFFF
    return page[:22] + int(f"{value:032b}"[::-1], 2).to_bytes(4, "little") + page[26:]


_MUTATIONS: tuple[tuple[str, Mutation], ...] = (
    *(("flips", _flip), ("flips", _flip), ("header flips", partial(_flip, header=True)), ("cut", _cut)),
    *(("insert", _insert), ("remove", _remove), ("repeat", _repeat), ("fill", _fill), ("splice", _splice)),
    *(("number", _number), ("field", _field), ("field", _field), ("chunk", _chunk), ("Ogg page", _page)),
    *(("length", _length), ("codec", _codec)),
)

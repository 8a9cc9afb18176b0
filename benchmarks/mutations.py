"""Damaged sound files and odd requests without end, each of them the same every time: `mutant(seed, number)`.

Some damage is blind (flips, cuts, splices), some knows the format: fields of WAV, FLAC, AIFF and ID3
headers, and Ogg pages whose checksum is made right again, so that the damage is read and not refused.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Self

import av
import numpy as np

from audiocnn.arrays import FloatArray
from audiocnn.options import OPTION_NAMES
from benchmarks import sounds

INTACT_EVERY = 50
SECONDS = (0.2, 0.5, 1.0, 1.5)
_WAVEFORMS = 24
_AV_KINDS = {"m4a": ("mp4", "aac"), "aac": ("adts", "aac"), "webm": ("webm", "libopus")}
KINDS = (*sounds.FORMATS, *_AV_KINDS)
_NUMBERS: tuple[int, ...] = (
    0,
    1,
    2,
    3,
    4,
    8,
    16,
    24,
    255,
    256,
    0x7FFF,
    0x8000,
    0xFFFF,
    0xFFFFFF,
    0x7FFFFFFF,
    0x80000000,
)
_NUMBERS += (0xFFFFFFF0, 0xFFFFFFFF)
Rng = np.random.Generator


@dataclass(frozen=True)
class Mutant:
    """One input: bytes, options as they would come in headers or fields, and what was done to it."""

    number: int
    body: bytes
    options: dict[str, Any]
    how: str
    intact: str = ""  # the key of the clip, if nothing was done to it

    def to_json(self) -> dict[str, Any]:
        """For a file. Options that JSON has no word for are written as text."""
        return vars(self) | {
            "body": base64.b64encode(self.body).decode(),
            "options": json.loads(json.dumps(self.options, default=repr)),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """From a file; what else is in it is ignored."""
        names = ("number", "options", "how", "intact")
        return cls(**{name: content[name] for name in names}, body=base64.b64decode(content["body"]))


@cache
def _waveforms() -> list[FloatArray]:
    return sounds.recordings(_WAVEFORMS)[0]


@lru_cache(maxsize=512)
def intact(kind: str, sound: int, length: int) -> bytes:
    """An undamaged file of one of `KINDS`."""
    waveform = _waveforms()[sound % len(_waveforms())]
    part = np.resize(waveform, round(SECONDS[length] * sounds.RATE))
    return _encode_av(part, *_AV_KINDS[kind]) if kind in _AV_KINDS else sounds.encode(part, kind)


def _encode_av(waveform: FloatArray, container: str, codec: str) -> bytes:
    file, rate = io.BytesIO(), 48_000
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=rate, layout="mono")
        planar = "fltp" if codec == "aac" else "flt"
        samples = waveform[None] if planar == "fltp" else np.ascontiguousarray(waveform[None])
        frame = av.AudioFrame.from_ndarray(samples, format=planar, layout="mono")
        frame.sample_rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            output.mux(packet)
    return file.getvalue()


def mutant(seed: int, number: int) -> Mutant:
    """The input of this number."""
    rng = np.random.default_rng([seed, number])
    kind = KINDS[int(rng.integers(len(KINDS)))]
    sound, length = int(rng.integers(_WAVEFORMS)), int(rng.integers(len(SECONDS)))
    body = intact(kind, sound, length)
    if number % INTACT_EVERY == 0:
        return Mutant(number, body, {}, f"{kind}, intact", intact=f"{kind} {sound} {length}")
    names = []
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        name, change = _CHANGES[int(rng.integers(len(_CHANGES)))]
        body = change(body, rng)
        names.append(name)
    options = odd_options(rng) if rng.random() < 0.25 else {}
    return Mutant(number, body, options, f"{kind}: {', '.join(names)}")


def _place(data: bytes, rng: Rng, *, header: bool = False) -> int:
    return int(rng.integers(max(1, min(len(data), 96 if header else len(data)))))


def _flip(data: bytes, rng: Rng, *, header: bool) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 2, 4, 16, 64])) if changed else 0):
        changed[_place(data, rng, header=header)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _cut(data: bytes, rng: Rng) -> bytes:
    return data[: _place(data, rng)]


def _insert(data: bytes, rng: Rng) -> bytes:
    at = _place(data, rng, header=bool(rng.random() < 0.3))
    return data[:at] + rng.bytes(int(rng.choice([1, 2, 3, 7, 64, 4096]))) + data[at:]


def _remove(data: bytes, rng: Rng) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + int(rng.choice([1, 2, 3, 16, 512])) :]


def _repeat(data: bytes, rng: Rng) -> bytes:
    at, size = _place(data, rng), int(rng.choice([4, 64, 1024, 8192]))
    return data[:at] + data[at : at + size] * int(rng.choice([2, 3, 9])) + data[at + size :]


def _fill(data: bytes, rng: Rng) -> bytes:
    at, size = _place(data, rng), int(rng.choice([4, 64, 1024, 8192]))
    return (
        data[:at] + bytes([int(rng.choice([0, 255, 0x80]))]) * min(size, len(data) - at) + data[at + size :]
    )


def _splice(data: bytes, rng: Rng) -> bytes:
    kind = KINDS[int(rng.integers(len(KINDS)))]
    other = intact(kind, int(rng.integers(_WAVEFORMS)), int(rng.integers(len(SECONDS))))
    return data[: _place(data, rng)] + other[_place(other, rng) :]


def _number(data: bytes, rng: Rng) -> bytes:
    """An awkward number somewhere in the header."""
    size, order = int(rng.choice([1, 2, 4])), ("little", "big")[int(rng.integers(2))]
    value = _NUMBERS[int(rng.integers(len(_NUMBERS)))] % (1 << 8 * size)
    at = _place(data, rng, header=True) // 2 * 2
    return data[:at] + value.to_bytes(size, order) + data[at + size :]  # type: ignore[arg-type]


def _field(data: bytes, rng: Rng) -> bytes:
    """An awkward number in a field that the container is known to have."""
    little, fields = True, [(4, 4), (8, 4)]
    if data[:4] == b"RIFF":
        fields = [(4, 4), (16, 4), (20, 2), (22, 2), (24, 4), (28, 4), (32, 2), (34, 2), (36, 4), (40, 4)]
    elif data[:4] == b"FORM":
        little, fields = False, [(4, 4), (16, 4), (20, 2), (22, 4), (26, 2), (28, 2), (30, 4), (42, 4)]
    elif data[:4] == b"fLaC":
        little, fields = False, [(4, 4), (8, 2), (10, 2), (12, 2), (18, 4), (20, 2), (22, 4), (42, 4)]
    elif data[:3] == b"ID3":
        little, fields = False, [(5, 1), (6, 4), (14, 4)]
    elif data[4:8] == b"ftyp":
        little, places = False, [data.find(n) for n in (b"stts", b"stsc", b"stsz", b"stco", b"mdhd", b"esds")]
        fields = [(at + shift, 4) for at in places if at > 0 for shift in (-4, 8, 12, 16)] or fields
    at, size = fields[int(rng.integers(len(fields)))]
    value = _NUMBERS[int(rng.integers(len(_NUMBERS)))] % (1 << 8 * size)
    return data[:at] + value.to_bytes(size, "little" if little else "big") + data[at + size :]


def _chunk(data: bytes, rng: Rng) -> bytes:
    """One more chunk in a RIFF or AIFF file, whose length may lie; for others some bytes."""
    names = (
        b"LIST",
        b"fact",
        b"cue ",
        b"bext",
        b"JUNK",
        b"PEAK",
        b"fmt ",
        b"data",
        b"smpl",
        b"id3 ",
        b"COMM",
    )
    name, content = names[int(rng.integers(len(names)))], rng.bytes(int(rng.choice([0, 1, 4, 26, 700])))
    size = len(content) if rng.random() < 0.5 else _NUMBERS[int(rng.integers(len(_NUMBERS)))]
    order = "big" if data[:4] == b"FORM" else "little"
    chunk = name + size.to_bytes(4, order) + content  # type: ignore[arg-type]
    at = int(rng.choice([12, 36, len(data)]))
    return data[:at] + chunk + data[at:]


def _page(data: bytes, rng: Rng) -> bytes:
    """Damage to an Ogg page, its checksum made right again; for others some flips."""
    starts = [at for at in range(len(data)) if data.startswith(b"OggS", at)] if data[:4] == b"OggS" else []
    if not starts:
        return _flip(data, rng, header=False)
    start = starts[int(rng.integers(len(starts)))]
    end = next((at for at in starts if at > start), len(data))
    page = bytearray(data[start:end])
    if len(page) < 28:
        return data
    at = int(rng.choice([4, 5, 6, 14, 18, 26, 27, int(rng.integers(27, len(page)))]))
    page[at] = int(rng.choice([0, 1, 2, 4, 127, 255, int(rng.integers(256))]))
    page[22:26] = bytes(4)
    page[22:26] = _ogg_checksum(bytes(page)).to_bytes(4, "little")
    return data[:start] + bytes(page) + data[end:]


@cache
def _ogg_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


def _ogg_checksum(page: bytes) -> int:
    value, table = 0, _ogg_table()
    for byte in page:
        value = ((value << 8) & 0xFFFFFFFF) ^ table[(value >> 24) ^ byte]
    return value


_CHANGES: tuple[tuple[str, Callable[[bytes, Rng], bytes]], ...] = (
    ("flips", lambda data, rng: _flip(data, rng, header=False)),
    ("flips", lambda data, rng: _flip(data, rng, header=False)),
    ("header flips", lambda data, rng: _flip(data, rng, header=True)),
    ("cut", _cut),
    ("insert", _insert),
    ("remove", _remove),
    ("repeat", _repeat),
    ("fill", _fill),
    ("splice", _splice),
    ("number", _number),
    ("field", _field),
    ("field", _field),
    ("chunk", _chunk),
    ("Ogg page", _page),
)

_ODD_VALUES: tuple[Any, ...] = (
    "",
    " ",
    "0",
    "1",
    "3",
    "-1",
    "1e9",
    "1" * 400,
    "NaN",
    "inf",
    "0.5",
    "true",
    "No",
)
_ODD_VALUES += (
    "none",
    "json",
    "png",
    "dog",
    "dog,cat",
    "dog,,",
    ",",
    "layer1",
    "layer4,conv1",
    "../../etc/passwd",
)
_ODD_VALUES += ("\x00", "\ud800", "é🎵", "٣", "a" * 5000, 0, 1, -1, 2**70, 0.5, float("nan"), True, None, [])
_ODD_VALUES += ([1], ["dog"], ["dog", None], {}, {"a": [1]}, [[[[]]]], b"\xff\xfe", b"5", bytearray(b"true"))


def odd_options(rng: Rng) -> dict[str, Any]:
    """One or two options, with values that may be right, wrong or absurd."""
    names = (*OPTION_NAMES, "top-k", "", "é", "__class__")
    count = int(rng.integers(1, 3))
    return {
        names[int(rng.integers(len(names)))]: _ODD_VALUES[int(rng.integers(len(_ODD_VALUES)))]
        for _ in range(count)
    }

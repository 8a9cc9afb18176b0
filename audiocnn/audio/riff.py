"""WAV in all its containers (RIFF, RIFX, RF64, BW64, W64) and AIFF: where the samples are.

Recorders write sizes last. One that was killed, or that wrote into a pipe, leaves 0 or a very large number:
then the samples go on to the end of the file. libsndfile gets a header with the size that is there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from audiocnn.audio.source import Part, Source, find

NO_LENGTH = (
    "The header gives no length, as if the recorder had been interrupted; the file was read to its end."
)

_UNKNOWN_SIZE = 0x7FFF_F000  # sizes from here on are what encoders write when they cannot know
_UNKNOWN_SIZE_64 = 1 << 62
_MISSING_SECONDS = 0.25  # less is a size that is off by a header
_MAX_CANDIDATES = 20
_MAX_CHUNKS = 10_000
_W64_HEAD = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0"
_W64_TAIL = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
_HEADS = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM", b"fLaC", b"OggS")  # another recording, and no chunk

_SUPPORTED = {1, 2, 3, 6, 7, 0x11, 0x31, 0x38, 0x40, 0x55}
_CODECS = {
    0x10: "OKI ADPCM",
    0x14: "G.723 ADPCM",
    0x22: "TrueSpeech",
    0x42: "G.723.1",
    0x45: "G.726 ADPCM",
    0x50: "MPEG layer II",
    0x64: "G.726 ADPCM",
    0x65: "G.722 ADPCM",
    0x83: "G.729",
    0x92: "AC-3",
    0xFF: "AAC",
    0x160: "WMA 1",
    0x161: "WMA 2",
    0x162: "WMA Pro",
    0x163: "WMA Lossless",
    0x270: "ATRAC3",
    0x674F: "Vorbis",
    0x1610: "HE-AAC",
    0x2000: "AC-3",
    0x2001: "DTS",
    0x704F: "Opus",
    0xA109: "Speex",
    0xF1AC: "FLAC",
}
_AIFF_BITS = {b"ulaw": 8, b"ULAW": 8, b"alaw": 8, b"ALAW": 8, b"fl32": 32, b"FL32": 32, b"fl64": 64}
_AIFF_BITS |= {b"FL64": 64, b"in24": 24, b"in32": 32, b"ni24": 24, b"42ni": 24, b"23ni": 32}
_AIFF_BITS |= {b"NONE": 0, b"twos": 0, b"sowt": 0, b"raw ": 0}  # 0: what the chunk says
_AIFF_OTHERS = {b"ima4", b"GSM ", b"DWVW"}


@dataclass
class _Samples:
    """What headers say of the samples."""

    start: int  # the byte of the first
    claimed: int | None  # bytes; None: the header says that it does not know
    byte_rate: float  # bytes a second; 0: unknown


@dataclass
class _Extent:
    """Where the samples really end."""

    end: int
    was_unwritten: bool = False  # the size is 0
    was_unknown: bool = False
    is_cut: bool = False


def is_riff(head: bytes) -> bool:
    """Whether a file that starts so, 16 bytes at least if it has them, is a WAV of any kind."""
    return (head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] in (b"WAVE", b"")) or (
        head[:16] == _W64_HEAD
    )


def is_aiff(head: bytes) -> bool:
    """Whether a file that starts so is an AIFF."""
    return head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC", b"")


def riff_part(source: Source, start: int) -> Part:
    """The WAV that starts there."""
    head = source.between(start, start + 4)
    if head == b"riff":
        return _w64_part(source, start)
    order: Literal["little", "big"] = "big" if head == b"RIFX" else "little"
    form, size_64 = b"", 0
    for name, position, size in _chunks(source, start + 12, order):
        if name == b"ds64":
            size_64 = int.from_bytes(source.between(position + 8, position + 16), "little")
        elif name == b"fmt ":
            form = source.between(position, position + min(size, 4096))
        elif name == b"data":
            claimed: int | None = size
            if size == 0xFFFF_FFFF and head in (b"RF64", b"BW64"):
                claimed = size_64 if size_64 < _UNKNOWN_SIZE_64 else None
            elif size >= _UNKNOWN_SIZE and position + size > source.size:
                claimed = None
            samples = _Samples(position, claimed, int.from_bytes(form[8:12], order))
            return _wav(source, start, head, form, samples)
    return Part(start, source.size, [(start, source.size)])  # libsndfile says what is wrong


def _wav(source: Source, start: int, head: bytes, form: bytes, samples: _Samples) -> Part:
    order: Literal["little", "big"] = "big" if head == b"RIFX" else "little"
    extent = _extent(source, samples, order)
    part = Part(start, extent.end, [(start, extent.end)], if_short="cut", is_cut=extent.is_cut)
    part.unread_codec = _codec(form, order)
    if extent.was_unwritten:
        part.warnings = [NO_LENGTH]
    length = extent.end - samples.start
    if extent.was_unwritten or (extent.was_unknown and (head != b"RIFF" or length >= _UNKNOWN_SIZE)):
        part.pieces = [_wav_header(form, length, order), (samples.start, extent.end)]
    elif head == b"BW64":
        part.pieces = [b"RF64", (start + 4, extent.end)]
    return part


def _codec(form: bytes, order: Literal["little", "big"]) -> str | None:
    """The name of a codec that libsndfile does not read."""
    tag = int.from_bytes(form[:2], order)
    if tag == 0xFFFE and len(form) >= 26:
        tag = int.from_bytes(form[24:26], order)
    return None if tag in _SUPPORTED or len(form) < 14 else _CODECS.get(tag, f"with the WAV tag 0x{tag:04X}")


def _wav_header(form: bytes, length: int, order: Literal["little", "big"]) -> bytes:
    """Of so many bytes of samples."""
    sign = ">" if order == "big" else "<"
    size = 4 + 8 + len(form) + len(form) % 2 + 8 + length
    body = b"fmt " + struct.pack(sign + "I", len(form)) + form + bytes(len(form) % 2) + b"data"
    if size < 1 << 32:
        return (
            (b"RIFX" if order == "big" else b"RIFF")
            + struct.pack(sign + "I", size)
            + b"WAVE"
            + body
            + (struct.pack(sign + "I", length))
        )
    sizes = b"ds64" + struct.pack("<IQQQI", 28, size + 36, length, 0, 0)
    return b"RF64\xff\xff\xff\xffWAVE" + sizes + body + b"\xff\xff\xff\xff"


def _w64_part(source: Source, start: int) -> Part:
    form, position = b"", start + 40
    for _ in range(_MAX_CHUNKS):
        head = source.between(position, position + 24)
        if len(head) < 24 or head[4:16] != _W64_TAIL:
            break
        size = int.from_bytes(head[16:24], "little")
        if head[:4] == b"fmt ":
            form = source.between(position + 24, position + min(size, 4096))
        elif head[:4] == b"data":
            claimed = max(0, size - 24) if size < _UNKNOWN_SIZE_64 else None
            byte_rate = int.from_bytes(form[8:12], "little")
            part = _wav(source, start, b"w64", form, _Samples(position + 24, claimed, byte_rate))
            if part.pieces == [(start, part.end)] and (end := _w64_end(source, start)) >= part.end:
                part.end, part.pieces = end, [(start, end)]
            return part
        position += max(24, size + -size % 8)
    return Part(start, source.size, [(start, source.size)])


def _w64_end(source: Source, start: int) -> int:
    size = int.from_bytes(source.between(start + 16, start + 24), "little")
    return min(start + size, source.size)


def aiff_part(source: Source, start: int) -> Part:
    """The AIFF that starts there."""
    common = b""
    for name, position, size in _chunks(source, start + 12, "big"):
        if name == b"COMM":
            common = source.between(position, position + min(size, 4096))
        elif name == b"SSND" and len(common) >= 18:
            return _aiff(source, start, common, position, size)
    return Part(start, source.size, [(start, source.size)])


def _aiff(source: Source, start: int, common: bytes, position: int, size: int) -> Part:
    codec = common[18:22] or b"NONE"
    channels, bits = struct.unpack(">H", common[:2])[0], struct.unpack(">H", common[6:8])[0]
    frame_bytes = channels * ((_AIFF_BITS.get(codec, 0) or bits) + 7) // 8
    is_known = size < _UNKNOWN_SIZE or position + size <= source.size
    claimed = max(0, size - 8) if is_known else None
    samples = _Samples(position + 8, claimed, frame_bytes * _extended(common[8:18]))
    extent = _extent(source, samples, "big")
    part = Part(start, extent.end, [(start, extent.end)], if_short="cut", is_cut=extent.is_cut)
    if codec not in _AIFF_BITS and codec not in _AIFF_OTHERS:
        part.unread_codec = codec.decode("latin-1").strip()
    if extent.was_unwritten or extent.was_unknown:
        length = extent.end - samples.start
        part.warnings = [NO_LENGTH] if extent.was_unwritten else []
        if codec in _AIFF_BITS and frame_bytes:
            frames = struct.pack(">I", min(length // frame_bytes, 0xFFFF_FFFF))
            header = _aiff_header(common[:2] + frames + common[6:], length)
            part.pieces = [header, (samples.start, extent.end)]
    return part


def _aiff_header(common: bytes, length: int) -> bytes:
    kind = b"AIFC" if len(common) > 18 else b"AIFF"
    body = kind + b"COMM" + struct.pack(">I", len(common)) + common + bytes(len(common) % 2)
    body += b"SSND" + struct.pack(">I", min(length + 8, 0xFFFF_FFFF)) + bytes(8)
    return b"FORM" + struct.pack(">I", min(len(body) + length, 0xFFFF_FFFF)) + body


def _extended(number: bytes) -> float:
    """An 80-bit float of AIFF; 0 for what is no rate."""
    exponent, mantissa = struct.unpack(">HQ", number)
    return float(mantissa) * 2.0 ** (exponent - 16383 - 63) if 16383 <= exponent < 16383 + 32 else 0.0


def _extent(source: Source, samples: _Samples, order: Literal["little", "big"]) -> _Extent:
    """Where the samples end: where the header says, if that can be; else at the end of the file, or where
    another recording begins."""
    start, claimed = samples.start, samples.claimed
    if claimed and start + claimed <= source.size:
        return _Extent(_end_of_chunks(source, start + claimed, order))
    if claimed:
        missing = start + claimed - source.size
        is_cut = missing > _MISSING_SECONDS * samples.byte_rate
        return _Extent(source.size, is_cut=is_cut)
    end = _end_of_chunks(source, start, order)
    if claimed == 0 and end == source.size:
        return _Extent(end)  # there are no samples
    return _Extent(next_head(source, start), was_unwritten=claimed == 0, was_unknown=claimed is None)


def next_head(source: Source, start: int, others: tuple[bytes, ...] = ()) -> int:
    """Where the next WAV or one of the other heads begins; the end of the file if there is none."""
    place = start
    for _ in range(_MAX_CANDIDATES):
        found = find(source, (b"WAVEfmt ", *others), place)
        if found is None:
            break
        if source.between(found, found + 8) != b"WAVEfmt ":
            return found
        if found - 8 >= start and source.between(found - 8, found - 4) in (b"RIFF", b"RIFX"):
            return found - 8
        place = found + 8
    return source.size


def _end_of_chunks(source: Source, position: int, order: Literal["little", "big"]) -> int:
    """The byte behind the last chunk of those that start there, or one byte later."""
    for start in (position + position % 2, position):
        end = start
        for _, begin, size in _chunks(source, start, order):
            if begin + size > source.size:
                break
            end = min(begin + size + size % 2, source.size)
        if end > start:
            return end
    return position


def _chunks(
    source: Source, position: int, order: Literal["little", "big"]
) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and size of each chunk."""
    for _ in range(_MAX_CHUNKS):
        head = source.between(position, position + 8)
        if len(head) < 8 or head[:4] in _HEADS or not all(32 <= byte < 127 for byte in head[:4]):
            return
        size = int.from_bytes(head[4:], order)
        yield head[:4], position + 8, size
        position += 8 + size + size % 2

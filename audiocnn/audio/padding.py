"""Tags, zeros and white space around recordings; tags are ID3v2, ID3v1, APE and Lyrics3."""

from __future__ import annotations

import codecs

from audiocnn.audio.source import Source, find

MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"styp", b"free", b"skip", b"wide", b"pnot")  # that come first

_CHUNK_BYTES = 1 << 16
_MAX_TAGS = 1_000


def skip_padding(source: Source, position: int) -> int:
    """The first byte from there on that is no tag, zero or white space; a box of MP4 starts with zeros."""
    for _ in range(_MAX_TAGS):
        head = source.between(position, position + 32)
        if head[:1] == b"\0":
            after = _skip_zeros(source, position, head)
        else:
            after = position + _tag_length(source, position, head)
        if after == position:
            break
        position = min(after, source.size)
    return position


def _skip_zeros(source: Source, position: int, head: bytes) -> int:
    if head[4:8] in MP4_BOXES:
        return position
    while chunk := source.between(position, position + _CHUNK_BYTES):
        rest = chunk.lstrip(b"\0")
        position += len(chunk) - len(rest)
        if rest:
            near = source.between(position, position + 8)
            names = [place for place in range(1, 4) if near[place : place + 4] in MP4_BOXES]
            return position + names[0] - 4 if names else position
    return position


def _tag_length(source: Source, position: int, head: bytes) -> int:
    """Bytes of the tag that starts with `head`; 0 if none does."""
    if head[:3] == b"ID3" and len(head) >= 10 and not any(byte & 0x80 for byte in head[6:10]):
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        length = 10 + size + (10 if head[5] & 0x10 else 0)
        return length if position + length <= source.size else 10
    if head[:8] == b"APETAGEX" and len(head) == 32:
        has_size = head[23] & 0x20  # it is a header, and not a footer
        return 32 + (int.from_bytes(head[12:16], "little") if has_size else 0)
    if head[:4] == b"TAG+":
        return 227
    if head[:3] == b"TAG":
        return 128
    if head[:11] == b"LYRICSBEGIN":
        for last in (b"LYRICS200", b"LYRICSEND"):
            if end := find(source, last, position, position + _CHUNK_BYTES):
                return end + len(last) - position
    if head[:3] == codecs.BOM_UTF8:  # scripts that echo a file write it, and lines
        return 3
    return len(head) - len(head.lstrip(b"\r\n\t "))

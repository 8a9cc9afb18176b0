"""What a file consists of: one recording or several, behind tags, zeros or half a frame.

Recordings are joined with `cat`, chained by radio streams, and appended by browsers. Each of them is a part
with its own header, sample rate and codec.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from audiocnn.audio.frames import (
    ReadHeader,
    adts_header,
    find_frames,
    info_frame,
    mpeg_header,
    read_run,
    starts_frames,
)
from audiocnn.audio.other_files import HEAD_BYTES, name_file
from audiocnn.audio.padding import MP4_BOXES, skip_padding
from audiocnn.audio.riff import aiff_part, is_aiff, is_riff, next_head, riff_part
from audiocnn.audio.source import Part, Source, find
from audiocnn.errors import UndecodableAudioError, UnsupportedFormatError

FORMATS = "WAV, FLAC, Ogg (Vorbis, Opus), MP3, AIFF, M4A/AAC or WebM"

_MAX_PARTS = 1_000
_MAX_BOXES = 100_000
_MAX_TRACKS = 20
_MOST_SKIPPED = 1 << 18  # bytes of unknown data, and a fiftieth of the file: searching it is slow
_HALF_FRAME_BYTES = 1 << 13  # no frame of MP3 or AAC is larger
_GAP_BYTES = 1 << 16  # between recordings, and the largest page of Ogg
_MISSING_SECONDS = 0.25
_EBML = b"\x1a\x45\xdf\xa3"
_DOCUMENT_TYPE = re.compile(rb"\x42\x82.(webm|matroska)", re.DOTALL)
_SEGMENT = b"\x18\x53\x80\x67"
_OGG_START = b"OggS\0\2"  # the first page of a stream
_OGG_LIBSNDFILE = {b"\x01vorbis": "Vorbis", b"OpusHead": "Opus"}
_OGG_PYAV = {b"\x7fFLAC": "FLAC", b"Speex   ": "Speex"}
_OGG_OTHERS = {
    b"\x80theora": "Theora",
    b"fishead\0": "Skeleton",
    b"CELT    ": "CELT",
    b"PCM     ": "Ogg PCM",
    b"OggMIDI\0": "MIDI",
    b"\x01video\0": "OGM video",
    b"\x01audio\0": "OGM audio",
}


class FileParts:
    """Iterates over the parts of a file, from the first byte to the last.

    Raises `UnsupportedFormatError` or `UndecodableAudioError` if there is none.
    """

    def __init__(self, source: Source, *, max_seconds: float) -> None:
        """Of frames without a container no more than `max_seconds` and a few are looked at."""
        self.skipped_bytes = 0  # so far, of unknown data: neither sound nor tags nor zeros
        self._source, self._max_seconds = source, max_seconds
        self._searched_bytes = 0  # so far, skipped or damaged
        self._found: list[Part] = []
        self._position = 0

    def __iter__(self) -> Iterator[Part]:
        number = 0
        while number < len(self._found) or self._find():
            yield self._found[number]
            number += 1
        self._source.check()
        if not number:
            self._refuse()

    def _find(self) -> bool:
        """Look for one more part; whether there is one."""
        source = self._source
        is_done = self._position >= source.size or len(self._found) == _MAX_PARTS
        if is_done or self._searched_bytes > _MOST_SKIPPED + self._position // 50:
            self.skipped_bytes += max(0, source.size - self._position)
            self._position = source.size
            return False
        begin = skip_padding(source, self._position)
        part = self._part_at(begin) or self._part_behind(begin)
        end, self._position = (part.start, part.end) if part else (source.size, source.size)
        self.skipped_bytes += end - begin
        self._searched_bytes += end - begin + (part.damaged_bytes if part else 0)
        if part:
            self._found.append(part)
        return part is not None

    def _refuse(self) -> None:
        head = self._source.between(0, HEAD_BYTES)
        if other := name_file(head):
            raise UnsupportedFormatError(f"The bytes are {other}")
        if head[:3] in (b"ID3", b"TAG", b"APE") or _is_frame_sync(head):
            raise UndecodableAudioError(
                "The file begins like MP3 or AAC, but not two frames can be found in it. Is it complete?"
            )
        raise UnsupportedFormatError(f"The bytes are in no known audio container. Send {FORMATS}.")

    def _part_at(self, start: int) -> Part | None:
        """The recording that starts at this byte."""
        head = self._source.between(start, start + 64)
        for is_it, read in _CONTAINERS:
            if is_it(head):
                return read(self._source, start)
        for read_header in (mpeg_header, adts_header):
            if starts_frames(self._source, start, read_header):
                return self._frames(start, read_header)
        if start == 0 and _is_free_format(head):
            return Part(start, self._source.size, [(start, self._source.size)])
        return None

    def _part_behind(self, begin: int) -> Part | None:
        """The next recording within the reach of a frame or page that is cut off."""
        if self._source.between(begin, begin + 4) in (b"RIFF", b"FORM"):
            return None  # a container of something else
        reach = begin + (_GAP_BYTES if begin else _HALF_FRAME_BYTES)
        places = [find_frames(self._source, begin, reach, read) for read in (mpeg_header, adts_header)]
        places.append(find(self._source, _OGG_START, begin, begin + _GAP_BYTES))
        found = [place for place in places if place is not None]
        return self._part_at(min(found)) if found else None

    def _frames(self, start: int, read_header: ReadHeader) -> Part:
        run = read_run(self._source, start, read_header, max_seconds=self._max_seconds)
        is_adts = read_header is adts_header
        return Part(
            start,
            run.end,
            run.ranges,
            demuxer="aac" if is_adts else None,
            is_risky=is_adts,
            is_cut=run.is_cut or run.missing_seconds > _MISSING_SECONDS,
            samples=run.samples,
            least_seconds=max(0.0, run.samples / run.rate - 1),  # encoders add some, which decoders leave out
            info_frame=b"" if is_adts else info_frame(self._source, run),
            lost_seconds=run.lost_seconds,
            damaged_bytes=run.end - start - sum(end - begin for begin, end in run.ranges),
        )


def _is_frame_sync(head: bytes) -> bool:
    """Whether a frame of MP3 or ADTS might start there."""
    return len(head) > 1 and head[0] == 0xFF and (head[1] & 0xE6 == 0xE2 or head[1] & 0xF6 == 0xF0)


def _is_free_format(head: bytes) -> bool:
    """Whether MP3 frames of any length start there: the only way to find their length is to decode."""
    return len(head) > 3 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2 and head[2] & 0xFC in (0, 4, 8)


def _flac_part(source: Source, start: int) -> Part:
    """Up to the next file of FLAC, WAV or Ogg: nothing else says where it ends."""
    head = source.between(start, start + 26)
    blocks = (int.from_bytes(head[21:], "big") & ((1 << 36) - 1)) // max(
        16, int.from_bytes(head[10:12], "big")
    )
    least = blocks * int.from_bytes(head[12:15], "big")  # bytes, by the smallest frame
    least = least if start + least <= source.size else 4
    end = next_head(source, start + max(4, least), (b"fLaC\0\0\0\x22", b"fLaC\x80\0\0\x22", _OGG_START))
    return Part(start, end, [(start, end)], if_short="cut")


def _ogg_part(source: Source, start: int) -> Part:
    """The streams that start together there, up to where the next ones start."""
    heads, position = _ogg_heads(source, start)
    end = _ogg_end(source, position, find(source, _OGG_START, position) or source.size)
    part = Part(start, end, [(start, end)], is_risky=True, if_short="damage")
    part.is_cut = _is_page_cut(source, start, end)
    known = [name for head in heads for key, name in _OGG_PYAV.items() if head.startswith(key)]
    native = [head for head in heads if head[:7] in _OGG_LIBSNDFILE or head[:8] in _OGG_LIBSNDFILE]
    if known or (native and len(heads) > 1):
        part.demuxer, part.if_short = "ogg", "unknown"
    elif heads and not native:
        part.unread_codec = ", ".join(
            _OGG_OTHERS.get(head.ljust(8)[:8]) or _OGG_OTHERS.get(head[:7]) or ascii(head[:8])
            for head in heads
        )
    return part


def _ogg_heads(source: Source, start: int) -> tuple[list[bytes], int]:
    """The first bytes of each stream, and the byte behind their first pages."""
    heads: list[bytes] = []
    position = start
    while len(heads) < _MAX_TRACKS:
        page = source.between(position, position + 27 + 255 + 8)
        if page[:6] != _OGG_START or len(page) < 28:
            break
        segments = page[27 : 27 + page[26]]
        heads.append(page[27 + len(segments) :][:8])
        position += 27 + len(segments) + sum(segments)
    return heads, max(position, start + 1)


def _ogg_end(source: Source, start: int, end: int) -> int:
    """The byte behind the last pages of the streams there, if they say which these are; else `end`."""
    position = find(source, b"OggS\0\4", start, end)
    for _ in range(_MAX_TRACKS):
        if position is None or source.between(position, position + 4) != b"OggS":
            break
        page = source.between(position, position + 27 + 255)
        segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
        position += 27 + len(segments) + sum(segments)
    is_last = position is not None and source.between(position, position + 4) != b"OggS"
    return min(position, end) if position is not None and is_last else end


def _is_page_cut(source: Source, start: int, end: int) -> bool:
    """Whether the last page is not whole."""
    tail = source.between(max(start, end - 2 * _GAP_BYTES), end)
    page = tail[max(0, tail.rfind(b"OggS")) :]
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
    return len(page) < 28 or 27 + len(segments) + sum(segments) > len(page)


def _is_mp4(head: bytes) -> bool:
    size = int.from_bytes(head[:4], "big")
    return head[4:8] == b"ftyp" or (head[4:8] in MP4_BOXES and (size in (0, 1) or 8 <= size < 1 << 31))


def _mp4_part(source: Source, start: int) -> Part:
    """The boxes up to the next file type; MP4 says there how long it is."""
    position, is_cut = start, False
    for number in range(_MAX_BOXES):
        head = source.between(position, position + 16)
        if (number and head[4:8] == b"ftyp") or not re.fullmatch(rb"[ -~\xa9]{4}", head[4:8], re.DOTALL):
            break
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        is_cut = position + size > source.size
        if size < 8 or is_cut:
            break
        position += size
    is_next = source.between(position + 4, position + 8) == b"ftyp"
    end = position if position > start and not is_cut else source.size
    return Part(
        start,
        end,
        [(start, end if is_next else source.size)],  # libraries are cleverer than this with damaged boxes
        demuxer="mp4",
        is_risky=True,
        is_cut=is_cut,
    )


def _matroska_part(source: Source, start: int) -> Part:
    """Up to the next header, as browsers append recordings; its segment says how long it is."""
    found = find(source, _EBML, start + 4)
    for _ in range(_MAX_TRACKS):
        if found and not _DOCUMENT_TYPE.search(source.between(found, found + 64)):
            found = find(source, _EBML, found + 4)
    end = found or source.size
    head = source.between(start, start + 256)
    place, is_cut = head.find(_SEGMENT), False
    if place >= 0 and len(head) > place + 12:
        width = 9 - head[place + 4].bit_length()
        size = int.from_bytes(head[place + 4 : place + 4 + width], "big") & ((1 << 7 * width) - 1)
        is_unknown = size == (1 << 7 * width) - 1
        is_cut = not is_unknown and start + place + 4 + width + size > end
    return Part(start, end, [(start, end)], demuxer="matroska", is_risky=True, is_cut=is_cut)


_CONTAINERS: tuple[tuple[Callable[[bytes], bool], Callable[[Source, int], Part]], ...] = (
    (is_riff, riff_part),
    (is_aiff, aiff_part),
    (lambda head: head[:4] == b"fLaC", _flac_part),
    (lambda head: head[:4] == b"OggS", _ogg_part),
    (lambda head: head[:4] == _EBML, _matroska_part),
    (_is_mp4, _mp4_part),
)

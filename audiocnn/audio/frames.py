"""Runs of frames in MPEG audio (MP1, MP2, MP3) and ADTS (AAC): formats without a container.

Their length is known only by going from frame to frame. So are damaged spots, and where another recording
begins: the sample rate or the codec's setup changes, or an encoder's info frame comes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from audiocnn.audio.source import Source

_CHUNK_BYTES = 1 << 18
_LARGEST_FRAME = 1 << 13  # bytes
_LARGEST_HEADER = 48  # bytes from the start of a frame to behind the name of an info frame
_RESYNC_BYTES = 1 << 16  # so much is searched for the next frame
_MOST_DAMAGE = 1 << 18  # bytes, and a fiftieth of what is whole: searching is slow
_MAX_SPOTS = 10_000
_SLACK_FRAMES = 10  # an info frame's count is off by a few in many encoders
_MPEG_SYNC = re.compile(rb"\xff(?=[\xe2-\xff][\x10-\xef])")
_ADTS_SYNC = re.compile(rb"\xff(?=[\xf0\xf1\xf8\xf9])")
_MPEG_RATES = (44_100, 48_000, 32_000)
_AAC_RATES = (
    *(96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000),
    *(22_050, 16_000, 12_000, 11_025, 8_000, 7_350),
)
_KBITS = {  # of MPEG 1 layers I, II, III; of MPEG 2 layer I; of its layers II and III
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


class Frame(NamedTuple):
    """What a frame's header says."""

    length: int  # bytes
    samples: int
    rate: int  # Hz
    setup: tuple[int, ...]  # the same in all frames of a recording


ReadHeader = Callable[[bytes, int], Frame | None]


@dataclass
class Run:
    """Frames of one recording."""

    end: int  # the byte behind it
    rate: int  # Hz
    frames: int = 0
    samples: int = 0
    ranges: list[tuple[int, int]] = field(default_factory=list)  # of bytes: what is between is damaged
    lost_seconds: float = 0.0  # about, for what is damaged
    promised_frames: int | None = None  # by an info frame
    missing_seconds: float = 0.0  # promised, and not there
    is_cut: bool = False  # the last frame is not whole


def mpeg_header(data: bytes, at: int) -> Frame | None:
    """The frame of MPEG audio that starts there; None if none does."""
    if len(data) < at + 4 or data[at] != 0xFF:
        return None
    return _mpeg_frame(data[at + 1], data[at + 2], data[at + 3] >> 6 == 3)


@cache
def _mpeg_frame(second: int, third: int, is_mono: bool) -> Frame | None:
    version = {0: 4, 2: 2, 3: 1}.get(second >> 3 & 3)  # 4: the unofficial 2.5
    layer, bits, rate_index = 4 - (second >> 1 & 3), third >> 4, third >> 2 & 3
    if second & 0xE0 != 0xE0 or version is None or layer == 4 or bits in (0, 15) or rate_index == 3:
        return None
    rate = _MPEG_RATES[rate_index] // version
    bits_a_second = 1000 * _KBITS[min(version, 2), layer][bits - 1]
    padding = third >> 1 & 1
    if layer == 1:
        return Frame((12 * bits_a_second // rate + padding) * 4, 384, rate, (version, layer, rate, is_mono))
    samples = 576 if layer == 3 and version > 1 else 1152
    length = samples // 8 * bits_a_second // rate + padding
    return Frame(length, samples, rate, (version, layer, rate, is_mono))


def adts_header(data: bytes, at: int) -> Frame | None:
    """The frame of ADTS that starts there; None if none does."""
    if len(data) < at + 7 or data[at] != 0xFF or data[at + 1] & 0xF6 != 0xF0:
        return None
    third, fourth = data[at + 2], data[at + 3]
    length = (fourth & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
    rate_index = third >> 2 & 15
    if rate_index >= len(_AAC_RATES) or length < 7:
        return None
    channels = (third & 1) << 2 | fourth >> 6
    samples = 1024 * (1 + (data[at + 6] & 3))
    return Frame(length, samples, _AAC_RATES[rate_index], (third >> 6, rate_index, channels))


def _info_offset(setup: tuple[int, ...]) -> int:
    """Where in a frame of this setup the name of an info frame stands; `VBRI` stands at 36 in all."""
    version, _, _, is_mono = setup
    return 4 + ((17 if is_mono else 32) if version == 1 else (9 if is_mono else 17))


def _promised_frames(source: Source, start: int, setup: tuple[int, ...]) -> int | None:
    """How many frames the info frame promises behind itself; None if there is none, or it says nothing."""
    head = source.between(start, start + 64)
    if head[36:40] == b"VBRI":
        return int.from_bytes(head[50:54], "big") or None
    info = head[_info_offset(setup) :] if len(setup) == 4 else b""
    if info[:4] not in (b"Xing", b"Info") or not info[7:8] or not info[7] & 1:
        return None
    return int.from_bytes(info[8:12], "big") or None


def info_frame(source: Source, run: Run) -> bytes:
    """An info frame for a run of MP3 that has none: without one, libsndfile stops at a guess."""
    head = source.between(run.ranges[0][0], run.ranges[0][0] + 4)
    first = mpeg_header(head, 0)
    if run.promised_frames is not None or first is None or first.setup[1] != 3:
        return b""
    head = bytes([0xFF, head[1] | 1, 0x90 | head[2] & 0x0C, head[3]])  # the tenth bit rate, no checksum
    frame = mpeg_header(head, 0)
    assert frame is not None
    info = head.ljust(_info_offset(frame.setup), b"\0") + b"Xing" + (1).to_bytes(4, "big")
    return (info + run.frames.to_bytes(4, "big")).ljust(frame.length, b"\0")


class _Reader:
    """Frame headers anywhere in a file, of which a chunk is held."""

    def __init__(self, source: Source, read_header: ReadHeader) -> None:
        self._source, self._read_header = source, read_header
        self._chunk, self._start = b"", 0

    def at(self, position: int) -> Frame | None:
        """The frame that starts there, or None."""
        place = self._place(position)
        return self._read_header(self._chunk, place)

    def _place(self, position: int) -> int:
        place, length = position - self._start, len(self._chunk)
        is_behind = place + _LARGEST_HEADER > length and self._start + length < self._source.size
        if place < 0 or is_behind:
            self._start = max(0, position - _LARGEST_FRAME)  # a search goes back and forth
            self._chunk = self._source.between(self._start, self._start + _CHUNK_BYTES)
        return position - self._start

    def has_info(self, position: int, setup: tuple[int, ...]) -> bool:
        """Whether the frame there is an encoder's info frame: the first of a recording."""
        if len(setup) != 4 or setup[1] != 3:
            return False
        place = self._place(position)
        chunk, name = self._chunk, place + _info_offset(setup)
        if chunk[place + 4 : place + 6] != b"\0\0":  # all between header and name is zero
            return False
        return chunk[name : name + 4] in (b"Xing", b"Info") or chunk[place + 36 : place + 40] == b"VBRI"

    def find(self, start: int, end: int, *, setup: tuple[int, ...] | None, in_a_row: int) -> int | None:
        """Where so many frames of one setup come in a row, or as many as the file has: the first place."""
        chunk = self._source.between(start, end) + bytes(8)
        candidates = _MPEG_SYNC if self._read_header is mpeg_header else _ADTS_SYNC
        for match in candidates.finditer(chunk):
            place = match.start()
            frame = self._read_header(chunk, place)
            if frame and setup in (None, frame.setup) and self._is_row(start + place, frame, in_a_row):
                return start + place
        return None

    def _is_row(self, position: int, frame: Frame, count: int) -> bool:
        """Whether frames of this setup start there, `count` or, to the end of the file, two at least."""
        setup, whole = frame.setup, 0
        following: Frame | None = frame
        while following and following.setup == setup and whole < count:
            whole += 1
            position += following.length
            following = self.at(position)
        return whole >= min(count, 2) and (whole == count or position >= self._source.size)


def find_frames(source: Source, start: int, end: int, read_header: ReadHeader) -> int | None:
    """Where three frames of one setup come in a row, or all that are left: the first place before `end`."""
    return _Reader(source, read_header).find(start, end, setup=None, in_a_row=3)


def starts_frames(source: Source, start: int, read_header: ReadHeader) -> bool:
    """Whether two frames, or the only one of the file, start there."""
    reader = _Reader(source, read_header)
    frame = reader.at(start)
    if frame is None:
        return False
    following = reader.at(start + frame.length)
    is_last = start + frame.length == source.size
    return is_last or (following is not None and following.setup == frame.setup)


def read_run(source: Source, start: int, read_header: ReadHeader, *, max_seconds: float) -> Run:
    """The frames of the recording that starts there, up to somewhat more than `max_seconds`."""
    reader = _Reader(source, read_header)
    first = reader.at(start)
    assert first is not None
    promised = _promised_frames(source, start, first.setup)
    run, position, begin = Run(start, first.rate, promised_frames=promised), start, start
    most = max_seconds * first.rate
    promise_end, damaged = None, 0
    while run.samples <= most:
        frame = reader.at(position)
        if frame is None or frame.setup != first.setup:
            found = _behind_damage(reader, source, position, first)
            damaged += (found or 0) - position
            if found is None or len(run.ranges) == _MAX_SPOTS:
                break
            if damaged > _MOST_DAMAGE + (position - start) // 50:
                break
            run.ranges.append((begin, position))
            run.lost_seconds += (found - position) / _mean_length(run) * first.samples / first.rate
            position = begin = found
            continue
        if run.frames and reader.has_info(position, frame.setup):
            break
        run.is_cut = position + frame.length > source.size
        position = min(position + frame.length, source.size)
        run.frames += not run.is_cut
        run.samples += 0 if run.is_cut else frame.samples
        if promised and run.frames == promised + 1:
            promise_end = position, len(run.ranges), begin
    run.ranges.append((begin, position))
    if promised and promise_end and run.frames > promised + 1 + _SLACK_FRAMES:
        _cut_at(run, *promise_end, frames=promised + 1, samples=first.samples)
    elif promised:
        missing = promised + 1 - run.frames
        if not run.lost_seconds:
            run.missing_seconds = max(0, missing) * first.samples / first.rate
        elif missing > _SLACK_FRAMES:  # bytes are missing at the damaged spots
            run.lost_seconds = max(run.lost_seconds, missing * first.samples / first.rate)
    run.end = run.ranges[-1][1]
    return run


def _cut_at(run: Run, end: int, ranges: int, begin: int, *, frames: int, samples: int) -> None:
    """The recording ends where its info frame says; what follows has none, and is another."""
    run.ranges[ranges:] = [(begin, end)]
    run.frames, run.samples = frames, frames * samples
    run.is_cut = False


def _mean_length(run: Run) -> float:
    total = sum(end - start for start, end in run.ranges)
    return max(1.0, total / max(run.frames, 1))


def _behind_damage(reader: _Reader, source: Source, position: int, first: Frame) -> int | None:
    """Where the recording goes on; None where a tag, the end, or another recording comes."""
    head = source.between(position, position + 10)
    if len(head) < 10 or head[:3] in (b"TAG", b"ID3") or head[:8] in (b"APETAGEX", b"LYRICSBE"):
        return None
    found = reader.find(position, position + _RESYNC_BYTES, setup=first.setup, in_a_row=2)
    if found is None:
        return None
    frame = reader.at(found)
    return None if frame is None or reader.has_info(found, frame.setup) else found

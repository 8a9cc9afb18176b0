"""When a recording began: from an argument, the metadata of the file, or its name."""

from __future__ import annotations

import re
import struct
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import BinaryIO

# 20261125_063000, 2026-11-25T06-30-00, 20261125063000, each perhaps with Z or an offset behind it
_IN_NAME = re.compile(
    r"(?<!\d)(\d{4})-?(\d{2})-?(\d{2})[T_ -]?(\d{2})[-:.h]?(\d{2})[-:.m]?(\d{2})(Z|[+-]\d{2}:?\d{2})?(?!\d)"
)
_BEXT_DATE, _BEXT_TIME = slice(320, 330), slice(330, 338)  # OriginationDate, OriginationTime
_MAX_CHUNKS = 64


def recording_start(path: str | Path, zone: tzinfo) -> datetime | None:
    """The time of the first sample, with its zone: BWF origination, else the file's name; None: unknown.

    `zone` is that of times that name none.

    >>> recording_start("SM4_20261125_063000.wav", UTC).isoformat()
    '2026-11-25T06:30:00+00:00'
    """
    return _from_bwf(Path(path), zone) or start_in_name(Path(path).name, zone)


def start_in_name(name: str, zone: tzinfo) -> datetime | None:
    """The first date with time in a file's name; None if there is none."""
    for match in _IN_NAME.finditer(name):
        *numbers, offset = match.groups()
        try:
            time = datetime(*map(int, numbers))  # type: ignore[arg-type]
            return _with_zone(datetime.fromisoformat(f"{time.isoformat()}{offset or ''}"), zone)
        except ValueError:  # 20269999_000000 is a number
            continue
    return None


def parse_start(text: str, zone: tzinfo) -> datetime:
    """An ISO 8601 time of the command line; raises `ValueError`."""
    return _with_zone(datetime.fromisoformat(text), zone)


def time_at(start: datetime | None, seconds: float) -> str | None:
    """ISO 8601 with zone and milliseconds of a moment of the recording; None without a start.

    Elapsed seconds are added in UTC: a recording over the change of daylight saving time stays right.
    """
    if start is None:
        return None
    try:
        moment = start.astimezone(UTC) + timedelta(seconds=seconds)
        return moment.astimezone(start.tzinfo).isoformat(timespec="milliseconds")
    except OverflowError:  # before the year 1 or after 9999
        return None


def _with_zone(time: datetime, zone: tzinfo) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=zone)


def _from_bwf(path: Path, zone: tzinfo) -> datetime | None:
    """Origination of a Broadcast Wave file (EBU Tech 3285)."""
    try:
        with path.open("rb") as file:
            bext = _bext(file)
            text = b" ".join((bext[_BEXT_DATE], bext[_BEXT_TIME])).decode("ascii")
    except (OSError, UnicodeDecodeError, struct.error, ValueError):
        return None
    numbers = re.findall(r"\d+", text)
    try:
        return datetime(*map(int, numbers), tzinfo=zone) if len(numbers) == 6 else None  # type: ignore[arg-type, misc]
    except ValueError:  # 0000-00-00
        return None


def _bext(file: BinaryIO) -> bytes:
    """The beginning of the chunk `bext`, empty if there is none."""
    head = file.read(12)
    if head[:4] not in (b"RIFF", b"RF64", b"BW64") or head[8:] != b"WAVE":
        return b""
    for _ in range(_MAX_CHUNKS):
        name, size = struct.unpack("<4sI", file.read(8))
        if name == b"bext":
            return file.read(min(size, _BEXT_TIME.stop))
        file.seek(size + size % 2, 1)
    return b""

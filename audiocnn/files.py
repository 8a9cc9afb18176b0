"""Files that are written whole or not at all, and their checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, with the same suffix, that takes its place at the end.

    A reader never sees a part of the file; after an exception the old one is still there.

    >>> with replacing(Path("a.json")) as part:
    ...     part.write_text("{}")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file with `replacing`."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def as_text(path: str | Path) -> str:
    """A path as tables can hold it: bytes that are not UTF-8 become `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def short_name(name: str, most: int) -> str:
    """A file's name in `most` bytes, 180 or more: of a longer one the beginning and a digest."""
    data = os.fsencode(name)
    return name if len(data) <= most else f"{name[:40]}-{hashlib.sha256(data).hexdigest()[:16]}"


def check_writable(folder: Path) -> None:
    """Raise `OSError` now, not after the work, if no file can be made in `folder`, which need not exist."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    tempfile.TemporaryFile(dir=there).close()


def publish(temporary: Path, target: Path) -> None:
    """Sync a complete file, then move it to `target`: after a power cut `target` is whole or the old one."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(target)

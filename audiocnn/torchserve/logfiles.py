"""Log files of child processes."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

_TAIL_LINES = 25
_TAIL_BYTES = 16_384


def open_log(path: Path, *, is_first: bool) -> BinaryIO:
    """Open a log for a child process to append to.

    The first start of a server keeps the previous server's log as NAME.1: it shows why a container was
    restarted.
    """
    if is_first and path.exists():
        path.replace(path.with_name(path.name + ".1"))
    return path.open("ab")


def ends_of(*paths: Path) -> str:
    """The last 25 lines of each file that exists, with a heading."""
    return "\n".join(f"The end of {path}:\n{_end_of(path)}" for path in paths if path.is_file())


def _end_of(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-_TAIL_LINES:])

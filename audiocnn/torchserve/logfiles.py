"""Files with what the processes print: the end of one often says why its process ended."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

_TAIL_LINES = 25
_TAIL_BYTES = 16_384


def open_log(path: Path, *, is_first: bool) -> BinaryIO:
    """For a process of ours to print into; another start goes on in it.

    The first start keeps the file of whoever was before us as NAME.1: a container that is started again
    finds there why it was.
    """
    if is_first and path.exists():
        path.replace(path.with_name(path.name + ".1"))
    return path.open("ab")


def ends_of(*paths: Path) -> str:
    """What was printed last into those of the files that exist."""
    return "\n".join(f"The end of {path}:\n{_end_of(path)}" for path in paths if path.is_file())


def _end_of(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-_TAIL_LINES:])

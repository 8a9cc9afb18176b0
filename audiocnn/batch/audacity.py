"""Label tracks for Audacity, in the folders of the inputs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiocnn.files import publish, short_name


class AudacityTrackWriter:
    """A label track for every file: a line with start, end and class for every window (or short file)."""

    def __init__(self, out: Path, attempt: Path, root: str) -> None:
        self._folder, self._root = out / "audacity", root
        self._path = attempt / "labels.txt"
        self._file = self._path.open("w", encoding="utf-8")

    def add(self, start: float, end: float, row: Mapping[str, Any]) -> None:
        """A line of the current file."""
        self._file.write(f"{start:.3f}\t{end:.3f}\t{row['class']} {row['confidence']:.2f}\n")

    def finish(self, path: str, *, failed: bool) -> None:
        """End of the current file: its track is published, or dropped with that of an earlier attempt.

        Raises `OSError` if there can be no file of that name.
        """
        self._file.close()
        target = self._folder / label_name(path, self._root)
        try:
            if failed:
                target.unlink(missing_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                publish(self._path, target)
        finally:
            self._file = self._path.open("w", encoding="utf-8")

    def close(self) -> None:
        """After the last file."""
        self._file.close()


def label_name(path: str, root: str) -> str:
    """Path of a file's label track below `audacity/`: that of the file below the root of the inputs."""
    inside = os.path.commonpath([path, root]) == root
    name = os.path.relpath(path, root) if inside else path.lstrip("/")
    folder, base = os.path.split(name)
    return os.path.join(folder, short_name(base, 251) + ".txt")

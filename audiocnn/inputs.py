"""What to score: folders, globs and tables of paths -> absolute paths, one at a time.

Nothing is opened and nothing is kept but counts, so millions of files take no memory. A folder that cannot
be listed is handed on as if it were a file: it will have a row that says why.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePath

from audiocnn.errors import AudioCNNError
from audiocnn.tables import SUFFIXES as TABLE_SUFFIXES
from audiocnn.tables import Table, TableError, text

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("wav", "wave", "bwf", "rf64", "bw64", "w64", "flac", "ogg", "oga", "opus", "spx", "mp2", "mp3"),
        *("aif", "aiff", "aifc", "aac", "m4a", "m4b", "mp4", "mov", "3gp", "webm", "weba", "mka", "mkv"),
    )
)
COLUMNS = ("filename", "file_path", "path")

Found = tuple[str, int]  # absolute path, and bytes; 0 where that cannot be known


class InputError(AudioCNNError, ValueError):
    """What is to be scored does not exist or cannot be read as what it looks like."""


@dataclass
class Notes:
    """What was passed over, and why; to be told to the user."""

    hidden: int = 0  # names that start with a dot
    others: int = 0  # files in folders whose name is not that of a sound
    loops: list[str] = field(default_factory=list)  # links to a folder that they are in
    unlisted: list[str] = field(default_factory=list)  # folders that cannot be read

    def lines(self) -> list[str]:
        """One sentence for each kind that there is."""
        kinds = [
            (f"{self.hidden:,} hidden files and folders left out", self.hidden),
            (f"{self.others:,} files left out that are no sounds by their name", self.others),
            (f"links left out that lead back to where they are: {_some(self.loops)}", self.loops),
            (f"folders that cannot be listed (each has a row): {_some(self.unlisted)}", self.unlisted),
        ]
        return [line for line, there in kinds if there]


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Each path as seen from the folder that all are in: `1.wav`, or `door/1.wav` and `bell/1.wav`."""
    folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
    common = os.path.commonpath(folders) if folders else ""
    return {path: os.path.relpath(path, common) for path in paths}


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 3:,} more" if len(paths) > 3 else ""
    return ", ".join(map(ascii, paths[:3])) + more


def find(inputs: Sequence[str], notes: Notes, *, limit: int | None = None) -> Iterator[Found]:
    """All sound files, a path perhaps more than once. Raises `InputError` before the first of them if
    one of the inputs does not exist, and later for a table that cannot be read."""
    check(inputs)
    return islice(_find(inputs, notes), limit)


def check(inputs: Sequence[str]) -> None:
    """Raise `InputError` if one of them does not exist; what globs match is not looked for."""
    for name in inputs:
        if not os.path.lexists(name) and not glob.has_magic(name):
            raise InputError(f"there is no {name}")


def _find(inputs: Sequence[str], notes: Notes) -> Iterator[Found]:
    for name in inputs:
        path = os.path.abspath(name)
        if os.path.isdir(path):
            yield from _walk(path, notes)
        elif not os.path.lexists(path):
            yield from _matches(path, notes)
        elif name.lower().endswith(TABLE_SUFFIXES):
            yield from _rows(path)
        else:
            yield path, _size(path)


def find_all(inputs: Sequence[str], notes: Notes, *, keep_missing: bool = False) -> list[str]:
    """Paths of all sound files, relative where the inputs are; those of folders and globs are sorted.

    Raises `InputError` as `find`, and if there are none. `keep_missing`: an input that does not exist is
    among the paths.
    """
    found: list[str] = []
    for name in inputs:
        if keep_missing and not (os.path.lexists(name) or glob.has_magic(name)):
            found.append(name)
            continue
        paths = [path for path, _ in find([name], notes)]
        if not name.lower().endswith(TABLE_SUFFIXES):
            paths.sort()
        found += paths if os.path.isabs(name) else map(os.path.relpath, paths)
    if not found:
        raise no_sounds(inputs)
    return found


def no_sounds(inputs: Sequence[str]) -> InputError:
    """The error for inputs without one sound file."""
    return InputError(f"no sound files in {', '.join(inputs)}: names end in {' '.join(sorted(SUFFIXES))}")


def root_of(inputs: Sequence[str]) -> str:
    """The folder that all inputs are in: what a mirrored tree starts from."""
    return os.path.commonpath([_folder_of(os.path.abspath(name)) for name in inputs])


def _folder_of(path: str) -> str:
    if os.path.isdir(path):
        return path
    if not os.path.lexists(path):
        parts = PurePath(path).parts
        return os.path.join(*(part for part in parts[: [*map(glob.has_magic, parts), True].index(True)]))
    return os.path.dirname(path)


def _walk(folder: str, notes: Notes) -> Iterator[Found]:
    waiting, top = [folder], folder
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                yield from _sort_out(entries, waiting, top, notes)
        except OSError:
            notes.unlisted.append(folder)
            yield folder, 0


def _sort_out(
    entries: Iterator[os.DirEntry[str]], folders: list[str], top: str, notes: Notes
) -> Iterator[Found]:
    for entry in entries:
        if entry.name.startswith("."):
            notes.hidden += 1
        elif os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
            if entry.is_symlink() and _is_loop(entry.path, top):
                notes.loops.append(entry.path)
            else:
                folders.append(entry.path)
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            yield entry.path, _size(entry.path)
        else:
            notes.others += 1


def _matches(pattern: str, notes: Notes) -> Iterator[Found]:
    """What a glob names; folders among it are walked, unless `**` reaches what is in them anyway."""
    empty, top = True, _folder_of(pattern)
    is_deep, reaches_all = "**" in pattern, re.search(r"(^|/)\*\*(/\*)?$", pattern)
    for path in glob.iglob(pattern, recursive=True):
        empty = False
        path = path.rstrip("/") or "/"  # `x/**` begins with `x/`
        if _is_loop(path if os.path.isdir(path) else os.path.dirname(path), top):
            link = os.path.dirname(path)  # glob follows links, 40 times round
            if link not in notes.loops[-1:]:
                notes.loops.append(link)
        elif os.path.isdir(path):
            if not reaches_all:
                yield from _walk(path, notes)
        elif not is_deep or os.path.splitext(path)[1].lower() in SUFFIXES:
            yield path, _size(path)
        else:
            notes.others += 1
    if empty:
        raise InputError(f"nothing matches {pattern}")


def _rows(table: str) -> Iterator[Found]:
    """The paths in a table; relative ones are relative to its folder."""
    folder = os.path.dirname(table)
    try:
        rows = Table(Path(table), columns=COLUMNS)
        column = next((name for name in COLUMNS if name in rows.columns), None)
        if column is None:
            raise InputError(
                f"{table} has none of the columns {', '.join(COLUMNS)}: {rows.describe_header()}"
            )
        for line, row in rows:
            if not row[column]:
                raise InputError(f"{table}, line {line}: {column} is empty")
            path = os.path.abspath(os.path.join(folder, row[column]))
            if not os.path.lexists(path):  # its bytes are no UTF-8, and not those of the file's name either
                other = os.path.abspath(os.path.join(folder, text(row[column])))
                path = other if os.path.lexists(other) else path
            yield path, _size(path)
    except TableError as error:
        raise InputError(str(error)) from error
    except OSError as error:
        raise InputError(f"{table} cannot be read: {error}") from error


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):  # the latter for a NUL in a name
        return 0


@lru_cache(maxsize=4096)
def _is_loop(folder: str, top: str) -> bool:
    """Whether a folder is inside itself, by way of a link, on the way down from `top`."""
    seen: set[tuple[int, int]] = set()
    while True:
        status = os.stat(folder)
        seen_before = len(seen)
        seen.add((status.st_dev, status.st_ino))
        if len(seen) == seen_before:
            return True
        if folder == top or folder == (folder := os.path.dirname(folder)):
            return False

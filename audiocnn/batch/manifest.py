"""What a run has to do and has done: `DIR/manifest/manifest.sqlite`, read again when the run resumes.

It has every file once, with its chunk, and every chunk with its outcome. Only the driver process writes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Self, TextIO

from audiocnn.batch.state import (
    ATTEMPTS,
    FOLDER,
    LISTS,
    SUFFIXES,
    Chunk,
    JobSettings,
    Listed,
    Outcome,
    pairs,
    part,
    place,
)
from audiocnn.inputs import Found

MAX_CHUNK_BYTES = 64 << 20  # a chunk of long recordings has fewer files
_SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS files (
    path BLOB PRIMARY KEY, bytes INTEGER NOT NULL, listed INTEGER NOT NULL, chunk INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS chunks (
    id INTEGER PRIMARY KEY, files INTEGER NOT NULL, bytes INTEGER NOT NULL,
    start INTEGER NOT NULL, length INTEGER NOT NULL, outcome TEXT);
"""


class ResumeError(ValueError):
    """The output folder has other results, is in use, or its manifest is damaged."""


def archive_previous(folder: Path) -> Path | None:
    """Rename the folder of earlier results; returns its new path, None if there were none.

    Raises `ResumeError` as `Manifest` does.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return None
    with _locked(folder):  # a folder of this command, not in use; the manifest may be damaged
        aside = folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        folder.rename(aside)
    return aside


def _locked(out: Path) -> TextIO:
    """The lock of an output folder, held until it is closed. Raises `ResumeError` as `Manifest` does."""
    folder = out / FOLDER
    if out.exists() and not folder.is_dir() and any(out.iterdir()):
        raise ResumeError(f"{out} is not empty, and not from this command: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise ResumeError(f"another run is writing into {out}") from error
    return lock


def damaged(out: Path, what: object) -> ResumeError:
    """The error for a manifest that no run can resume from."""
    return ResumeError(
        f"{out / FOLDER} is damaged ({what}): no run can resume from it. The rows in {out}/files and "
        f"{out}/windows are complete and stay. Start again with --fresh (the folder is moved aside)"
    )


class Manifest:
    """The manifest of an output folder; one process at a time may have it open."""

    def __init__(self, out: Path) -> None:
        """Open or create it. Raises `ResumeError` if another run has it open, the folder has other files, or
        the manifest is damaged."""
        self.out = out
        self._lock = _locked(out)
        self._lists = out / FOLDER / LISTS
        self._db = sqlite3.connect(out / FOLDER / "manifest.sqlite", isolation_level=None)
        try:
            self._check()
        except BaseException:
            self.__exit__()
            raise

    def _check(self) -> None:
        try:
            self._db.executescript(_SCHEMA)
            (found,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            (listed,) = self._db.execute("SELECT coalesce(max(start + length), 0) FROM chunks").fetchone()
        except sqlite3.OperationalError:  # a full disk, a lock: not damage
            raise
        except sqlite3.DatabaseError as error:
            raise damaged(self.out, error) from error
        if found != "ok":
            raise damaged(self.out, found)
        if listed > (self._lists.stat().st_size if self._lists.exists() else 0):
            raise damaged(self.out, f"{LISTS} is too short")
        tables = [self.out / place("files", suffix) for suffix in SUFFIXES]
        if not listed and any(_names(table) for table in tables):
            raise damaged(self.out, "manifest.sqlite has no chunks, but there are results")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        self._lock.close()

    def load_or_create(self, settings: JobSettings) -> tuple[JobSettings, bool]:
        """The settings of the run, and whether it resumes an earlier one.

        Raises `ResumeError`, with the difference, if the earlier run had others. A run that found no file
        is not resumed.
        """
        row = self._db.execute("SELECT value FROM settings WHERE name = 'settings'").fetchone()
        if row is None or not self.count():
            text = json.dumps(asdict(settings))
            self._db.execute("INSERT OR REPLACE INTO settings VALUES ('settings', ?)", (text,))
            return settings, False
        raw = json.loads(row[0])
        earlier = JobSettings(**(raw | {"formats": tuple(raw["formats"])}))
        differ = [
            f"{f.name.replace('_', '-')} was {_short(getattr(earlier, f.name))}, "
            f"is {_short(getattr(settings, f.name))}"
            for f in fields(JobSettings)
            if f.name != "root" and getattr(earlier, f.name) != getattr(settings, f.name)
        ]
        if differ:
            raise ResumeError(
                f"{self.out} was started with other settings: {'; '.join(differ)}. Repeat those, choose "
                "another --out, or start again with --fresh (the folder is moved aside)"
            )
        return earlier, True

    def add(self, found: Iterable[Found], chunk_files: int) -> Listed:
        """Add a listing and put new files into chunks of at most `chunk_files` files, in the order of their
        paths; all or nothing."""
        (last,) = self._db.execute("SELECT coalesce(max(listed), 0) FROM files").fetchone()
        (before,) = self._db.execute("SELECT count(*) FROM files").fetchone()
        seen = 0

        def rows() -> Iterator[tuple[bytes, int, int]]:
            nonlocal seen
            for path, size in found:
                seen += 1
                yield os.fsencode(path), size, last + 1

        self._db.execute("BEGIN")
        try:
            self._db.executemany(
                "INSERT INTO files (path, bytes, listed) VALUES (?, ?, ?) "
                "ON CONFLICT (path) DO UPDATE SET listed = excluded.listed",
                rows(),
            )
            self._cut_into_chunks(chunk_files)
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        count = "SELECT count(*), sum(listed = ?) FROM files"
        total, listed = self._db.execute(count, (last + 1,)).fetchone()
        new, listed = total - before, listed or 0
        return Listed(new=new, known=listed - new, duplicates=seen - listed, gone=total - listed)

    def _cut_into_chunks(self, chunk_files: int) -> None:
        page = "SELECT path, bytes FROM files WHERE path > ? AND chunk IS NULL ORDER BY path LIMIT ?"
        (number,) = self._db.execute("SELECT coalesce(max(id) + 1, 0) FROM chunks").fetchone()
        last = b""
        with self._lists.open("ab") as lists:
            while rows := self._db.execute(page, (last, chunk_files)).fetchall():
                size = 0
                for count, (_, more) in enumerate(rows):
                    size += more
                    if size > MAX_CHUNK_BYTES and count:
                        size -= more
                        del rows[count:]
                        break
                line = json.dumps([os.fsdecode(path) for path, _ in rows]).encode("ascii") + b"\n"
                values = (number, len(rows), size, lists.tell(), len(line))
                self._db.execute("INSERT INTO chunks VALUES (?, ?, ?, ?, ?, NULL)", values)
                first, last = rows[0][0], rows[-1][0]
                self._db.execute(
                    "UPDATE files SET chunk = ? WHERE chunk IS NULL AND path BETWEEN ? AND ?",
                    (number, first, last),
                )
                lists.write(line)
                number += 1
            lists.flush()
            os.fsync(lists.fileno())

    def clean_up(
        self, suffixes: Sequence[str], tables: Sequence[str] = ("files", "windows")
    ) -> tuple[list[Chunk], list[Chunk]]:
        """Chunks that were in progress when an earlier run stopped, and chunks that have lost a part since.

        Both are pending again; temporary files of their attempts are removed.
        """
        written = pairs(tables, suffixes)
        there = {
            f"{place(table, suffix)}/{name}"
            for table, suffix in written
            for name in _names(self.out / place(table, suffix))
        }
        begun = {int(name.partition("-")[0]) for name in _names(self.out / ATTEMPTS)}
        in_work, lost = [], []
        for *values, text in self._db.execute("SELECT * FROM chunks").fetchall():
            chunk, outcome = Chunk(*values), Outcome(**json.loads(text)) if text else None
            parts = {
                part(table, chunk.id, suffix)
                for table, suffix in written
                if (outcome.rows(table) if outcome else table == "files")
            }
            if outcome is None and (parts & there or chunk.id in begun):
                in_work.append(chunk)
            elif outcome is not None and not parts <= there:
                lost.append(chunk)
                self._forget(chunk)
        shutil.rmtree(self.out / ATTEMPTS, ignore_errors=True)
        return in_work, lost

    def forget(self, code: str) -> list[Chunk]:
        """Chunks in which files have this error: they are pending again."""
        chunks = []
        for *values, text in self._db.execute("SELECT * FROM chunks WHERE outcome IS NOT NULL").fetchall():
            if code in json.loads(text)["errors"]:
                chunks.append(Chunk(*values))
                self._forget(chunks[-1])
        return chunks

    def _forget(self, chunk: Chunk) -> None:
        self._db.execute("UPDATE chunks SET outcome = NULL WHERE id = ?", (chunk.id,))

    def pending(self) -> list[Chunk]:
        """Chunks without an outcome."""
        rows = "SELECT id, files, bytes, start, length FROM chunks WHERE outcome IS NULL ORDER BY id"
        return [Chunk(*row) for row in self._db.execute(rows)]

    def record(self, chunk: int, outcome: Outcome) -> None:
        """Store the outcome of a chunk, whose parts have been published."""
        self._db.execute("UPDATE chunks SET outcome = ? WHERE id = ?", (json.dumps(asdict(outcome)), chunk))

    def total(self) -> Outcome:
        """Sum of the outcomes of all runs."""
        total = Outcome()
        for (text,) in self._db.execute("SELECT outcome FROM chunks WHERE outcome IS NOT NULL"):
            total += Outcome(**json.loads(text))
        return total

    def count(self) -> int:
        """Number of files, done or not."""
        (files,) = self._db.execute("SELECT count(*) FROM files").fetchone()
        return int(files)


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return value[:12] if isinstance(value, str) else str(value)

"""Files and settings of a job: what the driver and its workers share.

`DIR/manifest/chunks.jsonl` has the paths of a chunk as a line of JSON. A part of a table is named after its
chunk, so a chunk that is repeated replaces its parts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

FOLDER = "manifest"
LISTS = "chunks.jsonl"
ATTEMPTS = "tmp"  # one folder for every attempt at a chunk; removed when it has succeeded
SUFFIXES = ("parquet", "csv")  # of tables
TABLES = ("files", "windows", "detections", "embeddings")


@dataclass(frozen=True)
class JobSettings:
    """What results depend on: a run resumes only with the same."""

    model: str  # SHA-256 of the file that was given
    top_k: int
    min_confidence: float
    overlap: float | None  # seconds; None: half a window
    evidence: bool
    formats: tuple[str, ...]
    root: str  # of the folders of label tracks; not compared
    embeddings: bool = False
    detections: bool = False

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables of the run, see `TABLES`."""
        wanted = {"detections": self.detections, "embeddings": self.embeddings}
        return tuple(table for table in TABLES if wanted.get(table, True))


@dataclass(frozen=True)
class Chunk:
    """Files that are classified, written and recorded together."""

    id: int
    files: int
    bytes: int
    start: int  # of its line in `chunks.jsonl`
    length: int


@dataclass(frozen=True)
class Listed:
    """How a listing compares with earlier ones."""

    new: int
    known: int
    duplicates: int
    gone: int  # files of an earlier listing that this one does not have


@dataclass
class Outcome:
    """Counts of a chunk, or of several."""

    files: int = 0
    windows: int = 0
    audio_seconds: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)  # code -> files
    window_rows: int = 0  # of the table `windows`: short files and unsure windows have none
    detections: int = 0  # rows of that table

    def rows(self, table: str) -> int:
        """Rows of a table: without any it has no part of the chunk."""
        counts = (self.files, self.window_rows, self.detections, self.windows)
        return dict(zip(TABLES, counts, strict=True))[table]

    def __iadd__(self, other: Outcome) -> Self:
        self.files += other.files
        self.windows += other.windows
        self.audio_seconds += other.audio_seconds
        self.errors = dict(Counter(self.errors) + Counter(other.errors))
        self.window_rows += other.window_rows
        self.detections += other.detections
        return self


def pairs(tables: Sequence[str], suffixes: Sequence[str]) -> list[tuple[str, str]]:
    """Table and suffix of what a run writes: that of embeddings is Parquet, whatever the others are."""
    kinds = {"embeddings": ("parquet",)}
    return [(table, suffix) for table in tables for suffix in kinds.get(table, suffixes)]


def place(table: str, suffix: str) -> str:
    """The folder with the parts of a table, below the output folder.

    Those of CSV are joined at the end; in the folder of the Parquet parts, readers of that folder would fail.
    """
    return table if suffix == "parquet" else f"{FOLDER}/csv/{table}"


def part(table: str, chunk: int, suffix: str) -> str:
    """Path of a chunk's part of a table, below the output folder."""
    return f"{place(table, suffix)}/part-{chunk:07d}.{suffix}"


def read_paths(out: Path, start: int, length: int) -> list[str]:
    """The paths of a chunk."""
    with (out / FOLDER / LISTS).open("rb") as file:
        file.seek(start)
        paths: list[str] = json.loads(file.read(length))
    return paths

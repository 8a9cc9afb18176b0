"""Answers -> rows -> parts of tables: Parquet, CSV and label tracks for Audacity.

The columns are documented in docs/batch.md and do not depend on the model or on what a file holds.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audiocnn.arrays import FloatArray
from audiocnn.batch.scorer import Evidence, FileAnswer, WindowAnswer
from audiocnn.config import Config
from audiocnn.model.frontend import map_axes

FORMATS = ("parquet", "csv", "audacity")
Row = dict[str, Any]
_ROWS_IN_MEMORY = 2048
_PREDICTIONS = pa.list_(pa.struct([("class", pa.string()), ("confidence", pa.float32())]))
_EVIDENCE = pa.struct(
    [
        ("class", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("peak_hz", pa.float32()),
        ("peak_seconds", pa.float64()),
        ("shape", pa.list_(pa.int32())),
        ("values", pa.list_(pa.float32())),
    ]
)
_NAMED = [("class", pa.string()), ("confidence", pa.float32()), ("predictions", _PREDICTIONS)]
FILES = pa.schema(
    [
        ("file", pa.string()),
        *_NAMED,
        ("is_unknown", pa.bool_()),
        ("is_silent", pa.bool_()),
        ("duration", pa.float64()),
        ("num_windows", pa.int32()),
        ("warnings", pa.list_(pa.string())),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("model", pa.string()),
        ("evidence", _EVIDENCE),
    ]
)
WINDOWS = pa.schema(
    [("file", pa.string()), ("start", pa.float64()), ("end", pa.float64()), *_NAMED, ("evidence", _EVIDENCE)]
)
SCHEMAS = {"files": FILES, "windows": WINDOWS}


@dataclass(frozen=True)
class RowBuilder:
    """What rows say, and about which model."""

    config: Config
    model: str  # first 12 characters of its SHA-256
    top_k: int
    min_confidence: float

    def file_row(self, answer: FileAnswer) -> Row:
        """One row of the table `files`; what an error leaves open is None."""
        row = dict.fromkeys(FILES.names) | {"file": shown(answer.path), "model": self.model}
        row |= {"warnings": answer.warnings, "num_windows": answer.num_windows}
        if answer.error:
            code, message = answer.error
            return row | {"error_code": code, "error_message": message, "predictions": []}
        threshold = self.config.unknown_threshold
        return row | {
            **self._named(answer.probs),
            "is_unknown": threshold is not None and float(answer.probs.max()) < threshold,
            "is_silent": answer.is_silent,
            "duration": round(answer.seconds, 3),
            "evidence": self._evidence(answer.evidence),
        }

    def window_row(self, file: FileAnswer, window: WindowAnswer) -> Row | None:
        """One row of the table `windows`; None if no class is as sure as it has to be."""
        named = self._named(window.probs)
        if named["class"] is None:
            return None
        span = {"start": round(window.start, 3), "end": round(window.end, 3)}
        return {"file": shown(file.path), **span, **named, "evidence": self._evidence(window.evidence)}

    def _named(self, probs: FloatArray) -> Row:
        order = np.argsort(-probs, kind="stable")[: self.top_k]
        names = self.config.class_names
        rows = [
            {"class": names[label], "confidence": float(probs[label])}
            for label in order
            if probs[label] >= self.min_confidence
        ]
        return {**(rows[0] if rows else {"class": None, "confidence": None}), "predictions": rows}

    def _evidence(self, evidence: Evidence | None) -> Row | None:
        if evidence is None:
            return None
        hz, seconds = map_axes(evidence.values.shape, self.config.frontend)
        heard = [second for second in seconds if second < evidence.end - evidence.start]
        row, column = divmod(int(evidence.values[:, : len(heard)].argmax()), len(heard))
        return {
            "class": self.config.class_names[evidence.label],
            "start": round(evidence.start, 3),
            "end": round(evidence.end, 3),
            "peak_hz": hz[row],
            "peak_seconds": round(evidence.start + seconds[column], 3),
            "shape": list(evidence.values.shape),
            "values": evidence.values.ravel(),
        }


def shown(path: str) -> str:
    """A path as text: bytes that are no UTF-8 become `\\xff`, for no table can hold them."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class Writer(Protocol):
    """A part of a table while it is written."""

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        ...

    def close(self) -> None:
        """All is in the file."""
        ...


class ParquetPart:
    """Zstandard, a row group for each `write`."""

    def __init__(self, path: Path, table: str, report: RowBuilder) -> None:
        self._schema = SCHEMAS[table]
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")

    def write(self, rows: Sequence[Row]) -> None:
        """See `Writer`."""
        self._writer.write_table(pa.Table.from_pylist(list(rows), self._schema))

    def close(self) -> None:
        """See `Writer`."""
        self._writer.close()


class CsvPart:
    """UTF-8 with a header line; predictions as columns, of the evidence only where its peak is."""

    def __init__(self, path: Path, table: str, report: RowBuilder) -> None:
        self._report = report
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, csv_columns(table, report.top_k))
        self._writer.writeheader()

    def write(self, rows: Sequence[Row]) -> None:
        """See `Writer`."""
        self._writer.writerows(map(_flat, rows))

    def close(self) -> None:
        """See `Writer`."""
        self._file.close()


def csv_columns(table: str, top_k: int) -> list[str]:
    """The header of a CSV table."""
    columns: list[str] = []
    for name in SCHEMAS[table].names:
        if name == "predictions":
            columns += [f"{key}_{rank}" for rank in range(2, top_k + 1) for key in ("class", "confidence")]
        elif name == "evidence":
            columns += ["evidence_hz", "evidence_seconds"]
        else:
            columns.append(name)
    return columns


def _flat(row: Row) -> Row:
    flat = {name: value for name, value in row.items() if name not in ("predictions", "evidence")}
    for rank, prediction in enumerate(row["predictions"][1:], start=2):
        flat[f"class_{rank}"] = prediction["class"]
        flat[f"confidence_{rank}"] = f"{prediction['confidence']:.6f}"
    if row["confidence"] is not None:
        flat["confidence"] = f"{row['confidence']:.6f}"
    if "warnings" in row:
        flat["warnings"] = " ".join(row["warnings"])
    if evidence := row["evidence"]:
        flat |= {"evidence_hz": evidence["peak_hz"], "evidence_seconds": evidence["peak_seconds"]}
    return flat


class AudacityWriter:
    """A label track for every sound: a line with start, end and class for every window (or short file)."""

    def __init__(self, out: Path, attempt: Path, root: str) -> None:
        self._folder, self._root = out / "audacity", root
        self._path = attempt / "labels.txt"
        self._file = self._path.open("w", encoding="utf-8")

    def add(self, start: float, end: float, row: Mapping[str, Any]) -> None:
        """A line of the sound that is being heard."""
        self._file.write(f"{start:.3f}\t{end:.3f}\t{row['class']} {row['confidence']:.2f}\n")

    def finish(self, path: str, *, failed: bool) -> None:
        """The sound is over: its track gets its name, or is thrown away, with that of an earlier attempt.

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
        """After the last sound."""
        self._file.close()


def label_name(path: str, root: str) -> str:
    """Where a sound's label track is, below `audacity/`: as the sound is below the root of the inputs."""
    inside = os.path.commonpath([path, root]) == root
    name = os.path.relpath(path, root) if inside else path.lstrip("/")
    folder, base = os.path.split(name)
    if len(os.fsencode(base)) > 251:  # with .txt it would be too long for a name
        base = base[:50] + "-" + hashlib.sha256(os.fsencode(base)).hexdigest()[:16]
    return os.path.join(folder, base + ".txt")


def publish(temporary: Path, target: Path) -> None:
    """Give a complete file its name, on the disk before it can be seen."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(target)


class ChunkWriter:
    """The rows of one chunk, in an attempt's folder until `publish`."""

    def __init__(
        self, attempt: Path, report: RowBuilder, formats: Sequence[str], labels: AudacityWriter | None
    ) -> None:
        self._attempt, self._report, self._labels = attempt, report, labels
        kinds: dict[str, type[ParquetPart] | type[CsvPart]] = {"parquet": ParquetPart, "csv": CsvPart}
        self._kinds = {name: kinds[name] for name in formats if name in kinds}
        self._rows: dict[str, list[Row]] = {"files": [], "windows": []}
        self._writers: dict[tuple[str, str], Writer] = {}
        self.window_rows = 0

    def window(self, file: FileAnswer, answer: WindowAnswer) -> None:
        """A window of a file that is still being heard."""
        if row := self._report.window_row(file, answer):
            self.window_rows += 1
            self._append("windows", row)
            if self._labels:
                self._labels.add(row["start"], row["end"], row)

    def file(self, answer: FileAnswer) -> None:
        """A file that is over."""
        row = self._report.file_row(answer)
        if self._labels:
            if answer.num_windows == 1 and row["class"]:
                self._labels.add(0.0, answer.seconds, row)
            try:
                self._labels.finish(answer.path, failed=answer.error is not None)
            except OSError as error:  # a folder has that name, say
                row["warnings"] = [*row["warnings"], f"It has no label track: {error}"]
        self._append("files", row)

    def _append(self, table: str, row: Row) -> None:
        self._rows[table].append(row)
        if len(self._rows[table]) == _ROWS_IN_MEMORY:
            self._flush(table)

    def _flush(self, table: str) -> None:
        for suffix, kind in self._kinds.items() if self._rows[table] else ():
            if (table, suffix) not in self._writers:
                path = self._attempt / f"{table}.{suffix}"
                self._writers[table, suffix] = kind(path, table, self._report)
            self._writers[table, suffix].write(self._rows[table])
        self._rows[table] = []

    def publish(self, targets: Mapping[tuple[str, str], Path]) -> None:
        """All rows are there: the parts get their names, those of `files` last; what an earlier attempt had
        and this one has not is removed."""
        if self._labels:
            self._labels.close()
        for table in ("windows", "files"):
            self._flush(table)
            for suffix in self._kinds:
                if writer := self._writers.get((table, suffix)):
                    writer.close()
                    publish(self._attempt / f"{table}.{suffix}", targets[table, suffix])
                else:
                    targets[table, suffix].unlink(missing_ok=True)

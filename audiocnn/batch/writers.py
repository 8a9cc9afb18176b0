"""Results -> rows -> parts of tables: Parquet, CSV and label tracks for Audacity.

The columns are documented in docs/batch.md and do not depend on the model or on the contents of a file.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audiocnn.arrays import FloatArray
from audiocnn.batch.aggregate import ClassEvidence, FileResult, WindowEmbedding, WindowResult
from audiocnn.batch.audacity import AudacityTrackWriter
from audiocnn.batch.state import TABLES
from audiocnn.config import Config
from audiocnn.detection_writers import Recording, arrow_row, arrow_schema, to_row
from audiocnn.detections import Detection
from audiocnn.embedding_table import parquet_schema
from audiocnn.files import as_text, publish
from audiocnn.model.mel import map_axes
from audiocnn.recording_time import recording_start

FORMATS = ("parquet", "csv", "audacity")
Row = dict[str, Any]
_ROWS_IN_MEMORY, _VECTORS_IN_MEMORY = 2048, 256
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
SCHEMAS = {"files": FILES, "windows": WINDOWS, "detections": arrow_schema()}


@dataclass(frozen=True)
class RowBuilder:
    """Makes rows of results."""

    config: Config
    model: str  # SHA-256 of its file
    top_k: int
    min_confidence: float

    def file_row(self, result: FileResult) -> Row:
        """One row of the table `files`; with an error, the columns of an answer are None."""
        row = dict.fromkeys(FILES.names) | {"file": as_text(result.path), "model": self.model[:12]}
        row |= {"warnings": result.warnings, "num_windows": result.num_windows}
        if result.error:
            code, message = result.error
            return row | {"error_code": code, "error_message": message, "predictions": []}
        threshold = self.config.unknown_threshold
        return row | {
            **self._named(result.probs),
            "is_unknown": threshold is not None and float(result.probs.max()) < threshold,
            "is_silent": result.is_silent,
            "duration": round(result.seconds, 3),
            "evidence": self._evidence(result.evidence),
        }

    def window_row(self, file: FileResult, window: WindowResult) -> Row | None:
        """One row of the table `windows`; None if no class reaches `min_confidence`."""
        named = self._named(window.probs)
        if named["class"] is None:
            return None
        span = {"start": round(window.start, 3), "end": round(window.end, 3)}
        return {"file": as_text(file.path), **span, **named, "evidence": self._evidence(window.evidence)}

    def schema(self, table: str) -> pa.Schema:
        """The columns of a table."""
        if table == "embeddings":
            assert self.config.num_features is not None, "checked at the start of the run"
            return parquet_schema(self.config.num_features, self.model)
        return SCHEMAS[table]

    def detection_rows(self, path: str, detections: Sequence[Detection]) -> list[Row]:
        """Rows of the table `detections`; times without a zone in the file's metadata or name are in UTC."""
        if not detections:
            return []
        frontend = self.config.frontend
        nyquist = min(frontend.f_max, frontend.sample_rate / 2)
        recording = Recording(Path(path), recording_start(path, UTC), nyquist)
        return [to_row(recording, one) for one in detections]

    def _named(self, probs: FloatArray) -> Row:
        order = np.argsort(-probs, kind="stable")[: self.top_k]
        names = self.config.class_names
        rows = [
            {"class": names[label], "confidence": float(probs[label])}
            for label in order
            if probs[label] >= self.min_confidence
        ]
        return {**(rows[0] if rows else {"class": None, "confidence": None}), "predictions": rows}

    def _evidence(self, evidence: ClassEvidence | None) -> Row | None:
        if evidence is None:
            return None
        hz, seconds = map_axes(evidence.values.shape, self.config.frontend)
        num_real = sum(second < evidence.end - evidence.start for second in seconds)  # without repetition
        row, column = divmod(int(evidence.values[:, :num_real].argmax()), num_real)
        return {
            "class": self.config.class_names[evidence.label],
            "start": round(evidence.start, 3),
            "end": round(evidence.end, 3),
            "peak_hz": hz[row],
            "peak_seconds": round(evidence.start + seconds[column], 3),
            "shape": list(evidence.values.shape),
            "values": evidence.values.ravel(),
        }


class ParquetPart:
    """A part of a table while it is written: Zstandard, a row group for each `write`."""

    def __init__(self, path: Path, table: str, builder: RowBuilder) -> None:
        self._schema = builder.schema(table)
        self._convert = arrow_row if table == "detections" else dict[str, Any]
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        self._writer.write_table(pa.Table.from_pylist([self._convert(row) for row in rows], self._schema))

    def close(self) -> None:
        """Complete the file."""
        self._writer.close()


class CsvPart:
    """The same in UTF-8 with a header line; predictions as columns, of the evidence only its peak."""

    def __init__(self, path: Path, table: str, builder: RowBuilder) -> None:
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, csv_columns(table, builder.top_k))
        self._writer.writeheader()

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        self._writer.writerows(map(_flat, rows))

    def close(self) -> None:
        """Complete the file."""
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
    for rank, prediction in enumerate(row.get("predictions", [])[1:], start=2):
        flat[f"class_{rank}"] = prediction["class"]
        flat[f"confidence_{rank}"] = f"{prediction['confidence']:.6f}"
    if row.get("confidence") is not None:
        flat["confidence"] = f"{row['confidence']:.6f}"
    if "warnings" in row:
        flat["warnings"] = " ".join(row["warnings"])
    if evidence := row.get("evidence"):
        flat |= {"evidence_hz": evidence["peak_hz"], "evidence_seconds": evidence["peak_seconds"]}
    return flat


_KINDS: dict[str, type[ParquetPart | CsvPart]] = {"parquet": ParquetPart, "csv": CsvPart}


class ChunkWriter:
    """The rows of one chunk, in an attempt's folder until `publish`."""

    def __init__(
        self, attempt: Path, builder: RowBuilder, formats: Sequence[str], labels: AudacityTrackWriter | None
    ) -> None:
        self._attempt, self._builder, self._labels = attempt, builder, labels
        self._kinds = {name: _KINDS[name] for name in formats if name in _KINDS}
        self._rows: dict[str, list[Row]] = {table: [] for table in TABLES}
        self._writers: dict[tuple[str, str], ParquetPart | CsvPart] = {}
        self.window_rows = 0

    def window(self, file: FileResult, window: WindowResult) -> None:
        """A window of a file that is not finished."""
        if row := self._builder.window_row(file, window):
            self.window_rows += 1
            self._append("windows", row)
            if self._labels:
                self._labels.add(row["start"], row["end"], row)

    def embedding(self, window: WindowEmbedding) -> None:
        """The feature vector of a window."""
        span = {"start": window.start, "end": window.end}
        self._append("embeddings", {"file": as_text(window.path), **span, "embedding": window.vector})

    def file(self, result: FileResult) -> None:
        """A file that is finished."""
        row = self._builder.file_row(result)
        if self._labels:
            if result.num_windows == 1 and row["class"]:
                self._labels.add(0.0, result.seconds, row)
            try:
                self._labels.finish(result.path, failed=result.error is not None)
            except OSError as error:  # a folder has that name, say
                row["warnings"] = [*row["warnings"], f"It has no label track: {error}"]
        self._append("files", row)

    def detections(self, path: str, detections: Sequence[Detection]) -> None:
        """The events of a file."""
        for row in self._builder.detection_rows(path, detections):
            self._append("detections", row)

    def _append(self, table: str, row: Row) -> None:
        self._rows[table].append(row)
        if len(self._rows[table]) == (_VECTORS_IN_MEMORY if table == "embeddings" else _ROWS_IN_MEMORY):
            self._flush(table)

    def _flush(self, table: str) -> None:
        for suffix, kind in self._kinds_of(table).items() if self._rows[table] else ():
            if (table, suffix) not in self._writers:
                path = self._attempt / f"{table}.{suffix}"
                self._writers[table, suffix] = kind(path, table, self._builder)
            self._writers[table, suffix].write(self._rows[table])
        self._rows[table] = []

    def _kinds_of(self, table: str) -> dict[str, type[ParquetPart | CsvPart]]:
        return {"parquet": ParquetPart} if table == "embeddings" else self._kinds

    def publish(self, targets: Mapping[tuple[str, str], Path]) -> None:
        """Give the parts their names, those of `files` last; parts that only an earlier attempt had are
        removed."""
        if self._labels:
            self._labels.close()
        for table in reversed(TABLES):
            self._flush(table)
            for suffix in self._kinds_of(table):
                if writer := self._writers.get((table, suffix)):
                    writer.close()
                    publish(self._attempt / f"{table}.{suffix}", targets[table, suffix])
                else:
                    targets[table, suffix].unlink(missing_ok=True)

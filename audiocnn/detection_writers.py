"""Detections as files: Raven selection tables, Audacity labels, CSV, Parquet, NDJSON, clips."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import soundfile

from audiocnn.arrays import FloatArray
from audiocnn.audio.audio_input import opened
from audiocnn.audio.decoder import stream
from audiocnn.config import UNLIMITED
from audiocnn.detections import Detection
from audiocnn.errors import AudioError
from audiocnn.files import as_text, replacing, short_name, write_text
from audiocnn.printing import json_line
from audiocnn.recording_time import time_at

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("file", "class", "start", "end", "peak_confidence", "mean_confidence", "start_time", "end_time")
_RAVEN_COLUMNS = (
    *("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)"),
    *("Begin Path", "File Offset (s)", "Class", "Confidence"),
)
_ROWS_IN_MEMORY = 2048
_STEM_BYTES = 180  # of 255 that a file's name may have


@dataclass(frozen=True)
class Recording:
    """A file that detections are of."""

    path: Path
    start: datetime | None  # time of the first sample, with zone; None: unknown
    nyquist: float  # Hz, the highest frequency that the model sees


def to_row(recording: Recording, detection: Detection) -> dict[str, Any]:
    """`COLUMNS` of a detection; times are ISO 8601 with zone, or None."""
    assert detection.end is not None, "the event is not over"
    return {
        "file": as_text(recording.path),
        **detection.to_dict(),
        "start_time": time_at(recording.start, detection.start),
        "end_time": time_at(recording.start, detection.end),
    }


class DetectionWriter(Protocol):
    """Takes the detections of one file after another."""

    def write(self, recording: Recording, detections: Sequence[Detection]) -> None:
        """All detections of a file, in the order of their start; raises `OSError`."""
        ...


class NdjsonWriter:
    """One JSON object a line for each detection, on standard output."""

    def write(self, recording: Recording, detections: Sequence[Detection]) -> None:
        """See `DetectionWriter`."""
        for detection in detections:
            print(json_line(to_row(recording, detection)), flush=True)


class CsvWriter:
    """One table of all files, UTF-8 with a header."""

    def __init__(self, file: IO[str]) -> None:
        self._writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        self._writer.writeheader()

    def write(self, recording: Recording, detections: Sequence[Detection]) -> None:
        """See `DetectionWriter`."""
        self._writer.writerows(to_row(recording, detection) for detection in detections)


def arrow_schema() -> pa.Schema:
    """Types of `COLUMNS`; `start_time` and `end_time` are timestamps in UTC."""
    import pyarrow as pa  # here: the other formats do without it

    text, number, moment = pa.string(), pa.float64(), pa.timestamp("ms", "UTC")
    types = [text, text, number, number, number, number, moment, moment]
    return pa.schema(list(zip(COLUMNS, types, strict=True)))


def arrow_row(row: dict[str, Any]) -> dict[str, Any]:
    """What `to_row` returns, with times instead of their texts."""
    return row | {name: row[name] and datetime.fromisoformat(row[name]) for name in COLUMNS[-2:]}


class ParquetWriter:
    """One table of all files, see `arrow_schema`."""

    def __init__(self, path: Path) -> None:
        """Raises `ModuleNotFoundError` without pyarrow."""
        import pyarrow as pa  # here: the other formats do without it
        from pyarrow import parquet

        self._pa, self._schema = pa, arrow_schema()
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def write(self, recording: Recording, detections: Sequence[Detection]) -> None:
        """See `DetectionWriter`."""
        for detection in detections:
            self._rows.append(arrow_row(to_row(recording, detection)))
        if len(self._rows) >= _ROWS_IN_MEMORY:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(self._pa.Table.from_pylist(self._rows, self._schema))
        self._rows = []

    def close(self) -> None:
        """Write what is left and the footer."""
        self._flush()
        self._writer.close()


class RavenWriter:
    """A selection table for each file, `FOLDER/NAME.selections.txt` (Raven Pro and Raven Lite)."""

    def __init__(self, folder: Path) -> None:
        self._names = _Names(folder)

    def write(self, recording: Recording, detections: Sequence[Detection]) -> None:
        """See `DetectionWriter`."""
        path = self._names.path(recording.path, ".selections.txt")
        with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(_RAVEN_COLUMNS)
            writer.writerows(_raven_rows(recording, detections))


def _raven_rows(recording: Recording, detections: Sequence[Detection]) -> Iterator[list[object]]:
    for number, one in enumerate(detections, start=1):
        span = [f"{one.start:.3f}", f"{one.end:.3f}", "0", f"{recording.nyquist:g}"]
        source = [as_text(recording.path.absolute()), f"{one.start:.3f}"]
        yield [number, "Spectrogram 1", 1, *span, *source, one.label, f"{one.peak_confidence:.4f}"]


class AudacityWriter:
    """A label track for each file, `FOLDER/NAME.txt` (Audacity: File, Import, Labels)."""

    def __init__(self, folder: Path) -> None:
        self._names = _Names(folder)

    def write(self, recording: Recording, detections: Sequence[Detection]) -> None:
        """See `DetectionWriter`."""
        lines = (
            f"{one.start:.6f}\t{one.end:.6f}\t{one.label} {one.peak_confidence:.2f}\n" for one in detections
        )
        write_text(self._names.path(recording.path, ".txt"), "".join(lines))


class _Names:
    """File names in one folder for files of many: two of one name get a number."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._taken: dict[str, int] = {}

    def path(self, source: Path, suffix: str) -> Path:
        name = stem = short_name(source.stem, _STEM_BYTES)
        while name in self._taken:
            self._taken[stem] += 1
            name = f"{stem}-{self._taken[stem]}"
        self._taken[name] = 1
        return self.folder / f"{name}{suffix}"


class ClipWriter:
    """Cuts each detection out of its file: `FOLDER/NAME_START-END_CLASS.wav`, mono, 16 bits."""

    def __init__(self, folder: Path, *, padding: float, sample_rate: int) -> None:
        """`padding` in seconds, before and after; `sample_rate` in Hz."""
        self._names = _Names(folder)
        self._padding, self._rate = padding, sample_rate

    def write(self, recording: Recording, detections: Sequence[Detection]) -> None:
        """See `DetectionWriter`; reads the file once more, in the memory of one block."""
        if detections:
            # An error of the sound: the first reading has told it.
            with suppress(AudioError), opened(recording.path) as file:
                blocks = stream(file, sample_rate=self._rate, limits=UNLIMITED, warnings=[])
                self.cut(recording, detections, blocks)

    def cut(
        self, recording: Recording, detections: Sequence[Detection], blocks: Iterable[FloatArray]
    ) -> None:
        """Write the clips of a file that comes in blocks `(num_samples,)`. Raises `OSError`."""
        try:
            self._cut(recording, detections, blocks)
        except soundfile.LibsndfileError as error:  # decoding has errors of its own
            raise OSError(f"clips cannot be written into {self._names.folder}: {error}") from error

    def _cut(
        self, recording: Recording, detections: Sequence[Detection], blocks: Iterable[FloatArray]
    ) -> None:
        name = self._names.path(recording.path, "").name
        waiting = [self._span(one) for one in sorted(detections, key=lambda one: one.start, reverse=True)]
        open_files: list[tuple[int, int, soundfile.SoundFile]] = []
        first = 0
        with ExitStack() as stack:
            for block in blocks:
                last = first + len(block)
                while waiting and waiting[-1][0] < last:
                    start, end, one = waiting.pop()
                    open_files.append((start, end, stack.enter_context(self._create(name, one))))
                for start, end, file in open_files:
                    file.write(block[max(0, start - first) : end - first])
                    if end <= last:
                        file.close()
                open_files = [each for each in open_files if each[1] > last]
                first = last

    def _span(self, one: Detection) -> tuple[int, int, Detection]:
        assert one.end is not None, "the event is not over"
        start, end = one.start - self._padding, one.end + self._padding
        return max(0, round(start * self._rate)), round(end * self._rate), one

    def _create(self, name: str, one: Detection) -> soundfile.SoundFile:
        label = re.sub(r"[^\w.-]", "_", one.label)
        path = self._names.folder / f"{name}_{one.start:09.3f}-{one.end:09.3f}_{label}.wav"
        return soundfile.SoundFile(os.fsencode(path), "w", self._rate, 1, "PCM_16")

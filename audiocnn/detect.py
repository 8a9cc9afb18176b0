"""Find events in sound files of any length, without a server: `audiocnn detect recording.wav`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from pathlib import Path
from typing import IO, Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from audiocnn import detection_writers as writers
from audiocnn import inputs
from audiocnn.classifier import Classifier
from audiocnn.detection_writers import DetectionWriter, Recording
from audiocnn.detections import HOP_SECONDS, MERGE_GAP_SECONDS, Detection, hop_of, rules_of
from audiocnn.errors import AudioError, BadOptionError
from audiocnn.file_detector import FileDetector
from audiocnn.files import as_text, replacing
from audiocnn.inputs import Notes
from audiocnn.labels import describe
from audiocnn.options import Options
from audiocnn.recording_time import parse_start, recording_start, time_at

_DAY = 86_400.0  # seconds

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class TableWriter:
    """A table for people, printed at the end."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._names = inputs.short_names(paths)
        self._table = Table("file", "start", "end", "time", "", "class", "confidence")

    def write(self, recording: Recording, detections: Sequence[Detection]) -> None:
        """See `DetectionWriter`."""
        name = escape(as_text(self._names[str(recording.path)]))
        for one in detections:
            span = (f"{one.start:.2f}", f"{one.end:.2f}", time_at(recording.start, one.start) or "")
            emoji, confidence = describe(one.label).emoji, f"{one.peak_confidence:.3f}"
            self._table.add_row(name, *span, emoji, escape(one.label), confidence)
            name = ""

    def close(self) -> None:
        """Print it; nothing if it has no rows."""
        if self._table.row_count:
            Console().print(self._table)


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise BadOptionError(f"--timezone: there is no {name}; write Europe/Berlin, say") from error


def _start_of(text: str | None, zone: tzinfo, paths: Sequence[str]) -> Callable[[str], datetime | None]:
    """The time of the first sample of a path."""
    if text is None:
        return lambda path: recording_start(path, zone)
    if len(paths) > 1:
        raise BadOptionError(f"--start-time is that of one file, but there are {len(paths)}")
    try:
        start = parse_start(text, zone)
    except ValueError as error:
        raise BadOptionError(f"--start-time: {error}; write 2026-11-25T06:30:00+01:00, say") from error
    return lambda path: start


def _find_paths(names: Sequence[str]) -> list[str]:
    notes = Notes()
    paths = inputs.find_all(names, notes)
    for line in notes.lines():
        print(f"note: {line}", file=sys.stderr)
    return paths


@dataclass(frozen=True)
class OutputFiles:
    """Where detections go, as the command line says."""

    ndjson: bool
    csv: Path | None
    parquet: Path | None
    raven: Path | None
    audacity: Path | None
    clips: Path | None
    padding: float

    def open(self, stack: ExitStack, sample_rate: int, paths: Sequence[str]) -> list[DetectionWriter]:
        """The writers; what they write is complete when the stack is left without an exception."""
        chosen: list[DetectionWriter] = []
        if self.ndjson:
            chosen.append(writers.NdjsonWriter())
        if self.csv:
            chosen.append(writers.CsvWriter(_text_file(stack, self.csv)))
        if self.parquet:
            parquet = writers.ParquetWriter(stack.enter_context(replacing(self.parquet)))
            stack.callback(parquet.close)
            chosen.append(parquet)
        if self.raven:
            chosen.append(writers.RavenWriter(self.raven))
        if self.audacity:
            chosen.append(writers.AudacityWriter(self.audacity))
        if self.clips:
            chosen.append(writers.ClipWriter(self.clips, padding=self.padding, sample_rate=sample_rate))
        if not chosen:
            table = TableWriter(paths)
            stack.callback(table.close)
            chosen.append(table)
        return chosen


def _text_file(stack: ExitStack, path: Path) -> IO[str]:
    part = stack.enter_context(replacing(path))
    return stack.enter_context(part.open("w", newline="", encoding="utf-8"))


def _run(
    detector: FileDetector,
    paths: Sequence[str],
    start_of: Callable[[str], datetime | None],
    outputs: OutputFiles,
) -> bool:
    """Find and write; whether all files were read to their end."""
    frontend, all_read = detector.classifier.config.frontend, True
    nyquist = min(frontend.f_max, frontend.sample_rate / 2)
    with ExitStack() as stack:
        chosen = outputs.open(stack, frontend.sample_rate, paths)
        for path, detections, error in detector.detect(paths):
            recording = Recording(Path(path), start_of(path), nyquist)
            for writer in chosen:
                writer.write(recording, detections)
            if error:
                all_read = False
                code = error.code if isinstance(error, AudioError) else "unreadable_file"
                print(f"{path}: {code}: {error}", file=sys.stderr)
    return all_read


@app.command(epilog="Example: audiocnn detect recordings/ --raven tables --clips clips --min-duration 0.5")
def detect(
    files: Annotated[list[str], typer.Argument(metavar="FILES", help="Files, folders or globs.")],
    ndjson: Annotated[bool, typer.Option("--ndjson", help="One JSON object a line for each event.")] = False,
    csv: Annotated[Path | None, typer.Option(help="One CSV table of all files.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="One Parquet table of all files.")] = None,
    raven: Annotated[Path | None, typer.Option(help="Folder of Raven selection tables.")] = None,
    audacity: Annotated[Path | None, typer.Option(help="Folder of Audacity label tracks.")] = None,
    clips: Annotated[Path | None, typer.Option(help="Folder of sound files, one for each event.")] = None,
    padding: Annotated[float, typer.Option(min=0, max=_DAY, help="Seconds around each of these.")] = 1.0,
    hop_seconds: Annotated[str, typer.Option(help="From one window to the next.")] = str(HOP_SECONDS),
    min_duration: Annotated[str, typer.Option(help="Seconds of the shortest event.")] = "0",
    merge_gap: Annotated[
        float, typer.Option(min=0, max=_DAY, help="Events of a class no further apart are one (s).")
    ] = MERGE_GAP_SECONDS,
    cooldown: Annotated[
        float, typer.Option(min=0, max=_DAY, help="After an event none of its class begins so long (s).")
    ] = 0.0,
    min_confidence: Annotated[str, typer.Option(help="Raises the model's thresholds.")] = "0",
    classes: Annotated[str | None, typer.Option(help="Only these, comma-separated.")] = None,
    exclude: Annotated[str | None, typer.Option(help="All but these, comma-separated.")] = None,
    start_time: Annotated[
        str | None, typer.Option(help="ISO 8601 time of the first sample (file's metadata or name).")
    ] = None,
    timezone: Annotated[str, typer.Option(help="Of times that name none.")] = "UTC",
    model: Annotated[
        Path | None,
        typer.Option(help=".onnx, .pt or folder (model_store, else the released model)."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (all).")] = None,
) -> None:
    """Find events: class, start, end. Exit code 0: all files read; 1: some not; 2: wrong model or option."""
    given = {"hop_seconds": hop_seconds, "min_duration": min_duration, "min_confidence": min_confidence}
    given |= {name: text for name, text in (("classes", classes), ("exclude", exclude)) if text is not None}
    outputs = OutputFiles(ndjson, csv, parquet, raven, audacity, clips, padding)
    classifier = Classifier.load(model, threads=threads)
    options = Options.parse(given, classifier.config)
    rules = replace(rules_of(options), merge_gap=merge_gap, cooldown=cooldown)
    detector = FileDetector(classifier, rules, hop_of(options, classifier.config))
    paths = _find_paths(files)
    all_read = _run(detector, paths, _start_of(start_time, _zone(timezone), paths), outputs)
    raise typer.Exit(int(not all_read))

"""Classify millions of sound files: `audiocnn batch INPUT... --out DIR`.

Every file gets exactly one row in DIR/files, files longer than a window also one for each window in
DIR/windows; with --detections every event gets one in DIR/detections. A file that cannot be classified gets a
row with an error code. The same command resumes a stopped run. docs/batch.md has the columns and the details.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import typer
from rich.console import Console

from audiocnn import inputs
from audiocnn.batch.aggregate import UNREADABLE
from audiocnn.batch.manifest import Manifest, ResumeError, archive_previous, damaged
from audiocnn.batch.progress import Meter, work
from audiocnn.batch.signals import Stopped, StopSignals
from audiocnn.batch.state import FOLDER, SUFFIXES, Chunk, JobSettings, Outcome, pairs, place
from audiocnn.batch.summary import print_summary, summary_of, write_summary
from audiocnn.batch.writers import FORMATS
from audiocnn.errors import ModelFileError
from audiocnn.inputs import InputError, Notes
from audiocnn.model.engine import Engine
from audiocnn.model.loading import find_model

CHUNK_FILES = 64
WRONG, FAILED = 2, 1  # exit codes; 128 + signal if stopped by one
_RESUMABLE = "Finished files are kept; the same command resumes the run (without --fresh)."


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if unknown := [name for name in names if name not in FORMATS]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(FORMATS)}")
    return names if {"parquet", "csv"} & set(names) else ("parquet", *names)


def settings_of(args: SimpleNamespace) -> JobSettings:
    """What the results depend on. Loads the model once, so that its errors are reported before Ray starts.

    Raises `ModelFileError`, and `InputError` for an overlap out of range.
    """
    engine = Engine(args.model, threads=1)
    window = engine.config.frontend.clip_seconds
    overlap = None if args.overlap == window / 2 else args.overlap
    if overlap is not None and not 0.0 <= overlap <= window - 0.1:
        raise InputError(f"--overlap {overlap:g}: it must be from 0 to {window - 0.1:g} seconds")
    if args.embeddings and engine.config.num_features is None:
        raise ModelFileError(f"{engine.path} has no output embedding: leave --embeddings out")
    return JobSettings(
        model=engine.sha256,
        top_k=min(args.top_k, len(engine.config.class_names)),
        min_confidence=args.min_confidence,
        overlap=overlap,
        evidence=args.evidence,
        formats=args.format,
        root=inputs.root_of(args.inputs),
        embeddings=args.embeddings,
        detections=args.detections,
    )


def say(*lines: str) -> None:
    """Print to standard error, beside the bar."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def prepare(args: SimpleNamespace, manifest: Manifest, settings: JobSettings) -> JobSettings:
    """List the inputs and print how they compare with an earlier run; afterwards the manifest is complete."""
    settings, resumes = manifest.load_or_create(settings)
    suffixes = [suffix for suffix in SUFFIXES if suffix in settings.formats]
    for name, suffix in pairs(settings.tables, suffixes):
        (args.out / place(name, suffix)).mkdir(parents=True, exist_ok=True)
    in_work, lost = manifest.clean_up(suffixes, settings.tables)
    again = manifest.forget(UNREADABLE) if args.retry else []
    notes = Notes()
    listed = manifest.add(inputs.find(args.inputs, notes, limit=args.limit), args.chunk_size)
    say(*notes.lines())
    if listed.duplicates:
        say(f"{listed.duplicates:,} paths were given more than once; each is classified once")
    if resumes:
        say(f"resuming: {manifest.total().files:,} of {manifest.count():,} files are done")
        reasons = [
            "were in progress when it stopped",
            "have lost a part",
            "have files that could not be read",
        ]
        for why, chunks in zip(reasons, (in_work, lost, again), strict=True):
            if chunks:
                files = sum(chunk.files for chunk in chunks)
                say(f"{len(chunks)} chunks ({files:,} files) {why} and are repeated")
        if listed.new:
            say(f"{listed.new:,} files are new")
        if listed.gone:
            say(f"{listed.gone:,} files of earlier runs are not among the inputs now; their rows stay")
    if not manifest.count():
        raise inputs.no_sounds(args.inputs)
    return settings


def process(
    args: SimpleNamespace, manifest: Manifest, settings: JobSettings, signals: StopSignals
) -> dict[str, Any]:
    """Process pending chunks; returns the summary. Raises `ClusterError` as `audiocnn.batch.cluster` does."""
    began = time.monotonic()
    chunks = {chunk.id: chunk for chunk in manifest.pending()}
    outcome, seconds = _process(args, manifest, settings, chunks, signals) if chunks else (Outcome(), 0.0)
    return summary_of(manifest.total(), outcome, time.monotonic() - began, seconds)


def _process(
    args: SimpleNamespace,
    manifest: Manifest,
    settings: JobSettings,
    chunks: Mapping[int, Chunk],
    signals: StopSignals,
) -> tuple[Outcome, float]:
    """The sum of the chunks' outcomes, and the seconds from the start of the first to the end of the last."""
    with signals.deferred():
        from audiocnn.batch import (  # late: Ray takes a second to import, and reads the environment then
            cluster,
            worker,
        )

    folders = tuple(os.path.abspath(text) for text in args.inputs if os.path.isdir(text))
    job = worker.Job(args.out, Path(os.path.abspath(args.model)), args.threads, settings, folders)
    total, first, last = Outcome(), math.inf, -math.inf
    todo = sum(map(work, chunks.values()))
    with (
        cluster.quiet(args.out / FOLDER / "ray.log") as stderr,
        Meter(manifest.count(), manifest.total().files, todo, Console(file=stderr)) as meter,
    ):
        try:
            with signals.deferred():  # interrupted here, Ray crashed at its end
                workers = cluster.start(args.address, args.workers, args.threads)
            with closing(cluster.run(job, list(chunks.values()), workers)) as stream:
                for done in stream:
                    outcome = Outcome(**json.loads(done.outcome))
                    manifest.record(done.chunk, outcome)
                    meter.add(chunks[done.chunk], outcome, done.seconds)
                    last = time.monotonic()
                    first = min(first, last - done.seconds)
                    total += outcome
        finally:
            cluster.stop()
    return total, max(last - first, 0.0)


def _run(args: SimpleNamespace, signals: StopSignals) -> tuple[dict[str, Any], JobSettings]:
    settings = settings_of(args)
    inputs.check(args.inputs)
    if args.fresh and (aside := archive_previous(args.out)):
        say(f"earlier results are now in {aside}")
    with Manifest(args.out) as manifest:
        settings = prepare(args, manifest, settings)
        summary = process(args, manifest, settings, signals)
        write_summary(args.out, settings, summary)
    return summary, settings


def _exit_code_of(error: Exception, out: Path) -> int:
    """Says what happened; raises the error again if it is none of those that a run may have."""
    if isinstance(error, InputError | ModelFileError | ResumeError):
        say(f"error: {error}")
        return WRONG
    if isinstance(error, RuntimeError | OSError | sqlite3.OperationalError):  # ClusterError is a RuntimeError
        say(f"error: {error}", _RESUMABLE)
        return FAILED
    if isinstance(error, sqlite3.Error | json.JSONDecodeError):
        say(f"error: {damaged(out, error)}")
        return WRONG
    raise error


def run(args: SimpleNamespace) -> int:
    """See the exit codes in `--help`."""
    args.out = Path(os.path.abspath(args.out))
    signals = StopSignals()
    try:
        summary, settings = _run(args, signals)
    except (Stopped, Exception) as error:
        if signals.received is None and isinstance(error, Exception):
            return _exit_code_of(error, args.out)
        say(f"stopped. {_RESUMABLE}")
        return 128 + (signals.received or 0)
    print_summary(args.out, summary, settings)
    return 0


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
_EPILOG = """Examples:

audiocnn batch recordings/ --out scores

audiocnn batch 'site?/2026-*/*.flac' --out scores --format csv,audacity --min-confidence 0.5

audiocnn batch list.csv --out scores --overlap 0 --top-k 1

audiocnn batch /shared/recordings --out /shared/scores --address ray-head:6379

Exit codes: 0 every file has its row, errors included; 1 the run failed and can be resumed;
2 wrong options, inputs or model; 130 or 143 stopped, and can be resumed."""


@app.command(epilog=_EPILOG)
def batch(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Folder, file, quoted glob, or CSV with a column filename, file_path or path.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the results; the same one resumes.")],
    format: Annotated[
        str, typer.Option(metavar="F,F", help=f"Of {', '.join(FORMATS)}. There is always a table (parquet).")
    ] = "parquet",
    top_k: Annotated[int, typer.Option(min=1, help="Classes in a row.")] = 5,
    min_confidence: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Leave out less confident classes; empty windows have no row."),
    ] = 0.0,
    overlap: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Of windows of long files (half a window).")
    ] = None,
    evidence: Annotated[bool, typer.Option(help="Add the class activation map of the top class.")] = False,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Add a table of feature vectors, for `audiocnn search`.")
    ] = False,
    detections: Annotated[
        bool, typer.Option("--detections", help="Add a table of events; reads every file once more.")
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "--checkpoint",
            help=".onnx, .pt or folder (model_store, else the released model).",
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Of a Ray cluster, or auto (this machine only).")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes, each with a model (CPUs / threads).")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a worker.")] = 1,
    chunk_size: Annotated[
        int, typer.Option(min=1, help="Files written together, and repeated after a crash.")
    ] = CHUNK_FILES,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N files.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start again; earlier results are moved aside, not deleted.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Repeat files that could not be read (unreadable_file).")
    ] = False,
) -> None:
    """Classify millions of sound files, on this machine or on a Ray cluster; a killed run resumes."""
    values = locals() | {"format": _formats(format)}
    raise typer.Exit(run(SimpleNamespace(**values | {"model": find_model(model)})))

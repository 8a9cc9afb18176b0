"""Score sound files by the million: `audiocnn batch INPUT... --out DIR`.

Every file gets exactly one row in DIR/files, files longer than a window also one for each window in
DIR/windows; what cannot be answered gets a row with an error code. A run that was stopped, by whatever,
goes on when the same command is given again. docs/batch.md has the columns and the details.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import typer
from rich.console import Console

from audiocnn import inputs
from audiocnn.batch.progress import Meter, clock, work
from audiocnn.batch.scorer import UNREADABLE
from audiocnn.batch.state import (
    FOLDER,
    SUFFIXES,
    Manifest,
    Outcome,
    ResumeError,
    Settings,
    archive_previous,
    damaged,
    place,
)
from audiocnn.batch.writers import FORMATS, csv_columns
from audiocnn.errors import ModelFileError
from audiocnn.files import replacing
from audiocnn.inputs import InputError, Notes
from audiocnn.model.engine import Engine
from audiocnn.model.loading import find_model

CHUNK_FILES = 64
WRONG, FAILED = 2, 1  # exit codes; 128 + signal if stopped by one
_GOES_ON = "What is done is kept; the same command goes on from there (without --fresh)."


class Stopped(BaseException):
    """A signal came."""

    def __init__(self, number: int) -> None:
        self.number = number


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if unknown := [name for name in names if name not in FORMATS]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(FORMATS)}")
    return names if {"parquet", "csv"} & set(names) else ("parquet", *names)


def settings_of(args: SimpleNamespace) -> Settings:
    """What the results will depend on. Loads the model once, so that what is wrong with it is said at once.

    Raises `ModelFileError`, and `InputError` for an overlap that is no overlap.
    """
    engine = Engine(args.model, threads=1)
    window = engine.config.frontend.clip_seconds
    overlap = None if args.overlap == window / 2 else args.overlap
    if overlap is not None and not 0.0 <= overlap <= window - 0.1:
        raise InputError(f"--overlap {overlap:g}: it must be from 0 to {window - 0.1:g} seconds")
    return Settings(
        model=engine.sha256,
        top_k=min(args.top_k, len(engine.config.class_names)),
        min_confidence=args.min_confidence,
        overlap=overlap,
        evidence=args.evidence,
        formats=args.format,
        root=inputs.root_of(args.inputs),
    )


def say(*lines: str) -> None:
    """To people, beside the bar."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def prepare(args: SimpleNamespace, manifest: Manifest, settings: Settings) -> Settings:
    """List the inputs and say how they compare with an earlier run; the manifest is ready to work from."""
    settings, resumes = manifest.settle(settings)
    suffixes = [suffix for suffix in SUFFIXES if suffix in settings.formats]
    for folder in (place(name, suffix) for name in ("files", "windows") for suffix in suffixes):
        (args.out / folder).mkdir(parents=True, exist_ok=True)
    in_work, lost = manifest.clean_up(suffixes)
    again = manifest.forget(UNREADABLE) if args.retry else []
    notes = Notes()
    listed = manifest.add(inputs.find(args.inputs, notes, limit=args.limit), args.chunk_size)
    say(*notes.lines())
    if listed.duplicates:
        say(f"{listed.duplicates:,} paths were given more than once; each is scored once")
    if resumes:
        say(f"going on: {manifest.total().files:,} of {manifest.count():,} files are done")
        reasons = ["were in work when it stopped", "have lost a part", "have files that could not be read"]
        for why, chunks in zip(reasons, (in_work, lost, again), strict=True):
            if chunks:
                files = sum(chunk.files for chunk in chunks)
                say(f"{len(chunks)} chunks ({files:,} files) {why} and are done again")
        if listed.new:
            say(f"{listed.new:,} files are new")
        if listed.gone:
            say(f"{listed.gone:,} files of earlier runs are not among the inputs now; they stay")
    if not manifest.count():
        raise InputError(
            f"no sound files in {', '.join(args.inputs)}: names end in {' '.join(sorted(inputs.SUFFIXES))}"
        )
    return settings


def score(args: SimpleNamespace, manifest: Manifest, settings: Settings) -> dict[str, Any]:
    """Do what is pending; returns the summary. Raises `ClusterError` as `audiocnn.batch.cluster` does."""
    from audiocnn.batch import (  # late: Ray takes a second to import, and reads the environment then
        cluster,
        worker,
    )

    began = time.monotonic()
    chunks = {chunk.id: chunk for chunk in manifest.pending()}
    this_run, first, last = Outcome(), began, began
    if chunks:
        todo = sum(map(work, chunks.values()))
        with (
            cluster.quiet(args.out / FOLDER / "ray.log") as stderr,
            Meter(manifest.count(), manifest.total().files, todo, Console(file=stderr)) as meter,
        ):
            try:
                workers = cluster.start(args.address, args.workers, args.threads)
                job = worker.Job(
                    args.out,
                    Path(os.path.abspath(args.model)),
                    args.threads,
                    settings,
                    tuple(os.path.abspath(text) for text in args.inputs if os.path.isdir(text)),
                )
                with closing(cluster.run(job, list(chunks.values()), workers)) as stream:
                    for done in stream:
                        outcome = Outcome(**json.loads(done.outcome))
                        manifest.record(done.chunk, outcome)
                        meter.add(chunks[done.chunk], outcome, done.seconds)
                        last = time.monotonic()
                        first = min(first, last - done.seconds) if this_run.files else last - done.seconds
                        this_run += outcome
            finally:
                cluster.stop()
    return summary_of(manifest.total(), this_run, time.monotonic() - began, last - first)


def summary_of(total: Outcome, run: Outcome, seconds: float, scoring: float) -> dict[str, Any]:
    """Numbers of all runs, and of this one; `real_time_factor` is seconds of scoring per second of audio."""
    errors = sum(total.errors.values())
    return {
        "files": total.files,
        "answered": total.files - errors,
        "errors": dict(sorted(total.errors.items())),
        "windows": total.windows,
        "audio_hours": total.audio_seconds / 3600,
        "run": {
            "files": run.files,
            "seconds": seconds,
            "scoring_seconds": scoring,
            "files_per_second": run.files / scoring if scoring else None,
            "real_time_factor": scoring / run.audio_seconds if run.audio_seconds else None,
        },
    }


def finish(out: Path, settings: Settings, summary: dict[str, Any]) -> None:
    """What is written once all parts are there: whole CSV tables, and the summary."""
    if "csv" in settings.formats:
        for table in ("files", "windows"):
            join_csv(out, table, settings.top_k)
    with replacing(out / "summary.json") as part:
        part.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def join_csv(out: Path, table: str, top_k: int) -> None:
    """`DIR/TABLE.csv` from its parts, in the order of the chunks."""
    header = ",".join(csv_columns(table, top_k)) + "\r\n"
    with replacing(out / f"{table}.csv") as part, part.open("w", newline="", encoding="utf-8") as whole:
        whole.write(header)
        for path in sorted((out / place(table, "csv")).glob("part-*.csv")):
            with path.open(newline="", encoding="utf-8") as file:
                file.readline()
                shutil.copyfileobj(file, whole)


def print_summary(out: Path, summary: dict[str, Any]) -> None:
    """For people, on standard output."""
    run = summary["run"]
    errors = ", ".join(f"{count:,} {code}" for code, count in summary["errors"].items())
    print(f"files      {summary['files']:,}, {summary['answered']:,} answered")
    print(f"errors     {sum(summary['errors'].values()):,}{': ' + errors if errors else ''}")
    print(f"audio      {summary['audio_hours']:,.2f} hours, {summary['windows']:,} windows")
    if run["files"]:
        wall, scoring = clock(run["seconds"]), f"{run['scoring_seconds']:.1f}"
        print(f"this run   {run['files']:,} files in {wall}, {scoring} s of it scoring:")
        factor = run["real_time_factor"]
        real_time = f", real-time factor {factor:.2g}" if factor else ""
        print(f"           {run['files_per_second']:,.0f} clips/s{real_time}")
    print(f"results    {out}/files, {out}/windows, {out}/summary.json")


def _stop(number: int, _: object) -> None:
    raise Stopped(number)


def run(args: SimpleNamespace) -> int:
    """See the exit codes in `--help`."""
    args.out = Path(os.path.abspath(args.out))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        settings = settings_of(args)
        inputs.check(args.inputs)
        if args.fresh and (aside := archive_previous(args.out)):
            say(f"earlier results are in {aside} now")
        with Manifest(args.out) as manifest:
            settings = prepare(args, manifest, settings)
            summary = score(args, manifest, settings)
            finish(args.out, settings, summary)
    except (InputError, ModelFileError, ResumeError) as error:
        say(f"error: {error}")
        return WRONG
    except (
        RuntimeError,
        OSError,
        sqlite3.OperationalError,
    ) as error:  # among them ClusterError, imported when needed
        say(f"error: {error}", _GOES_ON)
        return FAILED
    except (sqlite3.Error, json.JSONDecodeError) as error:
        say(f"error: {damaged(args.out, error)}")
        return WRONG
    except Stopped as stopped:
        say(f"stopped. {_GOES_ON}")
        return 128 + stopped.number
    print_summary(args.out, summary)
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
    model: Annotated[
        Path | None,
        typer.Option("--model", "--checkpoint", help=".onnx, .pt or checkpoint folder (the released model)."),
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
        bool, typer.Option("--fresh", help="Begin anew; earlier results are moved aside, not deleted.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Repeat files that could not be read (unreadable_file).")
    ] = False,
) -> None:
    """Label sound files by the million, on this machine or on a Ray cluster; a killed run resumes."""
    values = locals() | {"format": _formats(format)}
    raise typer.Exit(run(SimpleNamespace(**values | {"model": model or find_model()})))

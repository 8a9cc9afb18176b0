"""What is written and printed at the end of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from audiocnn.batch.progress import clock
from audiocnn.batch.state import JobSettings, Outcome, pairs, place
from audiocnn.batch.writers import csv_columns
from audiocnn.files import replacing, write_text


def summary_of(total: Outcome, run: Outcome, seconds: float, scoring: float) -> dict[str, Any]:
    """Numbers of all runs, and of this one; `real_time_factor`: seconds of processing per second of audio."""
    errors = sum(total.errors.values())
    return {
        "files": total.files,
        "answered": total.files - errors,
        "errors": dict(sorted(total.errors.items())),
        "windows": total.windows,
        "detections": total.detections,
        "audio_hours": total.audio_seconds / 3600,
        "run": {
            "files": run.files,
            "seconds": seconds,
            "scoring_seconds": scoring,
            "files_per_second": run.files / scoring if scoring else None,
            "real_time_factor": scoring / run.audio_seconds if run.audio_seconds else None,
        },
    }


def write_summary(out: Path, settings: JobSettings, summary: dict[str, Any]) -> None:
    """Once all parts are complete: the joined CSV tables, and `summary.json`."""
    if "csv" in settings.formats:
        for table, suffix in pairs(settings.tables, ["csv"]):
            if suffix == "csv":
                join_csv(out, table, settings.top_k)
    write_text(out / "summary.json", json.dumps(summary, indent=1) + "\n")


def join_csv(out: Path, table: str, top_k: int) -> None:
    """`DIR/TABLE.csv` from its parts, in the order of the chunks."""
    header = ",".join(csv_columns(table, top_k)) + "\r\n"
    with replacing(out / f"{table}.csv") as part, part.open("w", newline="", encoding="utf-8") as whole:
        whole.write(header)
        for path in sorted((out / place(table, "csv")).glob("part-*.csv")):
            with path.open(newline="", encoding="utf-8") as file:
                file.readline()
                shutil.copyfileobj(file, whole)


def print_summary(out: Path, summary: dict[str, Any], settings: JobSettings) -> None:
    """On standard output."""
    run = summary["run"]
    errors = ", ".join(f"{count:,} {code}" for code, count in summary["errors"].items())
    print(f"files      {summary['files']:,}, {summary['answered']:,} answered")
    print(f"errors     {sum(summary['errors'].values()):,}{': ' + errors if errors else ''}")
    print(f"audio      {summary['audio_hours']:,.2f} hours, {summary['windows']:,} windows")
    if settings.detections:
        print(f"events     {summary['detections']:,}")
    if run["files"]:
        wall, scoring = clock(run["seconds"]), f"{run['scoring_seconds']:.1f}"
        print(f"this run   {run['files']:,} files in {wall}, {scoring} s of it scoring:")
        factor = run["real_time_factor"]
        real_time = f", real-time factor {factor:.2g}" if factor else ""
        print(f"           {run['files_per_second']:,.0f} clips/s{real_time}")
    print(f"results    {', '.join(f'{out}/{name}' for name in (*settings.tables, 'summary.json'))}")

"""Faults under load: `python -m benchmarks.chaos [--quick]`.

Twelve clients send requests without pauses, four of them through the gateway, while one fault after another
is injected: see `--list`. Each reply is compared with the expected one of its clip. A row for each fault:

  sent, right    requests, and those with the expected class and confidence (within 0.01)
  retried        right, but not at the first attempt
  refused        ended with "busy": expected for an overflow, whose clients do not retry
  failed         a valid clip without a correct reply within 30 s
  lost           sent, without any outcome
  orphans        worker processes that TorchServe does not list
  recovery       seconds from the fault to the last failed attempt, or to the end of the last second
                 without a correct reply
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from audiocnn import command
from audiocnn.classifier import Classifier
from audiocnn.client.client import Client
from audiocnn.model.loading import served_model_path
from audiocnn.torchserve.management_api import Management
from audiocnn.torchserve.properties import read_properties
from benchmarks import corpus, faults
from benchmarks.background_load import BackgroundLoad, ReferenceClip, RequestLog, reference_clips
from benchmarks.command import CONFIG, add_path, status_line
from benchmarks.faults import FAULTS, FaultContext
from benchmarks.server_fixture import ServerFixture, role

CLIPS = 24
_LEAD_SECONDS = 1.5
_STABLE_SECONDS = 3.0
_RECOVERY_SECONDS = 90.0
_SETTLE_SECONDS = 20.0
COUNTS = ("sent", "right", "wrong", "retried", "refused", "failed", "lost", "orphans")
Row = dict[str, Any]


def inject(context: FaultContext, name: str) -> Row:
    """One fault under load, until the server is stable again: a row of the JSON."""
    context.burst = RequestLog()
    began, undone = time.monotonic(), ""
    with BackgroundLoad(context.clips, context.server.inference, context.server.gateway) as load:
        time.sleep(_LEAD_SECONDS)
        injected = time.monotonic()
        try:
            FAULTS[name][1](context)
        except (RuntimeError, psutil.Error, OSError) as error:
            undone = str(error)
        load.wait_stable(injected, stable_seconds=_STABLE_SECONDS, timeout_seconds=_RECOVERY_SECONDS)
    log, recovery = load.log, load.log.last_failure(injected) - injected
    log.add(context.burst)
    counts = {"sent": log.sent, "retried": log.retried, "lost": log.lost, "orphans": orphans(context.server)}
    counts |= {outcome: log.count(outcome) for outcome in ("right", "wrong", "refused", "failed")}
    return {
        "fault": name,
        **{name: counts[name] for name in COUNTS},
        "recovery_s": round(recovery, 2),
        "seconds": round(time.monotonic() - began, 1),
        "why": dict(log.reasons.most_common(5)),
        "undone": undone,  # why the fault did not end, if it did not
    }


def orphans(server: ServerFixture) -> int:
    """Worker processes that TorchServe does not list, after `_SETTLE_SECONDS` at most."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    with contextlib.closing(Management(server.management)) as management:
        while (count := _unlisted(server, management)) and time.monotonic() < deadline:
            time.sleep(0.5)  # a worker is listed when it is ready
    return count


def _unlisted(server: ServerFixture, management: Management) -> int:
    listed = {pid for version in management.versions() for pid in version.pids}
    return sum(process.pid not in listed for process in server.remaining() if role(process) == "worker")


def clips(store: Path, server: ServerFixture) -> tuple[list[ReferenceClip], str]:
    """Sounds of 5 s with their expected results."""
    waveforms, origin = corpus.recordings(CLIPS)
    classifier = Classifier.load(served_model_path(store), threads=1)
    with Client(server.inference) as client:
        return reference_clips(classifier, [corpus.encode(w) for w in waveforms], client), origin


@contextlib.contextmanager
def running_server(names: Sequence[str], config: Path) -> Iterator[ServerFixture]:
    """The server; its logs are on a small disk if a fault fills it."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))) / "server"
        settings = faults.server_settings(read_properties(config))
        server = ServerFixture(folder, config=config, flags=["--grace", "5"], settings=settings)
        if "disk" in names:
            stack.enter_context(faults.log_disk(server.logs))
        yield stack.enter_context(server)


def run(names: Sequence[str], rounds: int, config: Path, console: Console) -> tuple[list[Row], str, int]:
    """All faults; the results, the origin of the clips, and the number of processes left at the end."""
    results = []
    with status_line(console) as progress:
        task = progress.add_task("starting the server", total=None)
        with running_server(names, config) as server:
            known, origin = clips(Path(read_properties(config)["model_store"]), server)
            context = FaultContext(server, known, RequestLog())
            for name in list(names) * rounds:
                progress.update(task, description=f"{name}: {FAULTS[name][0]}")
                results.append(inject(context, name))
                progress.console.print(_line(results[-1]), highlight=False)
            server.stop()
            left = len(server.remaining())
    return results, origin, left


def _line(row: Row) -> str:
    undone = f", NOT OVER: {row['undone']}" if row["undone"] else ""
    counts = f"{row['right']} of {row['sent']} right, {row['failed']} failed"
    return f"{row['fault']}: {counts}, {row['recovery_s']:.1f} s{undone}"


def summary(rows: Sequence[Row], left: int) -> dict[str, object]:
    """The JSON line; `lost`, `failed`, `wrong`, `orphans`, `left` and `undone` must be 0."""
    totals = {name: sum(row[name] for row in rows) for name in COUNTS}
    # "busy" after all retries is a failure, unless the fault fills the queue
    totals["failed"] += sum(row["refused"] for row in rows if row["fault"] not in faults.MAY_REFUSE)
    worst = max(row["recovery_s"] for row in rows)
    undone = sum(bool(row["undone"]) for row in rows)
    return totals | {"left": left, "undone": undone, "max_recovery_s": worst}


def print_table(console: Console, rows: Sequence[Row]) -> None:
    """Print a row for each fault, then the reasons of failures."""
    table = Table("fault", *COUNTS, "recovery s")
    for row in rows:
        table.add_row(
            FAULTS[row["fault"]][0], *(str(row[name]) for name in COUNTS), f"{row['recovery_s']:.1f}"
        )
    console.print(table)
    for row in rows:
        if row["why"]:
            console.print(f"{row['fault']}: {row['why']}", highlight=False)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="each fault once (else three times)")
    parser.add_argument("--only", nargs="+", choices=list(FAULTS), metavar="FAULT", help="these faults only")
    parser.add_argument("--list", action="store_true", help="list the faults")
    add_path(parser, "--config", CONFIG, "configuration of TorchServe")


@command.entry_point(_options, "--quick --only worker java")
def main(args: argparse.Namespace) -> int:
    """Entry point; 1 if anything was lost, failed, wrong or left running."""
    if args.list:
        print("\n".join(f"{name:12}{FAULTS[name][0]}" for name in FAULTS))
        return 0
    names = args.only or [name for name in FAULTS if name != "disk" or os.geteuid() == 0]
    console = Console(stderr=True, width=140)
    if "disk" not in names and not args.only:
        console.print("disk: left out, only root can mount a small disk for the logs")
    began = time.monotonic()
    results, origin, left = run(names, 1 if args.quick else 3, args.config, console)
    print_table(console, results)
    result = {"benchmark": "chaos", **summary(results, left), "clips": origin}
    result |= {"seconds": round(time.monotonic() - began), "rows": results}
    print(json.dumps(result))
    return int(any(result[name] for name in ("lost", "failed", "wrong", "orphans", "left", "undone")))


if __name__ == "__main__":
    sys.exit(main())

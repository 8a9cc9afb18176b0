"""What our server survives: `python -m benchmarks.chaos [--quick]`.

Twelve clients of ours ask without a pause, four of them through the gateway, while one thing after another
goes wrong: see `--list`. Every answer is compared with the known one of its clip. A row for each fault:

  sent, right    clips, and those with the known class and confidence (within 0.01)
  retried        right, though not at the first attempt
  refused        ended with a clear "busy": right for an overflow, whose callers do not ask twice
  failed         a valid clip without a right answer within 30 s
  lost           sent, and never heard of
  orphans        worker processes that TorchServe does not know (any more)
  recovery       seconds from the fault to the end of the last trouble: a failed attempt, or more than a
                 second without a right answer
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
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from audiocnn.classifier import Classifier
from audiocnn.client.client import Client
from audiocnn.model.loading import served_model_path
from audiocnn.torchserve.management_api import Management
from audiocnn.torchserve.properties import read_properties
from benchmarks import faults, sounds
from benchmarks.background_load import Account, Known, Pressure, known_answers
from benchmarks.faults import FAULTS, Scene
from benchmarks.server_fixture import Stage, role

CLIPS = 24
_LEAD_SECONDS = 1.5
_CALM_SECONDS = 3.0
_PATIENCE_SECONDS = 90.0
_SETTLE_SECONDS = 20.0


@dataclass(frozen=True)
class Row:
    """What one fault did."""

    fault: str
    sent: int
    right: int
    wrong: int
    retried: int
    refused: int
    failed: int
    lost: int
    orphans: int
    recovery_s: float
    seconds: float
    why: dict[str, int]
    undone: str = ""  # what kept the fault from being over, if anything did


def strike(scene: Scene, name: str) -> Row:
    """One fault under load, until all is well again."""
    scene.burst = Account()
    began, undone = time.monotonic(), ""
    with Pressure(scene.clips, scene.stage.inference, scene.stage.gateway) as pressure:
        time.sleep(_LEAD_SECONDS)
        struck = time.monotonic()
        try:
            FAULTS[name](scene)
        except (RuntimeError, psutil.Error, OSError) as error:
            undone = str(error)
        pressure.wait_stable(struck, calm_seconds=_CALM_SECONDS, timeout_seconds=_PATIENCE_SECONDS)
    account = pressure.account
    recovery = account.last_trouble(struck) - struck
    account.add(scene.burst)
    return Row(
        fault=name,
        sent=account.sent,
        right=account.count("right"),
        wrong=account.count("wrong"),
        retried=account.retried,
        refused=account.count("refused"),
        failed=account.count("failed"),
        lost=account.lost,
        orphans=orphans(scene.stage),
        recovery_s=round(recovery, 2),
        seconds=round(time.monotonic() - began, 1),
        why=dict(account.reasons.most_common(5)),
        undone=undone,
    )


def orphans(stage: Stage) -> int:
    """Worker processes of this stage that its TorchServe does not list, also not after a while."""
    management = Management(stage.management)
    deadline = time.monotonic() + _SETTLE_SECONDS
    try:
        while (count := _unlisted(stage, management)) and time.monotonic() < deadline:
            time.sleep(0.5)  # a worker is listed when it is ready
    finally:
        management.close()
    return count


def _unlisted(stage: Stage, management: Management) -> int:
    listed = {pid for version in management.versions() for pid in version.pids}
    return sum(process.pid not in listed for process in stage.left() if role(process) == "worker")


def clips(store: Path, stage: Stage) -> tuple[list[Known], str]:
    """Sounds of 5 s with answers that the server and the classifier here agree on."""
    waveforms, origin = sounds.recordings(CLIPS)
    classifier = Classifier.load(served_model_path(store), threads=1)
    with Client(stage.inference) as client:
        return known_answers(classifier, [sounds.encode(w) for w in waveforms], client), origin


@contextlib.contextmanager
def stage_for(names: Sequence[str], config: Path) -> Iterator[Stage]:
    """The server, its logs on a small disk if one is to be filled up."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))) / "stage"
        settings = faults.stage_settings(read_properties(config))
        stage = Stage(folder, config=config, flags=["--grace", "5"], settings=settings)
        if "disk" in names:
            stack.enter_context(faults.log_disk(stage.logs))
        yield stack.enter_context(stage)


def run(names: Sequence[str], rounds: int, config: Path, console: Console) -> tuple[list[Row], str, int]:
    """All faults; the rows, where the clips come from, and how many processes were left at the end."""
    rows = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting the server", total=None)
        with stage_for(names, config) as stage:
            known, origin = clips(Path(read_properties(config)["model_store"]), stage)
            scene = Scene(stage, known, Account())
            for name in list(names) * rounds:
                progress.update(task, description=f"{name}: {(FAULTS[name].__doc__ or '').strip()}")
                rows.append(strike(scene, name))
                progress.console.print(_line(rows[-1]), highlight=False)
            stage.stop()
            left = len(stage.left())
    return rows, origin, left


def _line(row: Row) -> str:
    undone = f", NOT OVER: {row.undone}" if row.undone else ""
    return (
        f"{row.fault}: {row.right} of {row.sent} right, {row.failed} failed, {row.recovery_s:.1f} s{undone}"
    )


def summary(rows: Sequence[Row], left: int) -> dict[str, object]:
    """The JSON line; `lost`, `failed`, `wrong`, `orphans` and `undone` must be 0."""
    totals = {
        name: sum(getattr(row, name) for row in rows)
        for name in ("sent", "right", "wrong", "retried", "refused", "failed", "lost", "orphans")
    }
    refused = sum(row.refused for row in rows if row.fault not in faults.MAY_REFUSE)
    totals["failed"] += refused  # where nothing overflows, "busy" after 30 s is a failure
    worst = max(row.recovery_s for row in rows)
    undone = sum(bool(row.undone) for row in rows)
    return totals | {"left": left, "undone": undone, "max_recovery_s": worst}


def print_table(console: Console, rows: Sequence[Row]) -> None:
    """A row for each fault."""
    table = Table(
        "fault", "sent", "right", "wrong", "retried", "refused", "failed", "lost", "orphans", "recovery s"
    )
    for row in rows:
        numbers = (
            row.sent,
            row.right,
            row.wrong,
            row.retried,
            row.refused,
            row.failed,
            row.lost,
            row.orphans,
        )
        table.add_row((FAULTS[row.fault].__doc__ or "").strip(), *map(str, numbers), f"{row.recovery_s:.1f}")
    console.print(table)
    for row in rows:
        if row.why:
            console.print(f"{row.fault}: {row.why}", highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 1 if anything was lost, failed, wrong or left behind."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="every fault once (else three times)")
    parser.add_argument("--only", nargs="+", choices=list(FAULTS), metavar="FAULT", help="these faults alone")
    parser.add_argument("--list", action="store_true", help="name the faults")
    parser.add_argument("--config", type=Path, default=Path("config.properties"), help="(%(default)s)")
    args = parser.parse_args(arguments)
    if args.list:
        for name, fault in FAULTS.items():
            print(f"{name:12}{(fault.__doc__ or '').strip()}")
        return 0
    names = args.only or [name for name in FAULTS if name != "disk" or os.geteuid() == 0]
    console = Console(stderr=True, width=140)
    if "disk" in FAULTS and "disk" not in names and not args.only:
        console.print("disk: left out, only root can mount a small disk for the logs")
    began = time.monotonic()
    rows, origin, left = run(names, 1 if args.quick else 3, args.config, console)
    print_table(console, rows)
    result = summary(rows, left)
    more = {
        "clips": origin,
        "seconds": round(time.monotonic() - began),
        "rows": [asdict(row) for row in rows],
    }
    print(json.dumps({"benchmark": "chaos", **result, **more}))
    return int(any(result[name] for name in ("lost", "failed", "wrong", "orphans", "left", "undone")))


if __name__ == "__main__":
    sys.exit(main())

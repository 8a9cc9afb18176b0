"""Runs `training.train` many times, in parallel processes and within a time limit; resumable.

A run is a folder. It is done when it has its checkpoint; an interrupted one resumes after its last epoch when
the same command runs again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from audiocnn import command
from audiocnn.errors import DatasetError
from audiocnn.model import checkpoint

_POLL_SECONDS = 1.0


def add_limit_options(parser: argparse.ArgumentParser) -> None:
    """Add `--parallel` and `--minutes`, the limits of `run_all`."""
    add = parser.add_argument
    add("--parallel", type=command.count, default=1, metavar="N", help="runs at a time (%(default)s)")
    help_text = "time limit; the same command resumes (no limit)"
    add("--minutes", type=command.positive, metavar="N", help=help_text)


@dataclass(frozen=True)
class TrainingJob:
    """One run: trained on `train_folds`, tested on `test_fold` (None: a release run)."""

    name: str  # of the recipe or variant
    arguments: tuple[str, ...]  # options of `training.train`
    train_folds: tuple[int, ...]
    test_fold: int | None
    seed: int
    folder: Path

    @property
    def is_done(self) -> bool:
        """Whether its checkpoint exists."""
        return (self.folder / checkpoint.CONFIG).is_file()

    def command(self, data: Path, *, watch_every: int) -> list[str]:
        """The command line of the run."""
        folds = ",".join(map(str, self.train_folds))
        line = [sys.executable, "-m", "training.train", "--data", str(data), "--train-folds", folds]
        line += ["--out", str(self.folder), "--seed", str(self.seed), "--no-tensorboard", *self.arguments]
        if self.test_fold is not None:
            line += ["--watch-folds", str(self.test_fold), "--watch-every", str(watch_every)]
        return line

    def history(self) -> list[dict[str, float]]:
        """The rows of `history.json`, one per epoch."""
        rows: list[dict[str, float]] = json.loads((self.folder / "history.json").read_text())
        return rows


def run_all(
    jobs: Sequence[TrainingJob],
    data: Path,
    *,
    parallel: int,
    minutes: float | None = None,
    watch_every: int = 10,
) -> list[TrainingJob]:
    """Run the jobs that are not done, `parallel` at a time; returns those that are done at the end.

    After `minutes` the running ones are terminated; each keeps its last complete epoch. Raises `DatasetError`
    with the end of the log if a run fails.
    """
    deadline = time.monotonic() + minutes * 60 if minutes else float("inf")
    waiting = [job for job in jobs if not job.is_done]
    running: dict[TrainingJob, subprocess.Popen[bytes]] = {}
    with tqdm(total=len(jobs), initial=len(jobs) - len(waiting), unit="run", desc="runs") as bar:
        try:
            while (waiting or running) and time.monotonic() < deadline:
                while waiting and len(running) < parallel:
                    job = waiting.pop(0)
                    running[job] = _start(job, data, watch_every)
                for job in [job for job, process in running.items() if process.poll() is not None]:
                    _finish(job, running.pop(job))
                    bar.update()
                time.sleep(max(0.0, min(_POLL_SECONDS, deadline - time.monotonic())))
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
    return [job for job in jobs if job.is_done]


def _start(job: TrainingJob, data: Path, watch_every: int) -> subprocess.Popen[bytes]:
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(job.command(data, watch_every=watch_every), stdout=log, stderr=log)


def _finish(job: TrainingJob, process: subprocess.Popen[bytes]) -> None:
    if process.returncode:
        tail = (job.folder / "log.txt").read_text(errors="replace")[-2000:]
        raise DatasetError(f"the run {job.folder} failed:\n{tail}")

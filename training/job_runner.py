"""Many training runs, as processes of `training.train`: in parallel, bounded in time, resumable.

A run is a folder. One that has its checkpoint is done; one that was cut goes on from its last epoch
when the same command is given again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from audiocnn.errors import DatasetError
from audiocnn.model import checkpoint

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """One run: trained on `train_folds`, measured on `test_fold` (none: a release run)."""

    name: str  # what is compared: a recipe, a variant
    arguments: tuple[str, ...]  # flags of `training.train` that make it so
    train_folds: tuple[int, ...]
    test_fold: int | None
    seed: int
    folder: Path

    @property
    def is_done(self) -> bool:
        """Whether its checkpoint is there."""
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
        """Its epochs."""
        rows: list[dict[str, float]] = json.loads((self.folder / "history.json").read_text())
        return rows


def cross_validation(
    name: str,
    arguments: Sequence[str],
    folds: Sequence[int],
    all_folds: Sequence[int],
    seeds: Sequence[int],
    out: Path,
) -> list[Job]:
    """One job a fold and seed: tested on the fold, trained on all others."""
    return [
        Job(
            name,
            tuple(arguments),
            tuple(f for f in all_folds if f != fold),
            fold,
            seed,
            out / f"{name}-fold{fold}-seed{seed}",
        )
        for seed in seeds
        for fold in folds
    ]


def run_all(
    jobs: Sequence[Job], data: Path, *, parallel: int, minutes: float | None = None, watch_every: int = 10
) -> list[Job]:
    """Run what is not done, `parallel` at a time; returns the jobs that are done when it ends.

    After `minutes` the running ones are stopped; their last whole epoch is kept. Raises `DatasetError`
    with the end of its log if a run fails.
    """
    deadline = time.monotonic() + minutes * 60 if minutes else float("inf")
    waiting = [job for job in jobs if not job.is_done]
    running: dict[Job, subprocess.Popen[bytes]] = {}
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


def _start(job: Job, data: Path, watch_every: int) -> subprocess.Popen[bytes]:
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(job.command(data, watch_every=watch_every), stdout=log, stderr=log)


def _finish(job: Job, process: subprocess.Popen[bytes]) -> None:
    if process.returncode:
        tail = (job.folder / "log.txt").read_text(errors="replace")[-2000:]
        raise DatasetError(f"the run {job.folder} failed:\n{tail}")

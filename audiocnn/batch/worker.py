"""What every process of the cluster does: chunk after chunk of files, from paths to parts of tables."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from audiocnn.batch import state
from audiocnn.batch.scorer import FileAnswer, Item, Scorer
from audiocnn.batch.state import Outcome, Settings
from audiocnn.batch.writers import AudacityWriter, ChunkWriter, RowBuilder

WORKER_DIED = "worker_died"
_POSITION = "at"  # in an attempt's folder: the number of the file that is being heard


@dataclass(frozen=True)
class Job:
    """All that a worker must know; the paths must mean the same on every machine."""

    out: Path
    model: Path
    threads: int
    settings: Settings
    folders: tuple[str, ...] = ()  # that are searched: a machine without them would only find errors


class Worker:
    """One model, loaded once; called with one chunk at a time."""

    def __init__(self, job: Job) -> None:
        for folder in (str(job.out / state.FOLDER), *job.folders):
            if not os.path.isdir(folder):
                raise FileNotFoundError(
                    f"{folder} is not there on {os.uname().nodename}: the machines of a cluster need the "
                    "results, the model and the sounds under the same paths"
                )
        self._job = job
        settings = job.settings
        self._scorer = Scorer.load(
            job.model, threads=job.threads, overlap=settings.overlap, evidence=settings.evidence
        )
        engine = self._scorer.engine
        self._report = RowBuilder(engine.config, engine.sha256[:12], settings.top_k, settings.min_confidence)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """`{"chunk", "start", "length"}`, arrays of one -> the outcome, and how long it took.

        Where a chunk has been tried before, what that attempt wrote is replaced.
        """
        began = time.monotonic()
        chunk, start, length = (int(row[name][0]) for name in ("chunk", "start", "length"))
        paths = state.read_paths(self._job.out, start, length)
        outcome = self._score(chunk, paths)
        text = json.dumps(asdict(outcome))
        return {"chunk": [chunk], "outcome": [text], "seconds": [time.monotonic() - began]}

    def _score(self, chunk: int, paths: Sequence[str]) -> Outcome:
        poisoned = poison_files(self._job.out, chunk)
        attempt = self._job.out / state.ATTEMPTS / f"{chunk}-{uuid.uuid4().hex}"
        attempt.mkdir(parents=True)
        formats = self._job.settings.formats
        labels = (
            AudacityWriter(self._job.out, attempt, self._job.settings.root) if "audacity" in formats else None
        )
        part = ChunkWriter(attempt, self._report, formats, labels)
        outcome = Outcome()
        with (attempt / _POSITION).open("wb", buffering=0) as position:
            for item in self._answers(paths, poisoned, position.fileno()):
                if isinstance(item, tuple):
                    part.window(*item)
                    continue
                part.file(item)
                errors = {item.error[0]: 1} if item.error else {}
                outcome += Outcome(1, item.num_windows, item.seconds, errors)
        outcome.window_rows = part.window_rows
        part.publish(
            {
                (table, suffix): self._job.out / state.part(table, chunk, suffix)
                for table in ("files", "windows")
                for suffix in state.SUFFIXES
            }
        )
        shutil.rmtree(attempt)
        return outcome

    def _answers(self, paths: Sequence[str], poisoned: set[int], position: int) -> Iterator[Item]:
        alive = [number for number in range(len(paths)) if number not in poisoned]
        for number in poisoned:
            message = "Two workers died while they read this file."
            yield FileAnswer(paths[number], error=(WORKER_DIED, message))
        yield from self._scorer.score(
            [paths[number] for number in alive],
            lambda number: os.pwrite(position, f"{alive[number]:9}".encode(), 0),
        )


def poison_files(out: Path, chunk: int) -> set[int]:
    """Numbers of files at which two attempts at this chunk have ended without a word: a decoder that
    crashes, or takes all memory, must not stop the job for ever."""
    ends: Counter[int] = Counter()
    for attempt in (out / state.ATTEMPTS).glob(f"{chunk}-*"):
        try:
            ends[int((attempt / _POSITION).read_text() or -1)] += 1
        except FileNotFoundError:  # it ended before it had begun
            continue
    return {number for number, count in ends.items() if count >= 2 and number >= 0}

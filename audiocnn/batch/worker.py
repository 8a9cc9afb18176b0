"""A worker process of the cluster: one chunk of files after another, from paths to parts of tables."""

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
from audiocnn.batch.aggregate import FileResult, Item, WindowEmbedding, classify_files
from audiocnn.batch.audacity import AudacityTrackWriter
from audiocnn.batch.state import JobSettings, Outcome
from audiocnn.batch.writers import ChunkWriter, RowBuilder
from audiocnn.classifier import Classifier
from audiocnn.detections import Detection, DetectionRules, hop_of
from audiocnn.file_detector import FileDetector
from audiocnn.options import Options

WORKER_DIED = "worker_died"
_POSITION = "at"  # in an attempt's folder: the number of the file that was opened last


@dataclass(frozen=True)
class Job:
    """Configuration of a worker; the paths must mean the same on every machine."""

    out: Path
    model: Path
    threads: int
    settings: JobSettings
    folders: tuple[str, ...] = ()  # input folders: a machine without them would only find errors


class Worker:
    """A model, loaded once; called with one chunk at a time."""

    def __init__(self, job: Job) -> None:
        for folder in (str(job.out / state.FOLDER), *job.folders):
            if not os.path.isdir(folder):
                raise FileNotFoundError(
                    f"{folder} is not there on {os.uname().nodename}: the machines of a cluster need the "
                    "results, the model and the recordings under the same paths"
                )
        self._job = job
        settings = job.settings
        self._classifier = Classifier.load(job.model, threads=job.threads)
        engine = self._classifier.engine
        self._report = RowBuilder(engine.config, engine.sha256, settings.top_k, settings.min_confidence)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """`{"chunk", "start", "length"}`, arrays of one -> the outcome, and how long it took.

        Parts that an earlier attempt at the chunk wrote are replaced.
        """
        began = time.monotonic()
        chunk, start, length = (int(row[name][0]) for name in ("chunk", "start", "length"))
        paths = state.read_paths(self._job.out, start, length)
        outcome = self._classify(chunk, paths)
        text = json.dumps(asdict(outcome))
        return {"chunk": [chunk], "outcome": [text], "seconds": [time.monotonic() - began]}

    def _classify(self, chunk: int, paths: Sequence[str]) -> Outcome:
        poisoned = poison_files(self._job.out, chunk)
        attempt = self._job.out / state.ATTEMPTS / f"{chunk}-{uuid.uuid4().hex}"
        attempt.mkdir(parents=True)
        formats, root = self._job.settings.formats, self._job.settings.root
        labels = AudacityTrackWriter(self._job.out, attempt, root) if "audacity" in formats else None
        part = ChunkWriter(attempt, self._report, formats, labels)
        with (attempt / _POSITION).open("wb", buffering=0) as position:
            outcome = self._write(part, paths, poisoned, position.fileno())
        part.publish(
            {
                (table, suffix): self._job.out / state.part(table, chunk, suffix)
                for table, suffix in state.pairs(state.TABLES, state.SUFFIXES)
            }
        )
        shutil.rmtree(attempt)
        return outcome

    def _write(self, part: ChunkWriter, paths: Sequence[str], poisoned: set[int], position: int) -> Outcome:
        """Classify the files of a chunk and write their rows."""
        outcome = Outcome()
        for item in self._results(paths, poisoned, position):
            if isinstance(item, tuple):
                part.window(*item)
            elif isinstance(item, WindowEmbedding):
                part.embedding(item)
            else:
                part.file(item)
                errors = {item.error[0]: 1} if item.error else {}
                outcome += Outcome(1, item.num_windows, item.seconds, errors)
        for path, found in self._events(paths, poisoned, position):
            part.detections(path, found)
            outcome.detections += len(found)
        outcome.window_rows = part.window_rows
        return outcome

    def _results(self, paths: Sequence[str], poisoned: set[int], position: int) -> Iterator[Item]:
        for number in poisoned:
            message = "Two workers died while they read this file."
            yield FileResult(paths[number], error=(WORKER_DIED, message))

        settings, opened = self._job.settings, _opened(paths, poisoned, position)
        yield from classify_files(
            self._classifier,
            opened,
            overlap_seconds=settings.overlap,
            evidence=settings.evidence,
            embeddings=settings.embeddings,
        )

    def _events(
        self, paths: Sequence[str], poisoned: set[int], position: int
    ) -> Iterator[tuple[str, list[Detection]]]:
        """Every path with its events; the files are read once more, in other windows."""
        settings = self._job.settings
        if settings.detections:
            rules = DetectionRules(min_confidence=settings.min_confidence)
            detector = FileDetector(self._classifier, rules, hop_of(Options(), self._classifier.config))
            for path, found, _ in detector.detect(_opened(paths, poisoned, position)):
                yield path, found


def _opened(paths: Sequence[str], poisoned: set[int], position: int) -> Iterator[str]:
    """The paths that are not poisoned; the number of each is written down before its file is opened."""
    for number, path in enumerate(paths):
        if number not in poisoned:
            os.pwrite(position, f"{number:9}".encode(), 0)
            yield path


def poison_files(out: Path, chunk: int) -> set[int]:
    """Indices of files on which the worker crashed twice: a decoder that crashes, or takes all memory, must
    not stop the job."""
    ends: Counter[int] = Counter()
    for attempt in (out / state.ATTEMPTS).glob(f"{chunk}-*"):
        try:
            ends[int((attempt / _POSITION).read_text() or -1)] += 1
        except FileNotFoundError:  # it ended before its first file
            continue
    return {number for number, count in ends.items() if count >= 2 and number >= 0}

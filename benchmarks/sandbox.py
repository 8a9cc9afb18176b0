"""A process that classifies what would perhaps kill it, and the watch over it.

The inputs are made in the process itself, so that only numbers cross the pipe; a mutant that kills or hangs
it is found by asking for the numbers of its batch one by one.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import orjson

from audiocnn.classifier import Classifier
from audiocnn.config import AudioLimits
from audiocnn.errors import AudioError
from audiocnn.options import Options
from audiocnn.results import Result
from benchmarks.mutations import Mutant, mutant

START_SECONDS = 120.0
BATCH_SECONDS = 60.0
INPUT_SECONDS = 15.0


@dataclass(frozen=True)
class Verdict:
    """What became of one input: `answered`, the code of an `AudioError`, or `crash`, `hang`, `exception`."""

    number: int
    outcome: str
    top: str = ""
    confidence: float = 0.0
    ms: float = 0.0
    why: str = ""


class Judge:
    """Within the victim: the classifier, used as the handler uses it."""

    def __init__(self, model: Path) -> None:
        self._classifier = Classifier.load(model, threads=1, limits=AudioLimits(isolate=True))

    def batch(self, mutants: Sequence[Mutant]) -> list[Verdict]:
        """All together; where that raises, each alone, to see whose fault it is."""
        began = time.perf_counter()
        try:
            found = self._classify(mutants)
        except Exception as error:  # what the handler would answer with 503 for the whole batch
            if len(mutants) > 1:
                return [verdict for one in mutants for verdict in self.batch([one])]
            return [Verdict(mutants[0].number, "exception", why=repr(error)[:300])]
        ms = 1000 * (time.perf_counter() - began) / len(mutants)
        return [replace(verdict, ms=ms) for verdict in found]

    def _classify(self, mutants: Sequence[Mutant]) -> list[Verdict]:
        wishes = [self._options(one.options) for one in mutants]
        results = self._classifier.predict_batch([one.body for one in mutants], wishes)
        return [
            Verdict(one.number, *self._outcome(result)) for one, result in zip(mutants, results, strict=True)
        ]

    def _options(self, given: dict[str, Any]) -> Options | AudioError:
        try:
            return Options.parse(given, self._classifier.config)
        except AudioError as error:
            return error

    def _outcome(self, result: Result | AudioError) -> tuple[str, str, float]:
        if isinstance(result, AudioError):
            orjson.dumps(result.to_dict())
            return result.code, "", 0.0
        answer = orjson.loads(orjson.dumps(result.to_dict()))
        first = (answer["predictions"] or [{"class": "", "confidence": 0.0}])[0]
        if not 0.0 <= first["confidence"] <= 1.0:
            raise ValueError(f"a confidence of {first['confidence']}")
        return "answered", str(first["class"]), float(first["confidence"])


def _live(pipe: Connection, model: Path, seed: int, noise: Path) -> None:
    """The victim: judges what it is told to, until the pipe closes. Decoders print; that goes to a file."""
    descriptor = os.open(noise, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)
    judge = Judge(model)
    pipe.send("ready")
    while (order := pipe.recv()) is not None:
        mutants = [one if isinstance(one, Mutant) else mutant(seed, one) for one in order]
        verdicts = judge.batch(mutants)
        pipe.send((verdicts, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000))


class Victim:
    """A process that is asked for verdicts, and replaced when it dies or hangs."""

    def __init__(self, model: Path, seed: int, noise: Path) -> None:
        self.peak_mb = 0.0
        self._arguments = (model, seed, noise)
        self._context = multiprocessing.get_context("spawn")
        self._begin()

    def _begin(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_live, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(START_SECONDS) or self._pipe.recv() != "ready":
            raise RuntimeError("the classifier's process does not start")

    def judge(self, order: Sequence[int | Mutant]) -> list[Verdict]:
        """The verdicts; of what kills or hangs the process too."""
        limit = BATCH_SECONDS if len(order) > 1 else INPUT_SECONDS
        try:
            self._pipe.send(list(order))
            if self._pipe.poll(limit):
                verdicts, peak = self._pipe.recv()
                self.peak_mb = max(self.peak_mb, peak)
                return list(verdicts)
            outcome, why = "hang", f"no verdict after {limit:.0f} s"
        except (EOFError, ConnectionError):
            self._process.join(10)
            outcome, why = "crash", f"exit code {self._process.exitcode}"
        self._process.kill()
        self._process.join()
        self._begin()
        if len(order) > 1:
            return [verdict for one in order for verdict in self.judge([one])]
        number = order[0] if isinstance(order[0], int) else order[0].number
        return [Verdict(number, outcome, why=why)]

    def close(self) -> None:
        """End it."""
        self._pipe.close()
        self._process.kill()
        self._process.join()

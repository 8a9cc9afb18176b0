"""A process for inputs that may crash or hang the classifier.

The inputs are made in the process itself: only their numbers are sent to it. If a batch kills or hangs it,
the inputs of the batch are tried one by one in a new process.
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
from benchmarks.branches import branches_of_answer, branches_of_file
from benchmarks.fuzz_inputs import FuzzInput, fuzz_input

START_SECONDS = 120.0
BATCH_SECONDS = 60.0
INPUT_SECONDS = 15.0


@dataclass(frozen=True)
class FuzzResult:
    """`outcome` is `answered`, the code of an `AudioError`, or `crash`, `hang` or `exception`."""

    number: int
    outcome: str
    top: str = ""
    confidence: float = 0.0
    ms: float = 0.0
    why: str = ""
    branches: tuple[str, ...] = ()  # of `benchmarks.branches`


class SandboxedClassifier:
    """Within the process: the classifier as the handler uses it."""

    def __init__(self, model: Path) -> None:
        self._classifier = Classifier.load(model, threads=1, limits=AudioLimits(isolate=True))

    def run(self, inputs: Sequence[FuzzInput]) -> list[FuzzResult]:
        """All in one batch; after an exception one by one, to find its cause."""
        began = time.perf_counter()
        try:
            found = self._classify(inputs)
        except Exception as error:  # the handler would reply 503 to the whole batch
            if len(inputs) > 1:
                return [result for one in inputs for result in self.run([one])]
            return [FuzzResult(inputs[0].number, "exception", why=repr(error)[:300])]
        ms = 1000 * (time.perf_counter() - began) / len(inputs)
        return [replace(result, ms=ms) for result in found]

    def _classify(self, inputs: Sequence[FuzzInput]) -> list[FuzzResult]:
        options = [self._options(one.options) for one in inputs]
        results = self._classifier.predict_batch([one.body for one in inputs], options)
        return [_to_fuzz_result(one, result) for one, result in zip(inputs, results, strict=True)]

    def _options(self, given: dict[str, Any]) -> Options | AudioError:
        try:
            return Options.parse(given, self._classifier.config)
        except AudioError as error:
            return error


def _to_fuzz_result(one: FuzzInput, result: Result | AudioError) -> FuzzResult:
    reply = orjson.loads(orjson.dumps(result.to_dict()))
    branches = tuple(sorted(branches_of_answer(reply) | branches_of_file(one.body)))
    if isinstance(result, AudioError):
        return FuzzResult(one.number, result.code, branches=branches)
    top, confidence = first_prediction(reply)
    if not 0.0 <= confidence <= 1.0:
        raise ValueError(f"a confidence of {confidence}")
    return FuzzResult(one.number, "answered", top, confidence, branches=branches)


def first_prediction(reply: dict[str, Any]) -> tuple[str, float]:
    """Class and confidence; empty and 0 if no class was asked for."""
    first = (reply["predictions"] or [{"class": "", "confidence": 0.0}])[0]
    return str(first["class"]), float(first["confidence"])


def _run_process(pipe: Connection, model: Path, seed: int, log: Path) -> None:
    """Run what the pipe asks for until it is closed. Decoders print to stderr: that goes to `log`."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)
    classifier = SandboxedClassifier(model)
    pipe.send("ready")
    while (order := pipe.recv()) is not None:
        inputs = [one if isinstance(one, FuzzInput) else fuzz_input(seed, one) for one in order]
        results = classifier.run(inputs)
        pipe.send((results, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000))


class Sandbox:
    """A process with a classifier; it is replaced when it crashes or hangs."""

    def __init__(self, model: Path, seed: int, log: Path, *, input_seconds: float = INPUT_SECONDS) -> None:
        """A single input may take `input_seconds`."""
        self.peak_mb = 0.0
        self._input_seconds = input_seconds
        self._arguments = (model, seed, log)
        self._context = multiprocessing.get_context("spawn")
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self.process = self._context.Process(
            target=_run_process, args=(theirs, *self._arguments), daemon=True
        )
        self.process.start()
        theirs.close()
        if not self._pipe.poll(START_SECONDS) or self._pipe.recv() != "ready":
            raise RuntimeError("the classifier's process did not start")

    def run(self, order: Sequence[int | FuzzInput]) -> list[FuzzResult]:
        """A result for each input, crashes and hangs included."""
        limit = BATCH_SECONDS if len(order) > 1 else self._input_seconds
        try:
            self._pipe.send(list(order))
            if self._pipe.poll(limit):
                results, peak = self._pipe.recv()
                self.peak_mb = max(self.peak_mb, peak)
                return list(results)
            outcome, why = "hang", f"no result after {limit:.0f} s"
        except (EOFError, ConnectionError):
            self.process.join(10)
            outcome, why = "crash", f"exit code {self.process.exitcode}"
        self._restart()
        if len(order) > 1:
            return [result for one in order for result in self.run([one])]
        number = order[0] if isinstance(order[0], int) else order[0].number
        return [FuzzResult(number, outcome, why=why)]

    def _restart(self) -> None:
        self.process.kill()
        self.process.join()
        self._start()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self.process.kill()
        self.process.join()

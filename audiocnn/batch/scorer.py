"""Paths -> answers, the work of one process, in the memory of a few windows.

    file -> blocks -> windows, eight at a time -> log-mels -> network -> probabilities -> sums

The answers are those of `audiocnn.classifier`, which holds a whole clip in memory and therefore has a
limit on its length; here there is none.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from audiocnn.arrays import FloatArray
from audiocnn.audio.window_stream import WindowStream
from audiocnn.classifier import hop_of, softmax
from audiocnn.config import Config
from audiocnn.errors import AudioError
from audiocnn.model.engine import MAX_BATCH, Engine
from audiocnn.model.loading import load_engine
from audiocnn.results import SILENCE_PEAK

UNREADABLE = "unreadable_file"
INTERNAL = "internal_error"


@dataclass
class Evidence:
    """Where in a window the score of a class came from: `values (rows, columns)`."""

    label: int
    start: float  # of the window, seconds
    end: float
    values: FloatArray


@dataclass
class WindowAnswer:
    """What one window holds; `evidence` is that of its surest class, if asked for."""

    start: float  # seconds
    end: float
    probs: FloatArray  # (num_classes,)
    evidence: Evidence | None = None


@dataclass
class FileAnswer:
    """What a whole file holds: filled window by window, complete when it is handed out."""

    path: str
    seconds: float = 0.0
    peak: float = 0.0
    num_windows: int = 0
    warnings: list[str] = field(default_factory=list)
    error: tuple[str, str] | None = None  # code and message
    summed: npt.NDArray[np.float64] | None = None  # probabilities of all windows, (num_classes,)
    first: WindowAnswer | None = None  # held back: the only window of a short file says nothing new
    best: list[Evidence] = field(default_factory=list)  # of each class, in the window that is surest of it
    surest: FloatArray | None = None  # how sure, (num_classes,)

    @property
    def probs(self) -> FloatArray:
        """Mean over the windows, as `audiocnn.audio.windows.pool` has it: `(num_classes,)`."""
        assert self.summed is not None
        return np.asarray(self.summed / self.num_windows, dtype=np.float32)

    @property
    def is_silent(self) -> bool:
        """Whether the whole file is digital silence or close to it."""
        return self.peak < SILENCE_PEAK

    @property
    def evidence(self) -> Evidence | None:
        """That of the surest class, in the window that is surest of it."""
        return self.best[int(self.probs.argmax())] if self.best else None


@dataclass
class _Window:
    """A window on its way to the network."""

    file: FileAnswer
    start: float
    end: float
    samples: FloatArray  # (window_samples,)


Item = FileAnswer | tuple[FileAnswer, WindowAnswer]
Begin = Callable[[int], object]


class Scorer:
    """A loaded model. `overlap` is in seconds; the model's own, half a window, if None."""

    def __init__(self, engine: Engine, *, overlap: float | None = None, evidence: bool = False) -> None:
        self.engine = engine
        self.config: Config = engine.config
        self.hop = hop_of(engine.config, overlap)
        self._with_evidence = evidence

    @classmethod
    def load(cls, model: Path, *, threads: int, overlap: float | None, evidence: bool) -> Scorer:
        """See `audiocnn.model.loading.load_engine`."""
        return cls(load_engine(model, threads=threads), overlap=overlap, evidence=evidence)

    def score(self, paths: Sequence[str], begin: Begin = int) -> Iterator[Item]:
        """For every path, in this order: `(FileAnswer, WindowAnswer)` for each window of a file that has
        several, then its `FileAnswer`. A file that cannot be answered has an `error` in it; windows that
        came before it broke are not taken back. `begin` is told the number of each path before it is opened.
        """
        waiting: list[_Window | FileAnswer] = []
        count = 0
        for item in self._windows(paths, begin):
            waiting.append(item)
            count += isinstance(item, _Window)
            if count == MAX_BATCH:
                yield from self._answer(waiting)
                waiting, count = [], 0
        yield from self._answer(waiting)

    def _windows(self, paths: Sequence[str], begin: Begin) -> Iterator[_Window | FileAnswer]:
        for number, path in enumerate(paths):
            begin(number)
            answer = FileAnswer(path)
            try:
                with _opened(path) as file:
                    yield from self._windows_of(file, answer)
            except AudioError as error:
                answer.error = (error.code, str(error))
            except OSError as error:
                answer.error = (UNREADABLE, error.strerror or str(error))
            except Exception as error:  # a job of days must not stop for a file that nobody foresaw
                answer.error = (INTERNAL, f"{type(error).__name__}: {error}")
            yield answer

    def _windows_of(self, file: BinaryIO, answer: FileAnswer) -> Iterator[_Window]:
        stream = WindowStream(file, self.config.frontend, hop=self.hop, warnings=answer.warnings)
        try:
            for start, end, window in stream:
                yield _Window(answer, start, end, window)
        finally:
            answer.seconds, answer.peak = stream.seconds, stream.peak

    def _log_mels(self, samples: Sequence[FloatArray]) -> FloatArray:
        """One after another: a spectrogram fits the processor's caches, and decoding in between would
        empty them (a third of the time)."""
        with torch.inference_mode():
            ready = (torch.from_numpy(window[None]).to(self.engine.device) for window in samples)
            return np.concatenate([self.engine.log_mel(window).cpu().numpy() for window in ready])

    def _answer(self, items: Sequence[_Window | FileAnswer]) -> Iterator[Item]:
        samples = [item.samples for item in items if isinstance(item, _Window)]
        outputs: dict[str, FloatArray] = {}
        if samples:
            log_mels = self._log_mels(samples)
            outputs = self.engine.run(log_mels)
            if self._with_evidence:
                outputs |= self.engine.run(log_mels, ("evidence",))
        number = 0
        for item in items:
            if isinstance(item, FileAnswer):
                yield item
                continue
            probs = softmax(outputs["logits"][number] / self.config.temperature)
            evidence = outputs["evidence"][number] if "evidence" in outputs else None
            number += 1
            yield from _add(item, probs, evidence)


def _add(window: _Window, probs: FloatArray, evidence: FloatArray | None) -> Iterator[Item]:
    """Count a window in; hands out the windows of a file from when it has two."""
    file = window.file
    answer = WindowAnswer(window.start, window.end, probs)
    if evidence is not None:
        _keep_surest(file, answer, evidence)
        top = int(probs.argmax())
        answer.evidence = Evidence(top, window.start, window.end, evidence[top])
    file.num_windows += 1
    file.summed = probs.astype(np.float64) if file.summed is None else file.summed + probs
    if file.num_windows == 1:
        file.first = answer
        return
    if file.first:
        yield file, file.first
        file.first = None
    yield file, answer


def _keep_surest(file: FileAnswer, window: WindowAnswer, evidence: FloatArray) -> None:
    """Which class the file is will be known at its end: the best evidence of each is kept until then."""
    if file.surest is None:
        file.surest = np.full_like(window.probs, -1.0)
        file.best = [Evidence(label, 0.0, 0.0, values) for label, values in enumerate(evidence)]
    for label in np.flatnonzero(window.probs > file.surest):
        # A copy: the array holds the evidence of a whole batch.
        file.best[label] = Evidence(int(label), window.start, window.end, evidence[label].copy())
    file.surest = np.maximum(file.surest, window.probs)


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """A regular file, open for reading; raises `OSError` for all else, a pipe without waiting for it."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except ValueError as error:  # a NUL in the name
        raise OSError(f"There cannot be such a file: {error}") from error
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        raise OSError("It is a folder" if stat.S_ISDIR(mode) else "It is no regular file")
    with open(number, "rb") as file:
        yield file

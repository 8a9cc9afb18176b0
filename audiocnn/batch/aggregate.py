"""Windows of files -> one result for each file, in the memory of a few windows.

The windows come from `Classifier.predict_streams`; here their probabilities are summed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from audiocnn.arrays import AnyFloatArray, FloatArray
from audiocnn.classifier import Classifier
from audiocnn.errors import AudioError
from audiocnn.results import StreamEnd, WindowProbs

UNREADABLE = "unreadable_file"
INTERNAL = "internal_error"


@dataclass
class ClassEvidence:
    """The class activation map of a class in a window: `values (rows, columns)`."""

    label: int  # index of the class
    start: float  # of the window, seconds
    end: float
    values: FloatArray


@dataclass
class WindowResult:
    """One window of a file; `evidence` is that of its most confident class, if asked for."""

    start: float  # seconds
    end: float
    probs: FloatArray  # (num_classes,)
    evidence: ClassEvidence | None = None


@dataclass
class FileResult:
    """A whole file: filled window by window, complete when it is yielded."""

    path: str
    seconds: float = 0.0
    is_silent: bool = False
    num_windows: int = 0
    warnings: list[str] = field(default_factory=list)
    error: tuple[str, str] | None = None  # code and message
    _sum: AnyFloatArray | None = field(default=None, init=False)  # of all windows, (num_classes,)
    # Kept until a second one comes: a row of the only window would repeat the file's.
    _first: WindowResult | None = field(default=None, init=False)
    _best: list[ClassEvidence] = field(
        default_factory=list, init=False
    )  # of each class, in its most confident window
    _highest: FloatArray | None = field(default=None, init=False)  # confidence there, (num_classes,)

    @property
    def probs(self) -> FloatArray:
        """Mean over the windows, as `audiocnn.audio.windows.pool` has it: `(num_classes,)`."""
        assert self._sum is not None
        return np.asarray(self._sum / self.num_windows, dtype=np.float32)

    @property
    def evidence(self) -> ClassEvidence | None:
        """Of the most confident class, in its most confident window."""
        return self._best[int(self.probs.argmax())] if self._best else None

    def add(self, window: WindowProbs) -> Iterator[WindowResult]:
        """Add a window to the sums; yields the windows of a file that has more than one."""
        result = WindowResult(window.start, window.end, window.probs)
        if "evidence" in window.outputs:
            self._keep_best(window)
            top = int(window.probs.argmax())
            result.evidence = ClassEvidence(top, window.start, window.end, window.outputs["evidence"][top])
        self.num_windows += 1
        self._sum = window.probs.astype(np.float64) if self._sum is None else self._sum + window.probs
        if self.num_windows == 1:
            self._first = result
            return
        if self._first:
            yield self._first
            self._first = None
        yield result

    def _keep_best(self, window: WindowProbs) -> None:
        """The class of the file is known at its end: the best evidence of each class is kept until then."""
        evidence = window.outputs["evidence"]
        if self._highest is None:
            self._highest = np.full_like(window.probs, -1.0)
            self._best = [ClassEvidence(label, 0.0, 0.0, values) for label, values in enumerate(evidence)]
        for label in np.flatnonzero(window.probs > self._highest):
            # A copy: the array holds the evidence of a whole batch.
            self._best[label] = ClassEvidence(int(label), window.start, window.end, evidence[label].copy())
        self._highest = np.maximum(self._highest, window.probs)

    def finish(self, end: StreamEnd) -> None:
        """After the last window."""
        self.seconds, self.is_silent, self.warnings = end.seconds, end.is_silent, end.warnings
        if isinstance(end.error, AudioError):
            self.error = (end.error.code, str(end.error))
        elif isinstance(end.error, OSError):
            self.error = (UNREADABLE, end.error.strerror or str(end.error))
        elif end.error:
            self.error = (INTERNAL, f"{type(end.error).__name__}: {end.error}")


@dataclass(frozen=True)
class WindowEmbedding:
    """The feature vector of one window of a file."""

    path: str
    start: float  # seconds
    end: float
    vector: FloatArray  # (d,)


Item = FileResult | WindowEmbedding | tuple[FileResult, WindowResult]


def classify_files(
    classifier: Classifier,
    paths: Iterable[str],
    *,
    overlap_seconds: float | None = None,
    evidence: bool = False,
    embeddings: bool = False,
) -> Iterator[Item]:
    """For every path, in this order: each window of a file that has several, then its `FileResult`.

    With `embeddings`, the `WindowEmbedding` of every window comes before these. A file that cannot be
    classified has an `error`; its windows before the error have been yielded. A path is taken from `paths`
    right before its file is opened.
    """
    outputs = ["evidence"] * evidence + ["embedding"] * embeddings
    result = None
    for path, item in classifier.predict_streams(paths, overlap_seconds=overlap_seconds, outputs=outputs):
        result = result or FileResult(path)
        if isinstance(item, WindowProbs):
            if embeddings:
                yield WindowEmbedding(path, item.start, item.end, item.outputs["embedding"])
            yield from ((result, window) for window in result.add(item))
        else:
            result.finish(item)
            yield result
            result = None

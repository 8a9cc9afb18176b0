"""Metrics of a worker: timings, errors, classes, confidences and input levels, as counters.

    metrics = WorkerMetrics(emit, class_names)     # emit(name, label, amount) adds to a counter of TorchServe
    metrics.count(clips, results, timings)         # after each batch

Emitting costs more than counting, so counts are aggregated and emitted every 5 s under load, and 0.2 s after
the last batch. Histograms are counters, one for each bucket (`..._bucket` with `le`), as in Prometheus.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from audiocnn.classifier import Timings
from audiocnn.errors import AudioError
from audiocnn.probe import probe_wav
from audiocnn.results import Result

Emit = Callable[[str, str | None, float], None]  # name, value of its label (None: no label), amount >= 0

# Upper bounds of the buckets; the bucket +Inf is added.
HISTOGRAMS: dict[str, tuple[float, ...]] = {
    "decode_ms": (0.5, 1, 2, 5, 10, 20, 50, 100, 1000),
    "log_mel_ms": (0.5, 1, 2, 5, 10, 20, 50, 100, 1000),
    "inference_ms": (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
    "batch_clips": (1, 2, 4, 8, 16, 32),
    "confidence": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "input_level_dbfs": (-90, -70, -60, -50, -40, -30, -20, -10, -3),
}
WITHOUT_SUM = ("input_level_dbfs",)  # a counter cannot take negative values
COUNTERS: dict[str, str | None] = {  # name: label
    "audio_seconds_total": None,
    "predictions_total": "class",
    "unknown_total": None,
    "silent_total": None,
    "errors_total": "code",
    "probes_total": None,
    "worker_starts_total": None,
}
NAMES: dict[str, str | None] = COUNTERS | {  # all emitted names
    f"{name}_{part}": "le" if part == "bucket" else None
    for name in HISTOGRAMS
    for part in ("bucket", "count", "sum")
    if (name, part) not in ((each, "sum") for each in WITHOUT_SUM)
}
INTERNAL_ERROR = "internal_error"  # error code of all clips of a batch whose handler raised an exception

_CODES = frozenset(cls.code for cls in AudioError.__subclasses__())
_PERIOD_SECONDS = 5.0  # shorter than Prometheus' scrape interval, 15 s
_QUIET_SECONDS = 0.2  # without a batch, after which counts are emitted


class WorkerMetrics:
    """Counts in the caller's thread, emits in a thread of its own."""

    def __init__(
        self, emit: Emit, class_names: Iterable[str], *, period_seconds: float = _PERIOD_SECONDS
    ) -> None:
        """Emit zeros of all counters, so that the first clip is visible as an increase."""
        self._emit, self._period_seconds = emit, period_seconds
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str | None]] = Counter()
        self._observed = {name: [0] * (len(bounds) + 1) for name, bounds in HISTOGRAMS.items()}
        self._sums = dict.fromkeys(HISTOGRAMS, 0.0)
        self._last_batch_at = 0.0
        self._has_counts = threading.Event()
        labels = {"class": class_names, "code": (*sorted(_CODES), INTERNAL_ERROR)}
        for name, label in COUNTERS.items():
            for value in (None,) if label is None else labels[label]:
                emit(name, value, float(name == "worker_starts_total"))
        self._emit_histograms(HISTOGRAMS, self._observed, self._sums, is_first=True)
        threading.Thread(target=self._run, name="metrics", daemon=True).start()

    def count(self, clips: Sequence[bytes], results: Sequence[Result | AudioError], timings: Timings) -> None:
        """Count one batch. Readiness probes count in the timings, but not as answers."""
        probe = probe_wav()
        with self._lock:
            for name in ("decode_ms", "log_mel_ms", "inference_ms"):
                for milliseconds in getattr(timings, name):
                    self._observe(name, milliseconds)
            self._observe("batch_clips", len(clips))
            for clip, result in zip(clips, results, strict=True):
                if isinstance(result, AudioError):
                    self._counts["errors_total", result.code] += 1
                elif clip == probe:
                    self._counts["probes_total", None] += 1
                else:
                    self._count_answer(result)
        self._notify()

    def count_failure(self, num_clips: int) -> None:
        """Count a batch whose handler raised an exception."""
        with self._lock:
            self._counts["errors_total", INTERNAL_ERROR] += num_clips
        self._notify()

    def _count_answer(self, result: Result) -> None:
        """Count the class with the highest confidence, before options filter the answer."""
        best = int(result.probs.argmax())
        self._counts["predictions_total", result.config.class_names[best]] += 1
        self._counts["audio_seconds_total", None] += result.clip.seconds  # type: ignore[assignment]
        self._counts["unknown_total", None] += result.is_unknown
        self._counts["silent_total", None] += result.is_silent
        self._observe("confidence", float(result.probs[best]))
        self._observe("input_level_dbfs", result.level_dbfs)

    def _observe(self, name: str, value: float) -> None:
        self._observed[name][bisect_left(HISTOGRAMS[name], value)] += 1
        self._sums[name] += value

    def _notify(self) -> None:
        self._last_batch_at = time.monotonic()
        self._has_counts.set()

    def _run(self) -> None:
        while True:
            self._has_counts.wait()
            due = time.monotonic() + self._period_seconds
            while (now := time.monotonic()) < (until := min(due, self._last_batch_at + _QUIET_SECONDS)):
                time.sleep(until - now)
            self._has_counts.clear()
            self.emit_counts()

    def emit_counts(self) -> None:
        """Emit the counts since the last call."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
            observed, self._observed = self._observed, {n: [0] * len(c) for n, c in self._observed.items()}
            sums, self._sums = self._sums, dict.fromkeys(HISTOGRAMS, 0.0)
        for (name, label), amount in counts.items():
            if amount:
                self._emit(name, label, amount)
        self._emit_histograms([n for n, c in observed.items() if any(c)], observed, sums)

    def _emit_histograms(
        self,
        names: Iterable[str],
        observed: dict[str, list[int]],
        sums: dict[str, float],
        *,
        is_first: bool = False,
    ) -> None:
        """Emit cumulative buckets: each counts the values up to its bound."""
        for name in names:
            total = 0
            for bound, count in zip((*map(str, HISTOGRAMS[name]), "+Inf"), observed[name], strict=True):
                total += count
                if total or is_first:
                    self._emit(f"{name}_bucket", bound, total)
            self._emit(f"{name}_count", None, total)
            if name not in WITHOUT_SUM:
                self._emit(f"{name}_sum", None, sums[name])

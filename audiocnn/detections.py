"""Window probabilities -> detections: class, start, end and confidence of every event.

    windows of 2 s, in order -> frames of half a hop -> hysteresis for each class -> detections

The network sees each window repeated until it fills an input (5 s for the released model): short windows
place an event better than whole ones, see docs/detections.md. Everything is incremental: a stream feeds
window by window and gets a detection when it begins and again when it ends; a file is the same to its end.
Memory does not grow with the length of the audio. Imports no torch: the gateway uses it for streams.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from audiocnn.arrays import FloatArray
from audiocnn.config import Config, Threshold
from audiocnn.options import ClassFilter, Options

WINDOW_SECONDS = 2.0  # at most; that of the model if it is shorter
HOP_SECONDS = 0.5  # from one window to the next, unless the options say otherwise
MERGE_GAP_SECONDS = 1.0
OFF_SHARE = 0.35  # of the upper threshold, where no lower one was fitted
DEFAULT_THRESHOLD = Threshold(on=0.5, off=0.5 * OFF_SHARE)  # of a class for which none was fitted
_SMALLEST = 1e-9  # probability: the logarithm stays finite
_EPSILON = 1e-6  # seconds: sums of hops are not exact


class Detection(NamedTuple):
    """An event: a class, from when to when (seconds), and its confidences, 0 to 1."""

    label: str
    start: float
    end: float | None  # None: it goes on
    peak_confidence: float
    mean_confidence: float

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "class": self.label,
            "start": round(self.start, 3),
            "end": None if self.end is None else round(self.end, 3),
            "peak_confidence": round(self.peak_confidence, 6),
            "mean_confidence": round(self.mean_confidence, 6),
        }


@dataclass(frozen=True, kw_only=True)
class DetectionRules(ClassFilter):
    """What makes events of confidences over time, besides the thresholds. Seconds."""

    min_duration: float = 0.0  # shorter events are left out
    merge_gap: float = MERGE_GAP_SECONDS  # events of a class no further apart are one
    cooldown: float = 0.0  # after an event of a class no new one begins so long
    min_confidence: float = 0.0  # the least peak confidence, if it is above the class's threshold


def thresholds_of(config: Config) -> dict[str, Threshold]:
    """The threshold of every class: the fitted one, else that for unknown sounds, else `DEFAULT_THRESHOLD`.

    The threshold for unknown sounds is of the top class: it says nothing about a sigmoid for each class.
    """
    other = DEFAULT_THRESHOLD
    if config.unknown_threshold and config.activation == "softmax":
        other = Threshold(on=config.unknown_threshold, off=OFF_SHARE * config.unknown_threshold)
    return {name: config.thresholds.get(name, other) for name in config.class_names}


@dataclass
class _Run:
    """Neighbouring frames of a class at or above its lower threshold."""

    start: float
    end: float
    peak: float = 0.0
    summed: float = 0.0  # confidence times seconds
    seconds: float = 0.0
    is_reported: bool = False

    def add(self, start: float, end: float, confidence: float) -> None:
        self.end = end
        self.peak = max(self.peak, confidence)
        self.summed += confidence * (end - start)
        self.seconds += end - start

    def detection(self, name: str, *, is_over: bool) -> Detection:
        mean = self.summed / self.seconds
        return Detection(name, self.start, self.end if is_over else None, self.peak, mean)


class EventTracker:
    """Hysteresis with merging, for all classes at once: frames in, detections out.

    An event of a class is a stretch of frames at or above the class's `off` threshold, one of them at or
    above `on`, with interruptions of `merge_gap` at most.

    >>> tracker = EventTracker(("dog",), {"dog": Threshold(on=0.6, off=0.3)}, DetectionRules())
    >>> tracker.update(0.0, 1.0, np.array([0.7]))
    [Detection(label='dog', start=0.0, end=None, peak_confidence=0.7, mean_confidence=0.7)]
    """

    def __init__(
        self, class_names: tuple[str, ...], thresholds: dict[str, Threshold], rules: DetectionRules
    ) -> None:
        self._names, self._rules = class_names, rules
        self._on = np.array([max(thresholds[name].on, rules.min_confidence) for name in class_names])
        off = [thresholds[name].off if rules.allows(name) else np.inf for name in class_names]
        self._off = np.array(off)
        self._runs: dict[int, _Run] = {}
        self._quiet_until: dict[int, float] = {}

    def update(self, start: float, end: float, confidences: FloatArray) -> list[Detection]:
        """Take the frame from `start` to `end` seconds, later than those before.

        `confidences` are `(num_classes,)`. Returns what it settles: events that begin (their `end` is None),
        then events that are over.
        """
        over = self._close(start)
        began = []
        for label in np.flatnonzero(confidences >= self._off):
            if detection := self._extend(int(label), start, end, float(confidences[label])):
                began.append(detection)
        return began + over + self._close(end)

    def finish(self) -> list[Detection]:
        """The events that go on at the end of the audio, over now."""
        return self._close(np.inf)

    def _extend(self, label: int, start: float, end: float, confidence: float) -> Detection | None:
        """Add a frame to the class's run; the event if this frame is what makes it one."""
        if start < self._quiet_until.get(label, -np.inf) - _EPSILON:
            return None
        run = self._runs.setdefault(label, _Run(start, end))
        run.add(start, end, confidence)
        is_long = run.end - run.start >= self._rules.min_duration - _EPSILON
        if run.is_reported or run.peak < self._on[label] or not is_long:
            return None
        run.is_reported = True
        return run.detection(self._names[label], is_over=False)

    def _close(self, now: float) -> list[Detection]:
        """End the runs that nothing from `now` on can be merged with."""
        ended = [n for n, run in self._runs.items() if now - run.end > self._rules.merge_gap + _EPSILON]
        over = []
        for label in ended:
            run = self._runs.pop(label)
            if run.is_reported:
                self._quiet_until[label] = run.end + self._rules.cooldown
                over.append(run.detection(self._names[label], is_over=True))
        return over


class FrameAverager:
    """Overlapping windows in, frames of equal length out: what the windows over each frame say together.

    The confidence of a frame is the geometric mean of the windows' probabilities, weighted by the distance of
    the frame from the window's nearer edge: an event has to be in most windows that cover it.
    """

    def __init__(self, frame_seconds: float) -> None:
        self._step = frame_seconds
        self._sums: dict[
            int, tuple[float, npt.NDArray[np.float64]]
        ] = {}  # frame -> weight, weighted sum of logarithms
        self._end = 0.0  # of the audio so far

    def update(
        self, start: float, end: float, probs: FloatArray
    ) -> Iterator[tuple[float, float, FloatArray]]:
        """Take a window that starts after those before, its `probs (num_classes,)`.

        Yields the frames that no later window can change: start, end, confidences `(num_classes,)`.
        """
        yield from self._pop(start)
        self._end = max(self._end, end)
        logs = np.log(np.maximum(probs, _SMALLEST), dtype=np.float64)
        first, last = int((start + _EPSILON) // self._step), -int(-(end - _EPSILON) // self._step)
        for frame in range(first, max(last, first + 1)):
            centre = min(max((frame + 0.5) * self._step, start), end)
            weight = min(centre - start, end - centre) + _EPSILON
            total, summed = self._sums.get(frame, (0.0, np.zeros_like(logs)))
            self._sums[frame] = (total + weight, summed + weight * logs)

    def finish(self) -> Iterator[tuple[float, float, FloatArray]]:
        """Yields the frames up to the end of the audio."""
        return self._pop(np.inf)

    def _pop(self, now: float) -> Iterator[tuple[float, float, FloatArray]]:
        for frame in sorted(self._sums):
            start, end = frame * self._step, min((frame + 1) * self._step, self._end)
            if (frame + 1) * self._step > now + _EPSILON:
                return
            weight, summed = self._sums.pop(frame)
            yield start, end, np.asarray(np.exp(summed / weight), dtype=np.float32)


class Detector:
    """Windows in, detections out: `FrameAverager`, then `EventTracker` with the model's thresholds.

    >>> detector = Detector(classifier.config)
    >>> windows = classifier.predict_stream("dog.wav", window_seconds=2.0, overlap_seconds=1.5)
    >>> for start, end, probs in windows:
    ...     for detection in detector.update(start, end, probs):
    ...         print(detection.label, detection.start, detection.end)  # end is None when it begins
    >>> over = detector.finish()
    """

    def __init__(
        self, config: Config, rules: DetectionRules | None = None, *, hop_seconds: float = HOP_SECONDS
    ) -> None:
        self._frames = FrameAverager(hop_seconds / 2)
        self._events = EventTracker(config.class_names, thresholds_of(config), rules or DetectionRules())

    def update(self, start: float, end: float, probs: FloatArray) -> list[Detection]:
        """Take a window; returns the events that begin (`end` is None) and those that are over."""
        return self._track(self._frames.update(start, end, probs))

    def finish(self) -> list[Detection]:
        """The audio is over: what begins and ends with it."""
        return self._track(self._frames.finish()) + self._events.finish()

    def _track(self, frames: Iterable[tuple[float, float, FloatArray]]) -> list[Detection]:
        return [detection for frame in frames for detection in self._events.update(*frame)]


def hop_of(options: Options, config: Config) -> float:
    """Seconds from one window to the next: `HOP_SECONDS`, or what the options say, at most half a window."""
    return min(options.hop_seconds or HOP_SECONDS, window_seconds(config) / 2)


def rules_of(options: Options) -> DetectionRules:
    """The rules that a request asks for."""
    return DetectionRules(
        min_duration=options.min_duration,
        min_confidence=options.min_confidence,
        classes=options.classes,
        exclude=options.exclude,
    )


def window_seconds(config: Config) -> float:
    """Length of the windows that detections are made from."""
    return min(WINDOW_SECONDS, config.frontend.clip_seconds)


def detect(
    config: Config,
    windows: Iterable[tuple[float, float, FloatArray]],
    rules: DetectionRules | None = None,
    *,
    hop_seconds: float = HOP_SECONDS,
) -> list[Detection]:
    """All events of a file, by start, from start, end and probabilities of its windows."""
    detector = Detector(config, rules, hop_seconds=hop_seconds)
    return ended([one for window in windows for one in detector.update(*window)] + detector.finish())


def ended(found: Iterable[Detection]) -> list[Detection]:
    """Of what an `EventTracker` or `Detector` returned, the events that are over, by start."""
    return sorted((one for one in found if one.end is not None), key=lambda one: (one.start, one.label))

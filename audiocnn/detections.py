"""Window probabilities -> detections: class, start, end and confidence of every event.

    windows, in order -> frames of one hop -> hysteresis for each class -> detections

Everything is incremental: a stream feeds window by window and gets a detection when it begins and again when
it ends; a file is the same to its end. Memory does not grow with the length of the audio.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from audiocnn.arrays import FloatArray
from audiocnn.config import Config, Threshold
from audiocnn.results import Detection

DEFAULT_THRESHOLD = Threshold(on=0.5, off=0.25)  # of a class for which none was fitted
_OFF_SHARE = 0.5  # of the threshold for unknown sounds
_EPSILON = 1e-6  # seconds: sums of hops are not exact


@dataclass(frozen=True, kw_only=True)
class DetectionRules:
    """What makes events of confidences over time, besides the thresholds. Seconds."""

    min_duration: float = 0.0  # shorter events are left out
    merge_gap: float = 0.5  # events of a class no further apart are one
    cooldown: float = 0.0  # after an event of a class no new one begins so long
    classes: tuple[str, ...] = ()  # an allow-list; empty: all


def thresholds_of(config: Config) -> dict[str, Threshold]:
    """The threshold of every class: the fitted one, else one from the threshold for unknown sounds, else
    `DEFAULT_THRESHOLD`."""
    other = DEFAULT_THRESHOLD
    if config.unknown_threshold:
        other = Threshold(on=config.unknown_threshold, off=_OFF_SHARE * config.unknown_threshold)
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

    An event is a stretch of frames at or above the class's `off` threshold, one of them at or above `on`,
    with interruptions of `merge_gap` at most.

    >>> tracker = EventTracker(("dog",), {"dog": Threshold(on=0.6, off=0.3)}, DetectionRules())
    >>> tracker.update(0.0, 1.0, np.array([0.7]))
    [Detection(label='dog', start=0.0, end=None, peak_confidence=0.7, mean_confidence=0.7)]
    """

    def __init__(
        self, class_names: tuple[str, ...], thresholds: dict[str, Threshold], rules: DetectionRules
    ) -> None:
        self._names, self._rules = class_names, rules
        allowed = [name in (rules.classes or class_names) for name in class_names]
        self._on = np.array([thresholds[name].on for name in class_names])
        self._off = np.where(allowed, [thresholds[name].off for name in class_names], np.inf)
        self._runs: dict[int, _Run] = {}
        self._quiet_until: dict[int, float] = {}

    def update(self, start: float, end: float, confidences: FloatArray) -> list[Detection]:
        """Take the frame from `start` to `end` seconds, later than those before; `confidences (num_classes,)`.

        Returns what it settles: events that begin (their `end` is None), then events that are over.
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

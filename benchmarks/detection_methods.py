"""How window probabilities become events: the methods that `benchmarks.detections` compares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from audiocnn.config import Config
from audiocnn.detections import DetectionRules
from audiocnn.probabilities import softmax
from training import thresholds
from training.scene_scores import Frame, ScoredScene, Windowing

SHORT, LONG, EVIDENCE = Windowing(2.0, 0.5), Windowing(5.0, 0.5), Windowing(5.0, 2.5, evidence=True)


@dataclass(frozen=True)
class Method:
    """How window probabilities become events."""

    name: str
    windowing: Windowing  # of the windows that are scored; a multiple of their hop is used
    hop: float  # seconds
    kind: str = "windows"  # windows, evidence or merged
    per_class: bool = False  # thresholds of `training.thresholds`

    @property
    def cost(self) -> Windowing:
        """What has to be computed."""
        return Windowing(self.windowing.seconds, self.hop, self.kind == "evidence")

    @property
    def rules(self) -> DetectionRules:
        """How its frames become events."""
        return DetectionRules(merge_gap=0.0) if self.kind == "merged" else DetectionRules()


METHODS = (
    Method("top class of 5 s windows, neighbours merged", LONG, 2.5, "merged"),
    Method("5 s windows, hop 2.5 s", LONG, 2.5),
    Method("5 s windows, hop 0.5 s", LONG, 0.5),
    Method("5 s windows, hop 2.5 s, evidence maps", EVIDENCE, 2.5, "evidence"),
    Method("2 s windows, hop 1 s", SHORT, 1.0),
    Method("2 s windows, hop 0.5 s", SHORT, 0.5),
    Method("2 s windows, hop 0.5 s, a threshold per class", SHORT, 0.5, per_class=True),
)


def every(scene: ScoredScene, hop: float) -> slice:
    """The windows of a scene at this hop, which is a multiple of theirs."""
    step = float(scene.starts[1] - scene.starts[0]) if len(scene.starts) > 1 else hop
    return slice(None, None, round(hop / step))


def frames_of(scene: ScoredScene, method: Method, config: Config) -> list[Frame]:
    """Confidences over time."""
    rows = every(scene, method.hop)
    if method.kind == "merged":
        return _merged(scene, rows)
    if method.kind == "evidence":
        return thresholds.frames_of(_columns(scene, rows, config), 0.25)
    return thresholds.frames_of(list(scene.windows)[rows], method.hop / 2)


def _columns(scene: ScoredScene, rows: slice, config: Config) -> list[Frame]:
    """Every column of the evidence maps as a window of its own, by start."""
    assert scene.columns is not None
    frontend = config.frontend
    seconds = frontend.clip_seconds / scene.columns.shape[1]
    found = []
    for start, columns in zip(scene.starts[rows], scene.columns[rows], strict=True):
        for number, row in enumerate(softmax(columns / config.temperature)):
            found.append((float(start) + number * seconds, float(start) + (number + 1) * seconds, row))
    return sorted(found, key=lambda window: window[0])


def _merged(scene: ScoredScene, rows: slice) -> list[Frame]:
    """Each window speaks for the part nearest to its middle; only its top class counts."""
    starts, ends, probs = scene.starts[rows], scene.ends[rows], scene.probs[rows]
    middles = (starts + ends) / 2
    edges = [0.0, *(middles[1:] + middles[:-1]) / 2, scene.duration]
    only = np.where(probs == probs.max(axis=1, keepdims=True), probs, 0)
    return [(float(a), float(b), row) for a, b, row in zip(edges[:-1], edges[1:], only, strict=True)]

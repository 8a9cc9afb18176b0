"""Events of many files of any length, in the memory of a few windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from audiocnn.classifier import Classifier
from audiocnn.detections import HOP_SECONDS, Detection, DetectionRules, Detector, ended, window_seconds
from audiocnn.results import WindowProbs


@dataclass(frozen=True)
class FileDetector:
    """A model and the rules of a command line."""

    classifier: Classifier
    rules: DetectionRules = field(default_factory=DetectionRules)
    hop_seconds: float = HOP_SECONDS

    def detect(self, paths: Iterable[str]) -> Iterator[tuple[str, list[Detection], Exception | None]]:
        """Every path with its events, by start, and the error that ended its file.

        `paths` is read lazily: an item is taken, then opened.
        """
        length = window_seconds(self.classifier.config)
        streams = self.classifier.predict_streams(
            paths, window_seconds=length, overlap_seconds=length - self.hop_seconds
        )
        detector, found = self._detector(), list[Detection]()
        for path, item in streams:
            if isinstance(item, WindowProbs):
                found += detector.update(item.start, item.end, item.probs)
                continue
            yield path, ended(found + detector.finish()), item.error
            detector, found = self._detector(), []

    def _detector(self) -> Detector:
        return Detector(self.classifier.config, self.rules, hop_seconds=self.hop_seconds)

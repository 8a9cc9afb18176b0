"""Scores of how surely a clip is of a class that the network knows: larger is surer.

Legend of shapes: n clips, k classes, d features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.calibration import softmax

FloatArray = npt.NDArray[np.float32]
Scores = npt.NDArray[np.floating]

_NEIGHBOURS = 10


@dataclass(frozen=True)
class Answers:
    """What the network computed of some clips."""

    logits: FloatArray  # (n, k)
    embedding: FloatArray  # (n, d)


@dataclass(frozen=True)
class Reference:
    """What scores compare with: the last layer, and the features of the training clips."""

    weight: FloatArray  # (k, d)
    embedding: FloatArray  # (m, d)

    @property
    def mean(self) -> FloatArray:
        """Mean feature: `(d,)`."""
        return np.asarray(self.embedding.mean(axis=0))


def max_probability(answers: Answers, reference: Reference) -> Scores:
    """Confidence in the top class."""
    return np.asarray(softmax(answers.logits).max(axis=1))


def max_logit(answers: Answers, reference: Reference) -> Scores:
    """The largest logit (Hendrycks et al., "Scaling Out-of-Distribution Detection", ICML 2022)."""
    return np.asarray(answers.logits.max(axis=1))


def angle(answers: Answers, reference: Reference) -> Scores:
    """Cosine between the feature, relative to the mean feature, and the weights of the top class."""
    top = reference.weight[answers.logits.argmax(axis=1)]
    return np.asarray((_unit(answers.embedding - reference.mean) * _unit(top)).sum(axis=1))


def angle_and_norm(answers: Answers, reference: Reference) -> Scores:
    """`angle`, and a tenth of the feature's norm in units of the mean norm of the training clips (after Liu
    and Qin, "Detecting Out-of-Distribution through the Lens of Neural Collapse", CVPR 2025)."""
    norm = np.linalg.norm(answers.embedding, axis=1)
    usual = np.linalg.norm(reference.embedding, axis=1).mean()
    return np.asarray(angle(answers, reference) + 0.1 * norm / usual)


def neighbours(answers: Answers, reference: Reference) -> Scores:
    """Cosine to the tenth nearest training clip (Sun et al., "Out-of-Distribution Detection with Deep Nearest
    Neighbors", ICML 2022)."""
    cosine = _unit(answers.embedding - reference.mean) @ _unit(reference.embedding - reference.mean).T
    count = min(_NEIGHBOURS, cosine.shape[1])
    return np.asarray(np.sort(cosine, axis=1)[:, -count])


SCORES: dict[str, Callable[[Answers, Reference], Scores]] = {
    "max_probability": max_probability,
    "max_logit": max_logit,
    "angle": angle,
    "angle_and_norm": angle_and_norm,
    "neighbours": neighbours,
}


def _unit(rows: FloatArray) -> FloatArray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9))

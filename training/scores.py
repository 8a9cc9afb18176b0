"""Scores for open-set recognition: larger means more likely a known class.

Shapes: n clips, k classes, d features; every score is `(n,)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from audiocnn.arrays import AnyFloatArray, FloatArray
from audiocnn.probabilities import softmax

_NEIGHBOURS = 10


@dataclass(frozen=True)
class NetworkOutputs:
    """Outputs of the network for some clips."""

    logits: FloatArray  # (n, k)
    embedding: FloatArray  # (n, d)


@dataclass(frozen=True)
class Reference:
    """The weights of the last layer, and the features of the training clips."""

    weight: FloatArray  # (k, d)
    embedding: FloatArray  # (m, d)

    @property
    def mean(self) -> FloatArray:
        """Mean feature: `(d,)`."""
        return np.asarray(self.embedding.mean(axis=0))


def max_probability(outputs: NetworkOutputs, reference: Reference) -> AnyFloatArray:
    """Confidence of the top class."""
    return np.asarray(softmax(outputs.logits).max(axis=1))


def max_logit(outputs: NetworkOutputs, reference: Reference) -> AnyFloatArray:
    """The largest logit (Hendrycks et al., "Scaling Out-of-Distribution Detection", ICML 2022)."""
    return np.asarray(outputs.logits.max(axis=1))


def angle(outputs: NetworkOutputs, reference: Reference) -> AnyFloatArray:
    """Cosine between the feature minus the mean feature and the weights of the top class."""
    top = reference.weight[outputs.logits.argmax(axis=1)]
    return np.asarray((_unit(outputs.embedding - reference.mean) * _unit(top)).sum(axis=1))


def angle_and_norm(outputs: NetworkOutputs, reference: Reference) -> AnyFloatArray:
    """`angle` plus a tenth of the feature's norm, relative to the mean norm of the training clips (after Liu
    and Qin, "Detecting Out-of-Distribution through the Lens of Neural Collapse", CVPR 2025)."""
    norm = np.linalg.norm(outputs.embedding, axis=1)
    usual = np.linalg.norm(reference.embedding, axis=1).mean()
    return np.asarray(angle(outputs, reference) + 0.1 * norm / usual)


def neighbours(outputs: NetworkOutputs, reference: Reference) -> AnyFloatArray:
    """Cosine to the tenth nearest training clip (Sun et al., "Out-of-Distribution Detection with Deep Nearest
    Neighbors", ICML 2022)."""
    cosine = _unit(outputs.embedding - reference.mean) @ _unit(reference.embedding - reference.mean).T
    count = min(_NEIGHBOURS, cosine.shape[1])
    return np.asarray(np.sort(cosine, axis=1)[:, -count])


SCORES: dict[str, Callable[[NetworkOutputs, Reference], AnyFloatArray]] = {
    "max_probability": max_probability,
    "max_logit": max_logit,
    "angle": angle,
    "angle_and_norm": angle_and_norm,
    "neighbours": neighbours,
}


def _unit(rows: FloatArray) -> FloatArray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9))

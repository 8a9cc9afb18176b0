"""Logits to probabilities."""

from __future__ import annotations

import numpy as np
from scipy import special

from audiocnn.arrays import AnyFloatArray, FloatArray
from audiocnn.config import Config
from audiocnn.errors import ModelOutputError


def probabilities(logits: FloatArray, config: Config) -> FloatArray:
    """Calibrated probabilities float32 `(..., num_classes)` of logits of that shape.

    With a background class they sum to less than 1: the rest is the probability of the background. Raises
    `ModelOutputError` if a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise ModelOutputError("the network returned logits that are not finite")
    if config.activation == "sigmoid":
        return np.asarray(sigmoid(logits, config.temperature), np.float32)
    if config.has_background:
        logits = np.concatenate([logits, np.zeros((*logits.shape[:-1], 1), np.float32)], axis=-1)
    probs = softmax(logits, config.temperature)
    return np.asarray(probs[..., :-1] if config.has_background else probs, np.float32)


def softmax(logits: AnyFloatArray, temperature: float = 1.0) -> AnyFloatArray:
    """Probabilities float64 along the last axis, of logits divided by a temperature."""
    return np.asarray(special.softmax(logits.astype(np.float64) / temperature, axis=-1))


def sigmoid(logits: AnyFloatArray, temperature: float = 1.0) -> AnyFloatArray:
    """Probabilities float64 of each class by itself, of logits divided by a temperature."""
    return np.asarray(special.expit(logits.astype(np.float64) / temperature))

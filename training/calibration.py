"""How far a confidence can be believed: calibration error, temperature, and telling known from unknown.

numpy only. `n` clips, `k` classes: probs `(n, k)` in [0, 1] with rows that sum to 1, logits `(n, k)` up to a
constant per row, target `(n,)` class indices. All shares and errors are from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.integer[Any]]

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
_SMALLEST = 1e-30  # a probability of 0 is rounding: its logarithm must stay finite
_GOLDEN = (np.sqrt(5) - 1) / 2


def nll(probs: Floats, target: Indices) -> float:
    """Mean negative log-likelihood of the true class, in nats; 0 is best, `log(k)` is guessing."""
    true = probs[np.arange(len(target)), target].astype(np.float64)
    return float(-np.log(np.maximum(true, _SMALLEST)).mean())


def reliability(probs: Floats, target: Indices, bins: int = 15) -> list[dict[str, float]]:
    """`confidence`, `accuracy` (means) and `count` of every bin, by rising confidence.

    Clips are sorted by the confidence of their top class and cut into bins of equal numbers of clips
    (equal mass: Nguyen and O'Connor, "Posterior calibration and exploratory analysis for natural language
    processing models", EMNLP 2015). With fewer clips than bins, every clip is a bin.
    """
    assert len(probs) == len(target) > 0, "nothing to measure"
    confidence = probs.max(axis=1).astype(np.float64)
    is_right = probs.argmax(axis=1) == target
    order = np.argsort(confidence, kind="stable")
    return [
        {"confidence": float(confidence[b].mean()), "accuracy": float(is_right[b].mean()), "count": len(b)}
        for b in np.array_split(order, bins)
        if len(b)
    ]


def ece(probs: Floats, target: Indices, bins: int = 15) -> float:
    """Expected calibration error: the mean of |accuracy - confidence| over the bins, weighted by clips.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, with the bins of `reliability`.
    """
    rows = reliability(probs, target, bins)
    return sum(abs(row["accuracy"] - row["confidence"]) * row["count"] for row in rows) / len(target)


def as_logits(probs: Floats, temperature: float) -> Floats:
    """Logits, up to a constant per clip, of probabilities that were made with `temperature`.

    Exact for clips of one window. The probabilities of a longer clip are a mean over windows: for it
    these are the logits of an equivalent single answer, which scale almost, not exactly, alike.
    """
    return np.log(np.maximum(probs.astype(np.float64), _SMALLEST)) * temperature


def softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Probabilities float64 of logits divided by a temperature."""
    scaled = logits.astype(np.float64) / temperature
    exp = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=1, keepdims=True))


def fit_temperature(logits: Floats, target: Indices) -> float:
    """The temperature (0.05 to 20) that minimises the negative log-likelihood (Guo et al., ICML 2017).

    The likelihood's logarithm is concave in 1/T, so over log T there is one minimum and golden-section
    search finds it. Where every clip is named rightly the minimum is at 0, and the lower bound is returned.
    """
    assert len(logits) == len(target) > 0, "nothing to fit on"

    def loss(log_t: float) -> float:
        scaled = logits.astype(np.float64) / np.exp(log_t)
        scaled -= scaled.max(axis=1, keepdims=True)
        return float((np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(target)), target]).mean())

    return float(np.exp(_minimise(loss, np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))))


def _minimise(loss: Callable[[float], float], low: float, high: float, tolerance: float = 1e-6) -> float:
    """Where a function with one minimum between `low` and `high` has it; ties go to the lower side.

    Golden-section search (Kiefer, "Sequential minimax search for a maximum", 1953).
    """
    while high - low > tolerance:
        step = _GOLDEN * (high - low)
        left, right = high - step, low + step
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    return (low + high) / 2


def auroc(known_scores: Floats, unknown_scores: Floats) -> float:
    """The chance that a known sound scores higher than an unknown one; a tie counts half.

    That is the area under the ROC curve, from ranks (Fawcett, "An introduction to ROC analysis", 2006).
    """
    assert len(known_scores) > 0, "no scores of known sounds"
    assert len(unknown_scores) > 0, "no scores of unknown sounds"
    ranked = np.sort(unknown_scores)
    below = np.searchsorted(ranked, known_scores, side="left")
    not_above = np.searchsorted(ranked, known_scores, side="right")
    return float((below + not_above).mean() / 2 / len(ranked))


def threshold_for(known_scores: Floats, refused_share: float = 0.05) -> float:
    """The highest threshold with which at most `refused_share` of the known sounds are refused.

    A score is refused if it is below the threshold (`Config.unknown_threshold`), not if it equals it.
    """
    assert len(known_scores) > 0, "no scores of known sounds"
    assert 0 <= refused_share < 1, "a share of known sounds"
    refused = int(refused_share * len(known_scores) + 1e-9)  # 0.05 * 20 may be a hair under 1
    return float(np.sort(known_scores)[refused])

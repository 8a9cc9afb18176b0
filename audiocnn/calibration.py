"""Calibration error, temperature scaling, and thresholds for unknown sounds and for detections.

Shapes, for `n` clips and `k` classes: probs `(n, k)` in [0, 1] with rows that sum to 1, logits `(n, k)` up to
a constant per row, target `(n,)` class indices. Shares and errors are from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from audiocnn.arrays import AnyFloatArray, AnyIntArray, BoolArray, IntArray

LEVELS = tuple(round(0.05 * n, 2) for n in range(2, 20))  # of thresholds of detections: 0.1 to 0.95
PRIOR_DETECTIONS = 5.0  # weight of all classes together in the precision of one
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
_SMALLEST = 1e-30  # for probabilities that were rounded to 0: the logarithm stays finite
_GOLDEN = (np.sqrt(5) - 1) / 2


def nll(probs: AnyFloatArray, target: AnyIntArray) -> float:
    """Mean negative log-likelihood of the true class in nats; a uniform distribution has `log(k)`."""
    true = probs[np.arange(len(target)), target].astype(np.float64)
    return float(-np.log(np.maximum(true, _SMALLEST)).mean())


def reliability(probs: AnyFloatArray, target: AnyIntArray, bins: int = 15) -> list[dict[str, float]]:
    """Mean `confidence`, `accuracy` and the `count` of every bin, by rising confidence.

    Clips are sorted by the confidence of their top class and split into bins of equal numbers of clips
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


def ece(probs: AnyFloatArray, target: AnyIntArray, bins: int = 15) -> float:
    """Expected calibration error: the mean of |accuracy - confidence| over the bins, weighted by clips.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, with the bins of `reliability`.
    """
    rows = reliability(probs, target, bins)
    return sum(abs(row["accuracy"] - row["confidence"]) * row["count"] for row in rows) / len(target)


def ece_of_sampling(probs: AnyFloatArray, draws: int = 200, seed: int = 0) -> float:
    """The mean `ece` of labels that are drawn from `probs`: what so few clips show without any error.

    Consistency resampling: Bröcker and Smith, "Increasing the Reliability of Reliability Diagrams", Weather
    and Forecasting 22, 2007.
    """
    rng, limits = np.random.default_rng(seed), probs.astype(np.float64).cumsum(axis=1)
    limits /= limits[:, -1:]
    drawn = ((rng.random((len(probs), 1)) >= limits).sum(axis=1) for _ in range(draws))
    return float(np.mean([ece(probs, target) for target in drawn]))


def as_logits(probs: AnyFloatArray, temperature: float) -> AnyFloatArray:
    """Logits, up to a constant per clip, of probabilities that were computed with `temperature`.

    Exact for clips of one window. The probabilities of a longer clip are a mean over windows; their logits
    are an approximation.
    """
    return np.log(np.maximum(probs.astype(np.float64), _SMALLEST)) * temperature


def log_softmax(logits: AnyFloatArray) -> AnyFloatArray:
    """Log-probabilities `(n, k)` of logits."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def fit_temperature(logits: AnyFloatArray, target: AnyIntArray, *, smoothing: float = 0.0) -> float:
    """The temperature (0.05 to 20) that minimises the negative log-likelihood (Guo et al., ICML 2017).

    The log-likelihood is concave in 1/T, so golden-section search over log T finds the only minimum. If every
    clip is classified correctly the minimum is at 0, and the lower bound is returned, unless the share
    `smoothing` of the target is spread over all classes.
    """
    assert len(logits) == len(target) > 0, "nothing to fit on"

    def loss(log_t: float) -> float:
        log_probs = log_softmax(logits.astype(np.float64) / np.exp(log_t))
        true = log_probs[np.arange(len(target)), target].mean()
        return float(-(1 - smoothing) * true - smoothing * log_probs.mean())

    return float(np.exp(minimise(loss, np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))))


def minimise(loss: Callable[[float], float], low: float, high: float, tolerance: float = 1e-6) -> float:
    """The position of the only minimum between `low` and `high`; on a plateau its lower end.

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


def auroc(known_scores: AnyFloatArray, unknown_scores: AnyFloatArray) -> float:
    """Area under the ROC curve: the probability that a known sound scores higher than an unknown one.

    A tie counts half. Computed from ranks (Fawcett, "An introduction to ROC analysis", 2006).
    """
    assert len(known_scores) > 0, "no scores of known sounds"
    assert len(unknown_scores) > 0, "no scores of unknown sounds"
    ranked = np.sort(unknown_scores)
    below = np.searchsorted(ranked, known_scores, side="left")
    not_above = np.searchsorted(ranked, known_scores, side="right")
    return float((below + not_above).mean() / 2 / len(ranked))


def threshold_for(known_scores: AnyFloatArray, rejected_share: float = 0.05) -> float:
    """The highest threshold that rejects at most `rejected_share` of the known sounds.

    A score is rejected if it is below the threshold (`Config.unknown_threshold`), not if it equals it.
    """
    assert len(known_scores) > 0, "no scores of known sounds"
    assert 0 <= rejected_share < 1, "a share of known sounds"
    rejected = int(rejected_share * len(known_scores) + 1e-9)  # 0.05 * 20 may be rounded to less than 1
    return float(np.sort(known_scores)[rejected])


def precise_levels(
    detections: IntArray, true: IntArray, *, precision: float, is_allowed: BoolArray | bool = True
) -> IntArray:
    """Index of the lowest of `LEVELS` from which on a class's detections are as precise as wanted.

    `detections` and `true`, those that are right, are counts `(num_classes, num_levels)`, as is `is_allowed`.
    The precision of a class is estimated with `PRIOR_DETECTIONS` at the precision of all classes together:
    a class has few detections. A class that is never good enough gets the highest level.
    """
    pooled = true.sum(axis=0) / np.maximum(detections.sum(axis=0), 1)
    estimate = (true + PRIOR_DETECTIONS * pooled) / (detections + PRIOR_DETECTIONS)
    is_good = (estimate >= precision) & is_allowed
    from_here_on = np.logical_and.accumulate(is_good[:, ::-1], axis=1)[:, ::-1]
    return np.where(from_here_on.any(axis=1), from_here_on.argmax(axis=1), len(LEVELS) - 1)

"""Metrics and calibration where a clip has several labels: a sigmoid for each class.

Shapes, for `n` clips and `k` classes: probs `(n, k)` in [0, 1], logits `(n, k)`, target `(n, k)` of 0 and 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special

from audiocnn import calibration
from audiocnn.arrays import AnyFloatArray, AnyIntArray

_DECISION = 0.5  # probability from which on a class counts as predicted
_SMALLEST = 1e-7  # float32 probabilities round to 0 and 1: the logit stays finite


def average_precision(scores: AnyFloatArray, target: AnyIntArray) -> float:
    """Area under the precision-recall curve of one class, `(n,)` each: the mean precision at every positive.

    Clips with equal scores are one step of the curve, as in scikit-learn. There must be a positive.
    """
    assert target.any(), "no clip has the class"
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(target[order])
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of each group of equal scores
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def nll(probs: AnyFloatArray, target: AnyIntArray) -> float:
    """Mean negative log-likelihood of all decisions, in nats."""
    likelihood = np.where(target == 1, probs, 1 - probs.astype(np.float64))
    return float(-np.log(np.maximum(likelihood, _SMALLEST)).mean())


def reliability(probs: AnyFloatArray, target: AnyIntArray, bins: int = 15) -> list[dict[str, float]]:
    """Mean `confidence`, `accuracy` (share of positives) and `count` of every bin of all decisions, by rising
    probability, with equal numbers of decisions."""
    flat, positive = probs.ravel().astype(np.float64), target.ravel()
    order = np.argsort(flat, kind="stable")
    return [
        {"confidence": float(flat[b].mean()), "accuracy": float(positive[b].mean()), "count": len(b)}
        for b in np.array_split(order, bins)
        if len(b)
    ]


def ece(probs: AnyFloatArray, target: AnyIntArray) -> float:
    """Expected calibration error over the bins of `reliability`."""
    rows = reliability(probs, target)
    return sum(abs(row["accuracy"] - row["confidence"]) * row["count"] for row in rows) / target.size


def as_logits(probs: AnyFloatArray, temperature: float) -> AnyFloatArray:
    """Logits of probabilities that were computed with `temperature`."""
    clipped = np.clip(probs.astype(np.float64), _SMALLEST, 1 - _SMALLEST)
    return np.asarray(special.logit(clipped) * temperature)


def fit_temperature(logits: AnyFloatArray, target: AnyIntArray) -> float:
    """The temperature that minimises the negative log-likelihood of all decisions."""
    pairs = np.stack([np.zeros_like(logits), logits], axis=-1).reshape(-1, 2)  # softmax: the sigmoid
    return calibration.fit_temperature(pairs, target.ravel().astype(np.int64))


def metrics(probs: AnyFloatArray, target: AnyIntArray) -> dict[str, Any]:
    """`map` (mean average precision over the classes that a clip has), `micro_f1` at 0.5, `ece`, `nll`,
    `num_clips`, the bins of `reliability`, and `average_precision` of every class (None: no clip has it)."""
    by_class = [
        average_precision(probs[:, number], target[:, number]) if target[:, number].any() else None
        for number in range(probs.shape[1])
    ]
    predicted = probs >= _DECISION
    hits = int((predicted & (target == 1)).sum())
    return {
        "map": float(np.mean([value for value in by_class if value is not None])),
        "micro_f1": 2 * hits / max(int(predicted.sum() + target.sum()), 1),
        "ece": ece(probs, target),
        "nll": nll(probs, target),
        "num_clips": len(target),
        "reliability": reliability(probs, target),
        "average_precision": by_class,
    }

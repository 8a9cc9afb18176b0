"""Temperature, calibration error and AUROC on synthetic predictions."""

from __future__ import annotations

import numpy as np
import pytest

from audiocnn import calibration
from audiocnn.probabilities import softmax


def sampled(count: int, temperature: float, *, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Logits and targets such that the logits divided by `temperature` are exactly calibrated."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (count, classes))
    probs = softmax(logits)
    target = (rng.random((count, 1)) > probs.cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)
    return logits * temperature, target


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_of_scaled_logits_is_found(temperature: float) -> None:
    logits, target = sampled(8_000, temperature)
    assert calibration.fit_temperature(logits, target) == pytest.approx(temperature, rel=0.03)
    shifted = logits + np.arange(len(logits))[:, None] % 7  # logits are known up to a constant per clip
    assert calibration.fit_temperature(shifted, target) == pytest.approx(temperature, rel=0.03)


def test_the_temperature_is_the_minimum_also_of_few_clips_and_stays_in_bounds() -> None:
    logits, target = sampled(40, 1.7)
    found = calibration.fit_temperature(logits, target)
    losses = [calibration.nll(softmax(logits, t), target) for t in (found * 0.98, found, found / 0.98)]
    assert losses[1] == min(losses)
    perfect = np.eye(4) * 5
    assert calibration.fit_temperature(perfect, np.arange(4)) == pytest.approx(calibration.MIN_TEMPERATURE)
    hopeless = calibration.fit_temperature(perfect, (np.arange(4) + 1) % 4)
    assert hopeless == pytest.approx(calibration.MAX_TEMPERATURE)


def test_probabilities_give_their_logits_back() -> None:
    logits, _ = sampled(50, 1.0)
    again = calibration.as_logits(softmax(logits, 1.4).astype(np.float32), 1.4)
    offset = again - logits
    np.testing.assert_allclose(offset - offset[:, :1], 0, atol=1e-5)
    assert np.isfinite(calibration.as_logits(np.array([[1.0, 0.0]]), 1.0)).all()


def test_ece_against_numbers_counted_by_hand() -> None:
    probs = np.array([[0.6, 0.4], [0.7, 0.3], [0.2, 0.8], [0.1, 0.9]])
    target = np.array([1, 0, 1, 1])
    bins = calibration.reliability(probs, target, bins=2)
    assert [row["count"] for row in bins] == [2, 2]
    assert [row["confidence"] for row in bins] == pytest.approx([0.65, 0.85])
    assert [row["accuracy"] for row in bins] == [0.5, 1.0]
    assert calibration.ece(probs, target, bins=2) == pytest.approx((0.15 + 0.15) / 2)
    assert len(calibration.reliability(probs, target)) == 4  # fewer clips than bins


def test_ece_is_small_for_calibrated_and_large_for_scaled_logits() -> None:
    logits, target = sampled(20_000, 3.0)
    assert calibration.ece(softmax(logits, 3.0), target) < 0.015
    assert calibration.ece(softmax(logits), target) > 0.1
    counts = [row["count"] for row in calibration.reliability(softmax(logits), target)]
    assert len(counts) == 15
    assert max(counts) - min(counts) <= 1


def test_the_ece_of_sampling_falls_with_the_number_of_clips_and_is_0_without_doubt() -> None:
    probs = np.random.default_rng(0).dirichlet(np.ones(5), 6_400)
    few, many = (calibration.ece_of_sampling(probs[:count]) for count in (400, 6_400))
    assert 3 < few / many < 5  # as the square root of the number
    assert calibration.ece_of_sampling(np.eye(5)) == 0


def test_nll_of_a_guess_is_the_logarithm_of_the_classes() -> None:
    target = np.array([0, 4, 9])
    assert calibration.nll(np.full((3, 10), 0.1), target) == pytest.approx(np.log(10))
    assert np.isfinite(calibration.nll(np.eye(10)[[1, 4, 9]], target))


def test_auroc_counts_pairs_and_halves_ties() -> None:
    rng = np.random.default_rng(1)
    known, unknown = rng.integers(3, 12, 60), rng.integers(0, 9, 40)
    pairs = known[:, None] - unknown
    assert calibration.auroc(known, unknown) == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2)
    assert calibration.auroc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert calibration.auroc(np.ones(5), np.ones(3)) == 0.5


@pytest.mark.parametrize(
    ("count", "share", "refused"), [(20, 0.05, 1), (19, 0.05, 0), (1000, 0.05, 50), (7, 0, 0)]
)
def test_a_threshold_refuses_no_more_than_it_may(count: int, share: float, refused: int) -> None:
    scores = np.random.default_rng(2).permutation(count) / count
    threshold = calibration.threshold_for(scores, share)
    assert (scores < threshold).sum() == refused
    tied = np.full(50, 0.7)
    assert (tied < calibration.threshold_for(tied)).sum() == 0

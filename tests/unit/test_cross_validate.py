"""The confidence interval of cross-validation."""

from __future__ import annotations

import pytest

from training import cross_validate


def test_the_interval_is_that_of_the_textbook() -> None:
    low, high = cross_validate.interval([0.8, 0.82, 0.84, 0.86]) or [0, 0]
    assert (low + high) / 2 == pytest.approx(0.83)
    assert (high - low) / 2 == pytest.approx(3.1824 * 0.025820 * 1.118034, rel=1e-3)
    assert cross_validate.interval([0.9]) is None

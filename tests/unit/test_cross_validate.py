"""Many runs: bounded, resumable, and a table that says what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from training import cross_validate


def test_the_interval_is_that_of_the_textbook() -> None:
    low, high = cross_validate.interval([0.8, 0.82, 0.84, 0.86]) or [0, 0]
    assert (low + high) / 2 == pytest.approx(0.83)
    assert (high - low) / 2 == pytest.approx(3.1824 * 0.025820 * 1.118034, rel=1e-3)
    assert cross_validate.interval([0.9]) is None


def test_a_run_that_fails_is_shown_with_the_end_of_its_log(
    many_tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(many_tones), "--out", str(tmp_path), "--folds", "2"]
    assert (
        cross_validate.main([*arguments, "--variant", "big=--recipe plain --width 8 --batch-size 999"]) == 2
    )
    assert "fewer than one batch of 999" in capsys.readouterr().err

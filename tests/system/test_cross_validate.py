"""Cross-validation: parallel runs, resuming and failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training import compare, cross_validate


def test_a_comparison_is_cut_resumed_and_tabulated(
    many_tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(many_tones), "--out", str(tmp_path), "--epochs", "2", "--width", "8"]
    arguments += ["--recipes", "baseline", "plain", "--folds", "2"]
    # 0.06 s: no machine has imported PyTorch by then, let alone finished a run
    assert compare.main([*arguments, "--minutes", "0.001"]) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 runs are not done" in printed
    assert json.loads(printed.splitlines()[-1]) == []

    assert compare.main(arguments) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["name"] for row in rows] == ["baseline", "plain"]
    for row in rows:
        assert row["runs"] == 1
        assert 0 <= row["last_epoch"] <= row["best_on_test"] <= 1

    log = tmp_path / "baseline-fold2-seed0" / "log.txt"
    size = log.stat().st_size
    assert compare.main(arguments) == 0  # nothing is done twice
    assert log.stat().st_size == size


def test_a_run_that_fails_is_shown_with_the_end_of_its_log(
    many_tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(many_tones), "--out", str(tmp_path), "--folds", "2"]
    assert (
        cross_validate.main([*arguments, "--variant", "big=--recipe plain --width 8 --batch-size 999"]) == 2
    )
    assert "fewer than one batch of 999" in capsys.readouterr().err

"""Many runs: bounded, resumable, and a table that says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.sounds import sound_file, tone
from training import compare


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tones")
    rows = ["filename,fold,label"]
    for number in range(80):
        (folder / f"{number}.wav").write_bytes(sound_file(tone(0.5, hz=[300, 3000][number % 2] + number)))
        rows.append(f"{number}.wav,{1 + number // 40},{'ab'[number % 2]}")
    (folder / "tones.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_a_comparison_is_cut_resumed_and_tabulated(
    tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(tones), "--out", str(tmp_path), "--epochs", "2", "--width", "8"]
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

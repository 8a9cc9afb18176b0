"""Open-set evaluation as a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.sounds import sound_file, tone
from training import far_sounds, open_set


def test_the_command_trains_without_and_measures_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(far_sounds, "COUNT", 3)  # a song takes seconds
    rows = ["filename,fold,label"]
    for number in range(60):
        name = f"c{number % 5}"
        (tmp_path / f"{number}.wav").write_bytes(sound_file(tone(0.5, hz=200.0 * 2 ** (number % 5))))
        rows.append(f"{number}.wav,{1 + number // 30},{name}")
    (tmp_path / "tones.csv").write_text("\n".join(rows) + "\n")
    flags = "--recipe plain --width 8 --epochs 2 --batch-size 8"
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "runs"), "--folds", "2", "--flags", flags]
    assert open_set.main(arguments) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["runs"] == summary["of"] == 5
    assert all(len(row["near"]) == 5 for row in summary["auroc"].values())

    run = next((tmp_path / "runs").glob("without*"))
    only_far = ["--data", str(tmp_path), "--out", str(tmp_path / "far"), "--run"]
    assert open_set.main([*only_far, f"{run}=1"]) == 2  # it was trained on fold 1
    assert open_set.main([*only_far, f"{run}=2"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out.splitlines()[-1])["unknown_far"] <= 1

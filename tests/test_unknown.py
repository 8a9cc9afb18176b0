"""Leaving classes out, and telling what was left out from what was learnt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from audiocnn.datasets import Dataset
from audiocnn.errors import DatasetError
from audiocnn.labels import ESC50
from tests.conftest import sound_file, tone
from training import unknown
from training.data import without_classes

NAMES = [label.name for label in ESC50]


def test_every_class_is_left_out_once_and_no_group_as_a_whole() -> None:
    rotations = [unknown.left_out(NAMES, rotation) for rotation in range(unknown.ROTATIONS)]
    assert sorted(name for rotation in rotations for name in rotation) == sorted(NAMES)
    groups = {label.name: label.group for label in ESC50}
    for rotation in rotations:
        assert [sum(groups[name] == group for name in rotation) for group in set(groups.values())] == [2] * 5


def test_a_dataset_without_some_classes(esc50: Dataset) -> None:
    smaller = without_classes(esc50, ["dog", "rain"])
    assert len(smaller.class_names) == 48
    assert not {clip.label for clip in smaller.clips} & {"dog", "rain"}
    assert len(smaller.clips) == len(esc50.clips) * 48 // 50
    with pytest.raises(DatasetError, match="unicorn"):
        without_classes(esc50, ["unicorn"])


def test_the_summary_against_numbers_counted_by_hand() -> None:
    known = np.linspace(0.5, 1.0, 20, dtype=np.float32)
    apart = np.full(10, 0.2, np.float32)
    same = known.copy()
    summary = unknown.summarise([(known, apart), (known, same)])
    assert summary["auroc_per_run"] == [1.0, 0.5]
    assert summary["auroc"] == 0.75
    assert summary["known_refused"] == pytest.approx(0.05)
    assert summary["unknown_refused"] == pytest.approx((1.0 + 0.05) / 2)


@pytest.mark.slow
def test_the_command_trains_without_and_measures_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["filename,fold,label"]
    for number in range(60):
        name = f"c{number % 5}"
        (tmp_path / f"{number}.wav").write_bytes(sound_file(tone(0.5, hz=200.0 * 2 ** (number % 5))))
        rows.append(f"{number}.wav,{1 + number // 30},{name}")
    (tmp_path / "tones.csv").write_text("\n".join(rows) + "\n")
    flags = "--recipe plain --width 8 --epochs 2 --batch-size 8"
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "runs"), "--folds", "2", "--flags", flags]
    assert unknown.main(arguments) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["runs"] == summary["of"] == 5
    assert len(summary["auroc_per_run"]) == 5

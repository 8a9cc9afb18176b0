"""`training.train` in this process, with a small network."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.command_line import Finished, finished
from tests.helpers.sounds import sound_file, tone
from training import train as training

RECIPE = ("--recipe=plain", "--epochs=40", "--ema-decay=0.8", "--max-lr=0.01", "--weight-decay=0")


def train_arguments(data: Path, out: Path, *options: str) -> list[str]:
    command = ["--data", str(data), "--train-folds", "1", "--out", str(out)]
    return [*command, "--width", "8", "--batch-size", "6", "--threads", "1", *options]


def train(data: Path, out: Path, *options: str) -> Finished:
    return finished(lambda: training.main(train_arguments(data, out, *options)))


@pytest.fixture(scope="module")
def many_tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pitches, two folds of 40 clips."""
    folder = tmp_path_factory.mktemp("tones")
    rows = ["filename,fold,label"]
    for number in range(80):
        (folder / f"{number}.wav").write_bytes(sound_file(tone(0.5, hz=[300, 3000][number % 2] + number)))
        rows.append(f"{number}.wav,{1 + number // 40},{'ab'[number % 2]}")
    (folder / "tones.csv").write_text("\n".join(rows) + "\n")
    return folder

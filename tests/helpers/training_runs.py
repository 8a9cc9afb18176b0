"""`training.train` in a process of its own, small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import ROOT

RECIPE = (
    "--recipe",
    "plain",
    "--epochs",
    "40",
    "--ema-decay",
    "0.8",
    "--max-lr",
    "0.01",
    "--weight-decay",
    "0",
)


def train(data: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "training.train", "--data", str(data), "--train-folds", "1"]
    command += ["--out", str(out), "--width", "8", "--batch-size", "6", "--threads", "1", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

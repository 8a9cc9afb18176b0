"""The tuning command, complete."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from audiocnn.torchserve.properties import read_properties
from tests.helpers.paths import ROOT


def test_tuning_for_real(tmp_path: Path) -> None:
    for name in ("config.properties", "handler/model-config.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "-m", "audiocnn", "tune", "latency", "--seconds", "1", "--rounds", "1"]
    command += ["--config", str(tmp_path / "config.properties")]
    command += ["--handler-config", str(tmp_path / "model-config.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    chosen = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))["best"]
    entry = json.loads(read_properties(tmp_path / "config.properties")["models"])["audiocnn"]["1.0"]
    assert entry["minWorkers"] == chosen["workers"]
    assert yaml.safe_load((tmp_path / "model-config.yaml").read_text())["threads"] == chosen["threads"]

"""`audiocnn classify` in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from audiocnn.audio import synthetic
from tests.helpers.paths import ROOT


def test_the_command_line_prints_a_table(tmp_path: Path) -> None:
    (tmp_path / "rain.wav").write_bytes(synthetic.wav("rain"))
    command = [sys.executable, "-m", "audiocnn", "classify", str(tmp_path / "rain.wav")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "rain.wav" in done.stdout


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name in ("rain", "siren"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.wav").write_bytes(synthetic.wav(name))
    command = [sys.executable, "-m", "audiocnn", "classify", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "rain/1.wav" in done.stdout
    assert "siren/1.wav" in done.stdout

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

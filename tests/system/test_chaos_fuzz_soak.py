"""Chaos, fuzz and soak: their accounts are true, and the commands find the server in good health."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import soak
from tests.helpers.paths import ROOT

# --- the commands, for real ---


def last_line(*command: str) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_chaos_loses_nothing() -> None:
    found = last_line("benchmarks.chaos", "--quick", "--only", "hang", "overflow", "gateway")
    assert [r["fault"] for r in found["rows"]] == ["hang", "overflow", "gateway"]
    names = ("failed", "lost", "wrong", "orphans", "left", "undone")
    assert [found[name] for name in names] == [0] * 6
    assert found["right"] + found["refused"] == found["sent"]
    assert found["max_recovery_s"] > 0  # something did happen


def test_fuzz_breaks_nothing(tmp_path: Path) -> None:
    found = last_line("benchmarks.fuzz", "--inputs", "400", "--http", "200", "--save", str(tmp_path))
    assert found["inputs"] == 600
    assert found["answered"] > 120
    assert [found[name] for name in ("crashes", "server_errors", "hangs", "died", "wrong")] == [0] * 5
    assert found["intact"] == 12
    assert not list(tmp_path.iterdir())


def test_a_short_soak_draws_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(soak, "_WARM_UP_SECONDS", 1.0)
    monkeypatch.setattr(soak, "_CAPACITY_SECONDS", 3.0)
    assert soak.main(["--minutes", "0.25", "--picture", str(tmp_path / "soak.png")]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["wrong"] == 0
    assert set(found["memory"]) == {"supervisor", "java", "gateway", "worker 1", "worker 2"}
    assert (tmp_path / "soak.png").stat().st_size > 10_000

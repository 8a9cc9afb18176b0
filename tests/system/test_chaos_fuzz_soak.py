"""Chaos, fuzz and soak with a real server: no reply is lost or wrong."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.benchmarks import last_line


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


def test_a_short_soak_draws_its_plot(tmp_path: Path) -> None:
    plot = tmp_path / "soak.png"
    found = last_line("benchmarks.soak", "--minutes", "0.25", "--measure", "2", "--picture", str(plot))
    assert found["wrong"] == 0
    assert set(found["memory"]) == {"supervisor", "java", "gateway", "worker 1", "worker 2"}
    assert plot.stat().st_size > 10_000

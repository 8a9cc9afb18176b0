"""Chaos, fuzz and soak with a real server: no reply is lost or wrong."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from audiocnn.audio import synthetic
from benchmarks.fuzz_inputs import INTACT_EVERY, FuzzInput
from benchmarks.sandbox import Sandbox
from tests.helpers.benchmarks import last_line
from tests.helpers.waiting import wait_until


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


CLIP = FuzzInput(7, synthetic.wav("rain"), {}, "rain")


@pytest.fixture(scope="module")
def sandbox(narrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    running = Sandbox(narrow, 0, tmp_path_factory.mktemp("sandbox") / "log", input_seconds=10.0)
    yield running
    running.close()


def test_a_sandbox_finds_the_input_that_raises_crashes_or_hangs(sandbox: Sandbox) -> None:
    broken = replace(CLIP, number=8, body=3)  # type: ignore[arg-type]
    assert [r.outcome for r in sandbox.run([CLIP, broken, CLIP])] == ["answered", "exception", "answered"]

    crashing = sandbox.process
    assert crashing.pid is not None
    os.kill(crashing.pid, signal.SIGSTOP)
    threading.Timer(0.5, crashing.kill).start()
    (result,) = sandbox.run([INTACT_EVERY])
    assert (result.outcome, result.number) == ("crash", INTACT_EVERY)

    hanging = sandbox.process
    assert hanging.pid is not None
    os.kill(hanging.pid, signal.SIGSTOP)
    assert [r.outcome for r in sandbox.run([INTACT_EVERY])] == ["hang"]
    assert wait_until(lambda: not hanging.is_alive(), 5)
    assert [r.outcome for r in sandbox.run([CLIP])] == ["answered"]

"""Restarts with back-off, the end after repeated failures, and logs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from audiocnn.torchserve.logfiles import ends_of
from audiocnn.torchserve.server import ServerStartError
from audiocnn.torchserve.supervisor import RestartBackoff, Supervisor
from tests.helpers.waiting import wait_until


class Program:
    """A managed process: a command that is ready when it has written a file."""

    name = "the program"
    unhealthy_seconds = 0.0

    def __init__(self, folder: Path, code: str) -> None:
        self.log_file = folder / "program.log"
        self.pids: list[int] = []
        self._ready = folder / "ready"
        self._command = [sys.executable, "-c", code, str(self._ready)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._ready.unlink(missing_ok=True)
        self._process = subprocess.Popen(self._command)
        self.pids.append(self._process.pid)

    def wait_ready(self, timeout_seconds: float, stop: threading.Event) -> None:
        if not wait_until(lambda: self._ready.exists() or stop.is_set() or not self.is_alive(), 10):
            raise ServerStartError("the program is not ready")
        if not self._ready.exists() and not stop.is_set():
            raise ServerStartError("the program died\nthe end of its log")

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def failure_reason(self) -> str:
        return "" if self.is_alive() else "the program ended by itself"

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


LASTS = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"
DIES = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()"


@pytest.fixture
def stopping() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def supervisor(
    child: Program, stopping: threading.Event, *, restart: bool = True, **backoff: float
) -> Supervisor:
    """It looks every 10 ms, with pauses of 10 ms and more, unless `backoff` says otherwise."""
    make = partial(RestartBackoff, **({"first_pause_seconds": 0.01} | backoff))
    return Supervisor([child], stopping, timeout_seconds=10, restart=restart, backoff=make, poll_seconds=0.01)


def test_pauses_grow_and_end() -> None:
    failures = RestartBackoff()
    assert [failures.pause() for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 8.0, None]


def test_a_minute_of_running_resets_the_counter() -> None:
    now = 0.0
    failures = RestartBackoff(lambda: now)
    for ran, pause in ((59.0, 0.5), (59.0, 1.0), (61.0, 0.5)):
        failures.ready()
        now += ran
        assert failures.pause() == pause


def test_unhealthy_time_does_not_reset_the_counter() -> None:
    """TorchServe without a worker is noticed after two minutes, longer than the minute that resets it."""
    now = 0.0
    failures = RestartBackoff(lambda: now)
    pauses = []
    for _ in range(6):
        failures.ready()
        now += 125.0
        pauses.append(failures.pause(unhealthy_seconds=120.5))
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, None]


class UnhealthyProgram(Program):
    """It runs, but never works."""

    unhealthy_seconds = 1000.0

    def failure_reason(self) -> str:
        return "no worker"


def test_a_process_that_never_works_is_given_up(tmp_path: Path, stopping: threading.Event) -> None:
    child = UnhealthyProgram(tmp_path, LASTS)
    kept = supervisor(child, stopping, stable_seconds=0.0)
    kept.start()
    try:
        with pytest.raises(ServerStartError, match="failed 6 times in a row, given up"):
            kept.watch()
    finally:
        child.stop()


def test_a_process_that_dies_is_restarted(
    tmp_path: Path, stopping: threading.Event, capsys: pytest.CaptureFixture[str]
) -> None:
    child = Program(tmp_path, LASTS)
    kept = supervisor(child, stopping)
    kept.start()
    thread = threading.Thread(target=kept.watch)
    thread.start()
    os.kill(child.pids[0], signal.SIGKILL)
    assert wait_until(lambda: "answers again" in capsys.readouterr().out, 10)
    stopping.set()
    thread.join(10)
    assert len(child.pids) == 2
    assert child.is_alive()
    child.stop()


def test_a_crash_loop_ends_with_the_end_of_the_log(tmp_path: Path, stopping: threading.Event) -> None:
    child = Program(tmp_path, DIES)
    kept = supervisor(child, stopping)
    kept.start()
    child._command[2] = "raise SystemExit(1)"
    with pytest.raises(ServerStartError, match=r"failed 6 times in a row, given up(?s:.)*end of its log"):
        kept.watch()
    assert len(child.pids) == 6


def test_without_restart_a_death_is_an_error(tmp_path: Path, stopping: threading.Event) -> None:
    child = Program(tmp_path, DIES)
    kept = supervisor(child, stopping, restart=False)
    kept.start()
    with pytest.raises(ServerStartError, match=r"^the program ended by itself"):
        kept.watch()
    assert len(child.pids) == 1


def test_a_full_disk_behind_the_output_stops_nothing(
    tmp_path: Path, stopping: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = Program(tmp_path, LASTS)
    kept = supervisor(child, stopping)
    full = Path("/dev/full").open("w")  # noqa: SIM115
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", full)
        thread = threading.Thread(target=kept.watch)  # an error in it fails the test
        try:
            kept.start()
            thread.start()
            os.kill(child.pids[0], signal.SIGKILL)
            assert wait_until(lambda: len(child.pids) == 2 and child.is_alive(), 20)
            assert wait_until(child._ready.exists, 20)
        finally:
            stopping.set()
            if thread.is_alive():
                thread.join(20)
            child.stop()
            with suppress(OSError):
                full.close()
    assert len(child.pids) == 2


def test_a_pause_ends_when_the_supervisor_stops(tmp_path: Path, stopping: threading.Event) -> None:
    child = Program(tmp_path, DIES)
    kept = supervisor(child, stopping, first_pause_seconds=1e6)  # cut to 30 s
    kept.start()
    threading.Timer(0.3, stopping.set).start()
    kept.watch()
    child.stop()
    assert len(child.pids) == 1  # it did not wait for the pause


def test_of_a_long_log_the_end_is_shown(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("".join(f"line {number}\n" for number in range(100_000)))
    shown = ends_of(log, tmp_path / "missing.log").splitlines()
    assert shown == [f"The end of {log}:"] + [f"line {number}" for number in range(99_975, 100_000)]

"""What dies is started again; what dies again and again is given up; nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from audiocnn.torchserve.logfiles import ends_of
from audiocnn.torchserve.server import ServerStartError
from audiocnn.torchserve.supervisor import RestartBackoff, Supervisor
from tests.helpers.paths import ROOT
from tests.helpers.servers import server_settings
from tests.helpers.waiting import wait_until


class Program:
    """A child as the supervisor wants it: a command that is ready when it has written a file."""

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


def supervisor(child: Program, stopping: threading.Event, *, restart: bool = True) -> Supervisor:
    return Supervisor([child], stopping, timeout_seconds=10, restart=restart)


def test_pauses_grow_and_end() -> None:
    failures = RestartBackoff()
    assert [failures.pause() for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 8.0, None]


def test_who_was_up_for_a_minute_has_not_failed_again() -> None:
    now = 0.0
    failures = RestartBackoff(lambda: now)
    for ran, pause in ((59.0, 0.5), (59.0, 1.0), (61.0, 0.5)):
        failures.ready()
        now += ran
        assert failures.pause() == pause


def test_time_in_which_it_was_ill_is_no_peace() -> None:
    """TorchServe without a worker is found out after two minutes: longer than the minute of peace."""
    now = 0.0
    failures = RestartBackoff(lambda: now)
    pauses = []
    for _ in range(6):
        failures.ready()
        now += 125.0
        pauses.append(failures.pause(unhealthy_seconds=120.5))
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, None]


def test_what_is_ill_again_and_again_is_given_up(
    tmp_path: Path, stopping: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiocnn.torchserve.supervisor._FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(
        "audiocnn.torchserve.supervisor._STABLE_SECONDS", 0.0
    )  # so any peace at all would be enough
    child = Program(tmp_path, LASTS)
    kept = supervisor(child, stopping)
    kept.start()
    monkeypatch.setattr(child, "unhealthy_seconds", 1000.0)
    monkeypatch.setattr(
        child, "failure_reason", lambda: stopping.set() if len(child.pids) > 8 else "no worker"
    )
    try:
        with pytest.raises(ServerStartError, match="failed 6 times in a row, given up"):
            kept.watch()
    finally:
        child.stop()


def test_what_dies_is_started_again(
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


def test_a_crash_loop_ends_with_the_end_of_the_log(
    tmp_path: Path, stopping: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiocnn.torchserve.supervisor._FIRST_PAUSE_SECONDS", 0.01)
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
    monkeypatch.setattr("audiocnn.torchserve.supervisor._FIRST_PAUSE_SECONDS", 0.01)
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


def test_a_pause_ends_when_told_to_stop(tmp_path: Path, stopping: threading.Event) -> None:
    child = Program(tmp_path, DIES)
    kept = supervisor(child, stopping)
    kept.start()
    threading.Timer(1.0, stopping.set).start()
    began = time.monotonic()
    kept.watch()
    child.stop()
    assert time.monotonic() - began < 9  # not the 15 s of all pauses


# --- the real ones ---


def test_what_cannot_be_printed_does_not_change_the_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "audiocnn", "serve", "--logs", str(tmp_path)]
    for key, value in server_settings(minWorkers=1).items():
        command += ["--set", f"{key}={value}"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=full)
    with process:
        assert wait_until(lambda: (tmp_path / "torchserve.log").exists() or process.poll() is not None, 30)
        process.terminate()
        assert process.wait(timeout=120) == 0


def test_of_a_long_log_the_end_is_shown(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("".join(f"line {number}\n" for number in range(100_000)))
    shown = ends_of(log, tmp_path / "missing.log").splitlines()
    assert shown == [f"The end of {log}:"] + [f"line {number}" for number in range(99_975, 100_000)]

"""What dies is started again; what dies again and again is given up; nothing is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import requests

from audiocnn.audio import synthetic
from audiocnn.client.client import Client
from audiocnn.torchserve.launch import Gateway
from audiocnn.torchserve.logfiles import ends_of
from audiocnn.torchserve.rollout import copy_as
from audiocnn.torchserve.server import ServerStartError, TorchServe
from audiocnn.torchserve.supervisor import RestartBackoff, Supervisor
from tests.conftest import ROOT, STORE, Server, free_ports, running_server, server_settings, wait_until

RAIN = synthetic.wav("rain")


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


def test_a_gateway_starts_again_with_what_it_was_told(tmp_path: Path) -> None:
    """Whatever has become of the archive or of the disk since."""
    archive, logs = tmp_path / "audiocnn.mar", tmp_path / "logs"
    (port,) = free_ports(1)
    server = TorchServe(server_settings() | {"model_store": str(tmp_path)}, log_folder=logs)
    gateway = Gateway(f"127.0.0.1:{port}", server, log_folder=logs)
    told, part = logs / "model-config.json", logs / "model-config.part"
    archive.write_bytes(b"no archive")
    with pytest.raises(ServerStartError, match="front end of the model"):
        gateway.start()
    try:
        write_archive(archive, before := read_config(STORE / "audiocnn.mar"))
        gateway.start()
        written = told.stat()
        gateway.stop()
        gateway.start()
        assert told.stat().st_mtime_ns == written.st_mtime_ns  # nothing new, nothing written
        gateway.stop()
        write_archive(archive, after := before + b"\n")
        part.symlink_to("/dev/full")
        gateway.start()
        assert told.read_bytes() == before
        gateway.stop()
        gateway.start()  # there is space again
        assert told.read_bytes() == after
        gateway.stop()
        archive.write_bytes(b"no archive")
        gateway.start()
        gateway.wait_ready(600, threading.Event())
    finally:
        gateway.stop()
    assert told.read_bytes() == after


_HANGS_ON_SIGUSR1 = """
import signal, time

def hang(*_):
    while True:
        time.sleep(0.1)

signal.signal(signal.SIGUSR1, hang)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGUSR1])
def test_a_gateway_that_hangs_is_started_again(
    tmp_path: Path,
    stopping: threading.Event,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stopped, or its event loop never returns: it lives, does not answer, and SIGTERM has no effect."""
    (tmp_path / "sitecustomize.py").write_text(_HANGS_ON_SIGUSR1)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (port,) = free_ports(1)
    server = TorchServe(server_settings() | {"model_store": str(STORE)}, log_folder=tmp_path)
    gateway = Gateway(f"127.0.0.1:{port}", server, log_folder=tmp_path)
    kept = Supervisor([gateway], stopping, timeout_seconds=600, restart=True)
    watching = threading.Thread(target=kept.watch)
    try:
        kept.start()
        watching.start()
        assert gateway._process is not None
        hung = psutil.Process(gateway._process.pid)
        os.kill(hung.pid, number)
        with pytest.raises(requests.Timeout):
            requests.get(f"{gateway.url}/health", timeout=2)
        printed = ""

        def is_back() -> bool:
            nonlocal printed
            printed += capsys.readouterr().out
            return "the gateway answers again" in printed

        assert wait_until(is_back, 120)
        assert "the gateway has not answered for 30 s" in printed
        assert are_gone([hung])
        assert requests.get(f"{gateway.url}/health", timeout=120).ok
    finally:
        stopping.set()
        if watching.is_alive():
            watching.join(600)
        gateway.stop()


def test_a_gateway_that_ends_says_why_and_the_next_run_keeps_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEYS", "too-short")
    server = TorchServe(server_settings(), log_folder=tmp_path)
    write_archive(tmp_path / "audiocnn.mar", read_config(STORE / "audiocnn.mar"))
    server.properties["model_store"] = str(tmp_path)
    for _ in range(2):
        gateway = Gateway(f"127.0.0.1:{free_ports(1)[0]}", server, log_folder=tmp_path)
        gateway.start()
        assert wait_until(lambda gateway=gateway: not gateway.is_alive(), 60)
        assert gateway.failure_reason().startswith(f"the gateway ended by itself, see {gateway.log_file}\n")
        assert "error: API_KEYS" in gateway.failure_reason()
    for name in ("gateway.log", "gateway.log.1"):
        assert (tmp_path / name).read_text().count("error: API_KEYS") == 1


def test_the_next_run_keeps_the_log_of_torchserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that is started again has the same folder, if it is a volume, and a new launcher."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "torchserve.log").write_text("java.lang.OutOfMemoryError\n")
    server = TorchServe(server_settings(), log_folder=tmp_path)
    try:
        server.start()
        assert (tmp_path / "torchserve.log.1").read_text() == "java.lang.OutOfMemoryError\n"
        assert "OutOfMemory" not in server.log_file.read_text()
    finally:
        server.stop()


class InHand:
    """A request of which the gateway has the head and waits for the body."""

    def __init__(self, port: int) -> None:
        form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        self._body = form + RAIN + b"\r\n--b--\r\n"
        self._connection = socket.create_connection(("127.0.0.1", port), timeout=120)
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(self._body)}\r\n"
        head += "Content-Type: multipart/form-data; boundary=b\r\nExpect: 100-continue\r\n\r\n"
        self._connection.sendall(head.encode())
        assert self._connection.recv(1000).startswith(b"HTTP/1.1 100 ")

    def finish(self) -> bytes:
        """Send the body; the first bytes of the reply."""
        self._connection.sendall(self._body)
        return self._connection.recv(1000)

    def close(self) -> None:
        self._connection.close()


@contextmanager
def not_under_nohup() -> Iterator[None]:
    """What is started here gets SIGHUP, also where the tests do not."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_what_the_gateway_has_in_hand_is_answered_when_the_terminal_stops_us(
    tmp_path: Path, number: signal.Signals
) -> None:
    """A terminal sends its signals to all processes of the group: SIGHUP twice as it closes."""
    (port,) = free_ports(1)
    flags = ["--gateway", f"127.0.0.1:{port}"]
    with (
        not_under_nohup(),
        running_server(tmp_path, server_settings(minWorkers=1), flags=flags) as server,
        closing(InHand(port)) as request,
    ):
        for _ in range(2 if number == signal.SIGHUP else 1):
            os.killpg(server.process.pid, number)
        assert request.finish().startswith(b"HTTP/1.1 200 ")
        assert server.process.wait(timeout=120) == 0


def test_a_second_signal_waits_for_nothing_in_the_gateway(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    server = TorchServe(server_settings() | {"model_store": str(STORE)}, log_folder=tmp_path)
    gateway, hurry = Gateway(f"127.0.0.1:{port}", server, log_folder=tmp_path), threading.Event()
    gateway.start()
    try:
        gateway.wait_ready(600, threading.Event())
        hurry.set()
        with closing(InHand(port)):
            gateway.stop(hurry)
        assert gateway._process is not None
        assert gateway._process.returncode == -signal.SIGKILL
    finally:
        gateway.stop()


@pytest.mark.slow
def test_under_nohup_it_outlives_its_terminal(tmp_path: Path) -> None:
    command = ["nohup", sys.executable, "-m", "audiocnn", "serve", "--logs", str(tmp_path)]
    for key, value in server_settings(minWorkers=1).items():
        command += ["--set", f"{key}={value}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith("starting")
            process.send_signal(signal.SIGHUP)
            assert any(line.startswith("ready") for line in process.stdout)  # else all lines, to "stopped"
        finally:
            process.terminate()
        assert process.wait(timeout=120) == 0


def test_of_a_long_log_the_end_is_shown(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("".join(f"line {number}\n" for number in range(100_000)))
    shown = ends_of(log, tmp_path / "missing.log").splitlines()
    assert shown == [f"The end of {log}:"] + [f"line {number}" for number in range(99_975, 100_000)]


def read_config(archive: Path) -> bytes:
    with zipfile.ZipFile(archive) as file:
        return file.read("config.json")


def write_archive(archive: Path, config: bytes) -> None:
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("config.json", config)


def session_of(server: Server) -> list[psutil.Process]:
    """TorchServe's launcher, Java and workers."""
    found = psutil.Process(server.process.pid).children(recursive=True)
    return [process for process in found if "gateway" not in process.cmdline()]


def java_of(server: Server) -> psutil.Process:
    (java,) = [process for process in session_of(server) if process.name() == "java"]
    return java


def read_until(server: Server, word: str) -> str:
    """The next line that the server prints with this word in it."""
    assert server.process.stdout is not None
    line = next((line for line in server.process.stdout if word in line), None)
    assert line is not None, f"the output ended before {word!r}"
    return line


def are_gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


def test_java_is_killed_and_comes_back_and_its_workers_do_not_stay(tmp_path: Path) -> None:
    settings = server_settings(minWorkers=1)
    with running_server(tmp_path, settings) as server, Client(server.inference) as client:
        before = session_of(server)
        worker = next(p for p in before if "model_service_worker" in " ".join(p.cmdline()))
        worker.suspend()  # it hangs: it would not see by itself that Java is gone
        began = time.monotonic()
        java_of(server).kill()
        assert "ended by itself" in read_until(server, "TorchServe ended")
        assert client.predict(RAIN)["predictions"][0]["class"] == "rain"  # it asked until it was answered
        assert time.monotonic() - began < 60
        read_until(server, "answers again")
        assert are_gone(before)
        log = (tmp_path / "torchserve.log").read_text()
        assert (
            log.count("non-default JVM parameters") == 2
        )  # the second start did not erase the first one's log
        server.process.terminate()
        assert server.process.wait(timeout=120) == 0


@pytest.mark.slow
def test_a_signal_while_java_starts_again_stops_everything(tmp_path: Path) -> None:
    with running_server(tmp_path, server_settings(minWorkers=1)) as server:
        java_of(server).kill()
        read_until(server, "starting TorchServe")
        assert wait_until(lambda: any(p.name() == "java" for p in session_of(server)), 20)
        processes = session_of(server)
        server.process.terminate()
        assert server.process.wait(timeout=120) == 0
        assert are_gone(processes)


@pytest.mark.slow
def test_the_gateway_is_killed_and_comes_back(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/predict"
    with running_server(
        tmp_path, server_settings(minWorkers=1), flags=["--gateway", f"127.0.0.1:{port}"]
    ) as server:
        (gateway,) = [p for p in psutil.Process(server.process.pid).children() if "gateway" in p.cmdline()]
        java = java_of(server)
        gateway.kill()
        assert "the gateway" in read_until(server, "answers again")
        assert requests.post(url, files={"file": RAIN}, timeout=120).status_code == 200
        assert java.is_running()


@pytest.mark.slow
def test_what_a_rollout_said_to_change_is_served_after_a_crash(tmp_path: Path) -> None:
    """Else a crash would bring the old version back."""
    store, config = tmp_path / "store", tmp_path / "config.properties"
    store.mkdir()
    shutil.copy(STORE / "audiocnn.mar", store)
    copy_as(STORE / "audiocnn.mar", store / "audiocnn-2.0.mar", "2.0")
    settings = server_settings(minWorkers=1) | {
        "model_store": str(store),
    }
    models, archive = settings.pop("models"), settings.pop("load_models")
    config.write_text(f"models={models}\nload_models={archive}\n")
    with running_server(tmp_path, settings, flags=["--config", str(config)]) as server:
        assert served_version(server) == "1.0"
        changed = models.replace('"1.0"', '"2.0"').replace(archive, "audiocnn-2.0.mar")
        config.write_text(f"models={changed}\nload_models=audiocnn-2.0.mar\n")
        java_of(server).kill()
        read_until(server, "answers again")
        assert served_version(server) == "2.0"


def served_version(server: Server) -> str:
    (model,) = requests.get(f"{server.management}/models/audiocnn", timeout=120).json()
    return str(model["modelVersion"])


@pytest.mark.slow
def test_a_server_that_can_have_no_worker_any_more_is_started_again(
    tmp_path: Path,
    stopping: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whoever cleans up /tmp takes the unpacked model away; Java goes on and says that it is well."""
    monkeypatch.chdir(ROOT)
    server = TorchServe(server_settings(minWorkers=1), log_folder=tmp_path)
    kept = Supervisor([server], stopping, timeout_seconds=600, restart=True)
    watching = threading.Thread(target=kept.watch)
    try:
        kept.start()
        monkeypatch.setattr("audiocnn.torchserve.server._WORKLESS_SECONDS", 10.0)
        folder, launcher = server._folder, server._launcher
        assert folder is not None
        assert launcher is not None
        watching.start()
        shutil.rmtree(folder.path)
        for process in psutil.Process(launcher.pid).children(recursive=True):
            if any("model_service_worker" in word for word in process.cmdline()):
                process.kill()
        printed = ""

        def is_back() -> bool:
            nonlocal printed
            printed += capsys.readouterr().out
            return "TorchServe answers again" in printed

        assert wait_until(is_back, 120)
        assert "has had no worker for 10 s" in printed
        with Client(server.inference) as client:
            assert client.predict(RAIN)["predictions"][0]["class"] == "rain"
    finally:
        stopping.set()
        if watching.is_alive():
            watching.join(60)
        server.stop()


@pytest.mark.slow
def test_java_without_memory_ends_and_comes_back(tmp_path: Path) -> None:
    """It would stay, and leave callers without any reply."""
    settings = server_settings(minWorkers=1)
    settings["vmargs"] += " -Xms128m -Xmx256m -XX:MaxDirectMemorySize=4g"
    big = RAIN + bytes(39_000_000)
    with running_server(tmp_path, settings) as server, Client(server.inference) as client:
        first = java_of(server)

        def ask(_: int) -> None:
            with suppress(requests.RequestException):
                requests.post(server.predictions, data=big, timeout=120)

        with ThreadPoolExecutor(12) as pool:
            list(pool.map(ask, range(12)))
        read_until(server, "TorchServe ended by itself")
        assert client.predict(RAIN)["predictions"][0]["class"] == "rain"
        assert are_gone([first])


@pytest.mark.slow
def test_torchserve_that_cannot_come_back_is_given_up(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    shutil.copy(STORE / "audiocnn.mar", store)
    settings = server_settings(minWorkers=1) | {
        "model_store": str(store),
    }
    with running_server(tmp_path / "logs", settings) as server:
        processes = session_of(server)
        (store / "audiocnn.mar").unlink()
        java_of(server).kill()
        assert "5 of 5" in read_until(server, "(5 of")
        error = read_until(server, "error:")
        assert "failed 6 times in a row, given up" in error
        assert "build it with" in read_until(server, "is missing")
        assert server.process.wait(timeout=120) == 1
        assert are_gone(processes)

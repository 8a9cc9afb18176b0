"""The supervisor: crashes, hangs and lost folders of real servers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import requests

from audiocnn.client.client import Client
from audiocnn.torchserve.gateway_process import GatewayProcess
from audiocnn.torchserve.scale import copy_as
from audiocnn.torchserve.server import TorchServe
from audiocnn.torchserve.supervisor import Supervisor
from tests.helpers.paths import ROOT, STORE
from tests.helpers.ports import free_ports
from tests.helpers.processes import RAIN, InHand, are_gone, java_of, read_until, session_of
from tests.helpers.servers import Server, running_server, server_settings
from tests.helpers.waiting import wait_until


@pytest.fixture
def stopping() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


_HANGS_ON_SIGUSR1 = """
import signal, time

def hang(*_):
    while True:
        time.sleep(0.1)

signal.signal(signal.SIGUSR1, hang)
"""


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
    gateway = GatewayProcess(f"127.0.0.1:{port}", server, log_folder=tmp_path)
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


@contextmanager
def not_under_nohup() -> Iterator[None]:
    """What is started here gets SIGHUP, also where the tests do not."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


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


def test_a_signal_while_java_starts_again_stops_everything(tmp_path: Path) -> None:
    with running_server(tmp_path, server_settings(minWorkers=1)) as server:
        java_of(server).kill()
        read_until(server, "starting TorchServe")
        assert wait_until(lambda: any(p.name() == "java" for p in session_of(server)), 20)
        processes = session_of(server)
        server.process.terminate()
        assert server.process.wait(timeout=120) == 0
        assert are_gone(processes)


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


def test_a_server_that_can_have_no_worker_any_more_is_started_again(
    tmp_path: Path,
    stopping: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The unpacked model is deleted from /tmp; Java goes on and reports Healthy."""
    monkeypatch.chdir(ROOT)
    server = TorchServe(server_settings(minWorkers=1), log_folder=tmp_path, max_unhealthy_seconds=10.0)
    kept = Supervisor([server], stopping, timeout_seconds=600, restart=True)
    watching = threading.Thread(target=kept.watch)
    try:
        kept.start()
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

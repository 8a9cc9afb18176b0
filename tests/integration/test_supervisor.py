"""The supervisor with a real TorchServe and a real gateway."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

from audiocnn.client.client import Client
from audiocnn.torchserve.gateway_process import GatewayProcess
from audiocnn.torchserve.server import ServerStartError, TorchServe
from tests.helpers.paths import ROOT, STORE
from tests.helpers.ports import free_ports
from tests.helpers.processes import RAIN, InHand, are_gone, java_of, read_until, session_of
from tests.helpers.servers import running_server, server_settings
from tests.helpers.waiting import wait_until


def no_space(path: Path) -> AbstractContextManager[Path]:
    """As `audiocnn.files.replacing` on a full disk."""
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_gateway_restarts_with_its_first_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever has become of the archive or of the disk since."""
    archive, logs = tmp_path / "audiocnn.mar", tmp_path / "logs"
    (port,) = free_ports(1)
    server = TorchServe(server_settings() | {"model_store": str(tmp_path)}, log_folder=logs)
    gateway = GatewayProcess(f"127.0.0.1:{port}", server, log_folder=logs)
    told = logs / "model-config.json"
    archive.write_bytes(b"no archive")
    with pytest.raises(ServerStartError, match="model's front end"):
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
        with monkeypatch.context() as disk:
            disk.setattr("audiocnn.torchserve.gateway_process.replacing", no_space)
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


def test_a_gateway_that_ends_says_why_and_the_next_run_keeps_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEYS", "too-short")
    server = TorchServe(server_settings(), log_folder=tmp_path)
    write_archive(tmp_path / "audiocnn.mar", read_config(STORE / "audiocnn.mar"))
    server.properties["model_store"] = str(tmp_path)
    for _ in range(2):
        gateway = GatewayProcess(f"127.0.0.1:{free_ports(1)[0]}", server, log_folder=tmp_path)
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


def test_a_second_signal_waits_for_nothing_in_the_gateway(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    server = TorchServe(server_settings() | {"model_store": str(STORE)}, log_folder=tmp_path)
    gateway, hurry = GatewayProcess(f"127.0.0.1:{port}", server, log_folder=tmp_path), threading.Event()
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


def read_config(archive: Path) -> bytes:
    with zipfile.ZipFile(archive) as file:
        return file.read("config.json")


def write_archive(archive: Path, config: bytes) -> None:
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("config.json", config)


def test_java_is_killed_and_comes_back_and_its_workers_do_not_stay(tmp_path: Path) -> None:
    settings = server_settings(minWorkers=1)
    with running_server(tmp_path, settings) as server, Client(server.inference) as client:
        before = session_of(server)
        worker = next(p for p in before if "model_service_worker" in " ".join(p.cmdline()))
        worker.suspend()  # it hangs: it would not see by itself that Java is gone
        java_of(server).kill()
        assert "ended by itself" in read_until(server, "TorchServe ended")
        assert client.predict(RAIN)["predictions"][0]["class"] == "rain"  # it asked until it was answered
        read_until(server, "answers again")
        assert are_gone(before)
        log = (tmp_path / "torchserve.log").read_text()
        assert (
            log.count("non-default JVM parameters") == 2
        )  # the second start did not erase the first one's log
        server.process.terminate()
        assert server.process.wait(timeout=120) == 0


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


def test_a_temporary_folder_whose_path_is_too_long_for_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(ServerStartError, match="Set TMPDIR to a shorter one"):
        TorchServe(server_settings(), log_folder=tmp_path / "logs").start()
    assert not list(folder.iterdir())


def test_the_gateway_may_have_an_address_of_ipv6(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    server = TorchServe(server_settings() | {"model_store": str(STORE)}, log_folder=tmp_path)
    gateway = GatewayProcess(f"[::1]:{port}", server, log_folder=tmp_path)
    gateway.start()
    try:
        gateway.wait_ready(600, threading.Event())
        assert f"http://[::1]:{port} (/docs)" in gateway.log_file.with_name("gateway_log.log").read_text()
    finally:
        gateway.stop()

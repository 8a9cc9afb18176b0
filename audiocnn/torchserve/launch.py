"""Start TorchServe and keep it: `audiocnn serve`, with the gateway in front: `--gateway`.

It verifies the archives, prepares the environment, starts TorchServe and waits until a real prediction
comes back. What dies or hangs then is started again (`--no-restart`: ends it all with an error). On Ctrl-C or
SIGTERM it waits for what is in hand, then stops everything cleanly.
(TorchServe's own launcher dies of SIGTERM alone and leaves Java and the workers behind; the signal has
to go to Java.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from pathlib import Path
from types import FrameType
from typing import Annotated

import httpx
import typer

from audiocnn.errors import ModelFileError
from audiocnn.files import replacing
from audiocnn.torchserve import ports
from audiocnn.torchserve.archives import ArchiveError, known_sha256
from audiocnn.torchserve.logfiles import ends_of, open_log
from audiocnn.torchserve.properties import ConfigError, ca_file, key_file, read_properties
from audiocnn.torchserve.server import MALLOC, MODEL, ServerStartError, TorchServe
from audiocnn.torchserve.supervisor import ManagedProcess, Supervisor, say
from audiocnn.torchserve.watchdog import HealthMonitor

_GATEWAY = "127.0.0.1:8000"
_GATEWAY_STOP_SECONDS = 15.0
_SILENT_SECONDS = 30.0  # without any answer: its event loop hangs
_POLL_SECONDS = 10.0


class Gateway:
    """`audiocnn gateway` as our child, in front of our TorchServe; its other settings are its own."""

    name = "the gateway"

    def __init__(self, address: str, server: TorchServe, *, log_folder: Path) -> None:
        host, _, port = address.rpartition(":")
        self.url = f"http://{address}"
        self._address = host, int(port)
        self._monitor: HealthMonitor | None = None
        self.log_file = log_folder.resolve() / "gateway.log"
        self._server = server
        self._model_config = log_folder.resolve() / "model-config.json"
        self._process: subprocess.Popen[bytes] | None = None
        keys, certificate = key_file(server.properties), ca_file(server.properties)
        self._environment = {
            **MALLOC,
            **os.environ,
            "GATEWAY_HOST": host,
            "GATEWAY_PORT": port,
            "TORCHSERVE_URL": server.inference,
            "TORCHSERVE_MANAGEMENT": server.management if keys else "",
            "TORCHSERVE_KEY_FILE": str(keys or ""),
            "TORCHSERVE_CA_FILE": str(certificate or ""),
            "MODEL_CONFIG_FILE": str(self._model_config),
            "LOG_FILE": str(log_folder.resolve() / "gateway_log.log"),  # rolled over; errors are in both
        }

    def start(self) -> None:
        """Start it; it is told the front end of the archive that TorchServe serves."""
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self._write_model_config()
        is_first = self._process is None
        with open_log(self.log_file, is_first=is_first) as log:
            command = [sys.executable, "-m", "audiocnn", "gateway"]
            self._process = subprocess.Popen(  # a session of its own: signals of a terminal are ours alone
                command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def _write_model_config(self) -> None:
        """Never half; for another start what it was told before will do, on a full disk for one."""
        try:
            with zipfile.ZipFile(self._server.archives()[0]) as file:
                content = file.read("config.json")
            if not self._model_config.is_file() or self._model_config.read_bytes() != content:
                with replacing(self._model_config) as part:
                    part.write_bytes(content)
        except (OSError, zipfile.BadZipFile, zlib.error, LookupError) as error:
            if self._process is None:
                raise ServerStartError(
                    f"cannot tell the gateway the front end of the model: {error}"
                ) from error

    def wait_ready(self, timeout_seconds: float, stop: threading.Event) -> None:
        """Wait until it answers; `ServerStartError` with the end of its log if it does not."""
        deadline = time.monotonic() + timeout_seconds
        with httpx.Client(trust_env=False) as client:  # no proxy between this machine and itself
            while time.monotonic() < deadline and self.is_alive() and not stop.is_set():
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(f"{self.url}/health", timeout=5).is_success:
                        self._monitor = HealthMonitor(self._answers, timeout_seconds=_POLL_SECONDS)
                        return
                time.sleep(0.1)
        if not stop.is_set():
            raise ServerStartError(f"the gateway did not start. {ends_of(self.log_file)}")

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def unhealthy_seconds(self) -> float:
        """Seconds since `/health` was last answered, though it lives."""
        return self._monitor.unhealthy_seconds if self._monitor else 0.0

    def _answers(self) -> bool:
        """Any reply shows that its event loop runs, also a refusal or a connection that it closes."""
        with (
            socket.create_connection(self._address, timeout=_POLL_SECONDS) as connection,
            contextlib.suppress(ConnectionResetError, BrokenPipeError),
        ):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            connection.recv(1)
        return True

    def failure_reason(self) -> str:
        """Why it must be started again, if it must, and the end of its log."""
        if not self.is_alive():
            reason = "ended by itself"
        elif self.unhealthy_seconds > _SILENT_SECONDS:
            reason = f"has not answered for {_SILENT_SECONDS:.0f} s"
        else:
            return ""
        return f"the gateway {reason}, see {self.log_file}\n{ends_of(self.log_file)}"

    def stop(self, hurry: threading.Event | None = None) -> None:
        """It answers what it has, at most for a while, or until `hurry`."""
        if self._monitor:
            self._monitor.stop()
            self._monitor = None
        if self._process is None:
            return
        self._process.terminate()
        deadline = time.monotonic() + _GATEWAY_STOP_SECONDS
        while self.is_alive() and time.monotonic() < deadline and not (hurry and hurry.is_set()):
            time.sleep(0.05)
        self._process.kill()
        self._process.wait()


def run(
    server: TorchServe,
    gateway: Gateway | None,
    *,
    timeout_seconds: float,
    grace_seconds: float,
    restart: bool,
) -> int:
    """Serve until a signal; 0 after a clean stop. Raises `ServerStartError` if something cannot run."""
    stopping, hurry = threading.Event(), threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        is_second = stopping.is_set() and number != signal.SIGHUP  # that comes twice from one terminal
        (hurry if is_second else stopping).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # else we run under `nohup`
        signal.signal(signal.SIGHUP, on_signal)
    children: list[ManagedProcess] = [server, *([gateway] if gateway else [])]
    supervisor = Supervisor(children, stopping, timeout_seconds=timeout_seconds, restart=restart)
    try:
        supervisor.start()
        _announce(server, gateway, stopping)
        supervisor.watch()
        if gateway:
            gateway.stop(hurry)  # first, so that nothing new comes
        if server.is_ready and not server.drain(grace_seconds, hurry):
            say("stopped with requests in hand")
    finally:
        if gateway:
            gateway.stop()
        server.stop()
    say("stopped")
    return 0


def _announce(server: TorchServe, gateway: Gateway | None, stopping: threading.Event) -> None:
    for archive in server.archives():
        if known_sha256(archive, archive.parent) is None:
            say(f"note: no checksum of {archive} is on record, it was not verified")
    if server.is_open_to_code:
        say(
            "note: enable_model_api is on and no token is asked for: every local process and every web page "
            "can register an archive, which is code; see docs/security.md"
        )
    if gateway and not stopping.is_set():
        say(f"gateway: {gateway.url}, log in {gateway.log_file}")
    if not stopping.is_set():
        say(f"ready: curl -T CLIP {server.inference}/predictions/{MODEL}")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog="Example: audiocnn serve --gateway 127.0.0.1:8000")
def serve(
    config: Annotated[Path, typer.Option(help="TorchServe's configuration.")] = Path("config.properties"),
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a line of the configuration."),
    ] = None,
    logs: Annotated[Path, typer.Option(help="Folder for logs.")] = Path("logs"),
    timeout: Annotated[float, typer.Option(help="Seconds to become ready.")] = 120.0,
    grace: Annotated[float, typer.Option(help="Seconds to wait for running requests at a stop.")] = 20.0,
    gateway: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Start the gateway too, on this address.")
    ] = None,
    port_base: Annotated[
        int | None,
        typer.Option(help="Gateway on this port; TorchServe's ports are 70, 71, 80, 81, 82 above it."),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option(help="Restart what dies. --no-restart ends with an error instead, under a supervisor."),
    ] = True,
) -> None:
    """Start TorchServe and keep it running; with --gateway the gateway as well. Ctrl-C stops both."""
    if wrong := [pair for pair in changes or [] if "=" not in pair]:
        raise typer.BadParameter(f"--set {wrong[0]}: expected KEY=VALUE")
    replaced = dict(pair.split("=", 1) for pair in changes or [])
    if port_base is not None:
        replaced = ports.properties(port_base) | replaced
        gateway = gateway or f"127.0.0.1:{port_base}"
    try:
        server = TorchServe(
            read_properties(config) | replaced,
            log_folder=logs,
            reread=lambda: read_properties(config) | replaced,
        )
        child = Gateway(gateway, server, log_folder=logs) if gateway else None
        code = run(server, child, timeout_seconds=timeout, grace_seconds=grace, restart=restart)
    except (ConfigError, ServerStartError, ArchiveError, ModelFileError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    finally:
        _forget_output()
    raise typer.Exit(code)


def _forget_output() -> None:
    """What could not be printed is no error of ours: Python itself would end with 120 for it."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

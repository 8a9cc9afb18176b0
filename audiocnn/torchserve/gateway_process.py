"""The gateway as a child process of `audiocnn serve`."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from pathlib import Path

import httpx

from audiocnn.files import replacing
from audiocnn.torchserve.logfiles import ends_of, open_log
from audiocnn.torchserve.properties import ConfigError, ca_file, key_file
from audiocnn.torchserve.server import MALLOC, ServerStartError, TorchServe
from audiocnn.torchserve.watchdog import HealthMonitor

_STOP_SECONDS = 15.0  # for requests that are being answered
_SILENT_SECONDS = 30.0  # without a reply: the event loop is blocked
_POLL_SECONDS = 10.0


class GatewayProcess:
    """`audiocnn gateway` in front of a TorchServe. Its other settings come from the environment."""

    name = "the gateway"

    def __init__(self, address: str, server: TorchServe, *, log_folder: Path) -> None:
        """`address` is HOST:PORT. Raises `ConfigError` if it is not."""
        host, _, port = address.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
            raise ConfigError(f"--gateway {address}: expected HOST:PORT, such as 127.0.0.1:8000")
        self.url = f"http://{address}"
        self.log_file = log_folder.resolve() / "gateway.log"
        self._address = host, int(port)
        self._monitor: HealthMonitor | None = None
        self._server = server
        self._model_config = log_folder.resolve() / "model-config.json"
        self._process: subprocess.Popen[bytes] | None = None

    def _environment(self) -> dict[str, str]:
        keys, certificate = key_file(self._server.properties), ca_file(self._server.properties)
        host, port = self._address
        return {
            **MALLOC,
            **os.environ,
            "GATEWAY_HOST": host,
            "GATEWAY_PORT": str(port),
            "TORCHSERVE_URL": self._server.inference,
            "TORCHSERVE_MANAGEMENT": self._server.management if keys else "",
            "TORCHSERVE_KEY_FILE": str(keys or ""),
            "TORCHSERVE_CA_FILE": str(certificate or ""),
            "MODEL_CONFIG_FILE": str(self._model_config),
            "LOG_FILE": str(self.log_file.with_name("gateway_log.log")),  # rotated, unlike `log_file`
        }

    def start(self) -> None:
        """Start the process with the front-end configuration of the served archive.

        Raises `ServerStartError` if that cannot be read at the first start.
        """
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self._write_model_config()
        with open_log(self.log_file, is_first=self._process is None) as log:
            command = [sys.executable, "-m", "audiocnn", "gateway"]
            self._process = subprocess.Popen(  # in its own session: only the parent gets a terminal's signals
                command, env=self._environment(), stdout=log, stderr=log, start_new_session=True
            )

    def _write_model_config(self) -> None:
        """Write atomically. If this fails at a restart (a full disk), the previous file stays in use."""
        try:
            with zipfile.ZipFile(self._server.archives()[0]) as file:
                content = file.read("config.json")
            if not self._model_config.is_file() or self._model_config.read_bytes() != content:
                with replacing(self._model_config) as part:
                    part.write_bytes(content)
        except (OSError, zipfile.BadZipFile, zlib.error, LookupError) as error:
            if self._process is None:
                raise ServerStartError(
                    f"cannot write the configuration of the model's front end: {error}"
                ) from error

    def wait_ready(self, timeout_seconds: float, stop: threading.Event) -> None:
        """Wait until `/health` answers or `stop` is set.

        Raises `ServerStartError`, with the end of the log, after `timeout_seconds` or if the process ends.
        """
        deadline = time.monotonic() + timeout_seconds
        with httpx.Client(trust_env=False) as client:  # no proxy on loopback
            while time.monotonic() < deadline and self.is_alive() and not stop.is_set():
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(f"{self.url}/health", timeout=5).is_success:
                        self._monitor = HealthMonitor(self._is_responding, timeout_seconds=_POLL_SECONDS)
                        return
                time.sleep(0.1)
        if not stop.is_set():
            raise ServerStartError(f"the gateway did not start. {ends_of(self.log_file)}")

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def unhealthy_seconds(self) -> float:
        """Seconds without a reply while the process runs."""
        return self._monitor.unhealthy_seconds if self._monitor else 0.0

    def _is_responding(self) -> bool:
        """Any reply shows that the event loop runs, also a refusal or a closed connection."""
        with (
            socket.create_connection(self._address, timeout=_POLL_SECONDS) as connection,
            contextlib.suppress(ConnectionResetError, BrokenPipeError),
        ):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            connection.recv(1)
        return True

    def failure_reason(self) -> str:
        """Why a restart is needed, followed by the end of the log; empty if none is needed."""
        if not self.is_alive():
            reason = "ended by itself"
        elif self.unhealthy_seconds > _SILENT_SECONDS:
            reason = f"has not answered for {_SILENT_SECONDS:.0f} s"
        else:
            return ""
        return f"the gateway {reason}, see {self.log_file}\n{ends_of(self.log_file)}"

    def stop(self, force: threading.Event | None = None) -> None:
        """Send SIGTERM and wait for open requests, at most 15 s or until `force` is set; then kill."""
        if self._monitor:
            self._monitor.stop()
            self._monitor = None
        if self._process is None:
            return
        self._process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        while self.is_alive() and time.monotonic() < deadline and not (force and force.is_set()):
            time.sleep(0.05)
        self._process.kill()
        self._process.wait()

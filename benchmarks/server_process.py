"""Servers that benchmarks start, each a process with its children, and free ports for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import requests

from audiocnn.torchserve.ports import free_port
from audiocnn.torchserve.server import MALLOC

_READY_SECONDS = 180.0
_STOP_SECONDS = 30.0
_used: set[int] = set()


def new_port() -> int:
    """A free port, never the same twice: several servers are started before the first one listens."""
    while (port := free_port()) in _used:
        pass
    _used.add(port)
    return port


def new_address() -> str:
    """`http://127.0.0.1:PORT` with a free port."""
    return f"http://127.0.0.1:{new_port()}"


def private_addresses() -> dict[str, str]:
    """Lines of config.properties that give a TorchServe five free ports."""
    http = {f"{name}_address": new_address() for name in ("inference", "management", "metrics")}
    return http | {f"grpc_{name}_port": str(new_port()) for name in ("inference", "management")}


class ServerProcess:
    """A server on loopback. Starts without waiting; `stop` may be called in any state."""

    def __init__(
        self,
        role: str,
        port: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        ready_path: str = "/ready",
        folder: Path | None = None,
    ) -> None:
        """It is ready when `ready_path` has an answer below 500. It is started in `folder` (None: here)."""
        self.role, self.url, self._ready_path = role, f"http://127.0.0.1:{port}", ready_path
        self._command, self._environment, self._start_folder = command, environment, folder
        self._temporary = tempfile.TemporaryDirectory(prefix="audiocnn-", ignore_cleanup_errors=True)
        self._log = Path(self._temporary.name, "log")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; returns at once."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._start_folder,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def process(self) -> psutil.Process:
        """The running process."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def processes(self) -> dict[str, list[psutil.Process]]:
        """It and its children, by role."""
        return {self.role: [self.process, *self.process.children(recursive=True)]}

    def is_ready(self) -> bool:
        """Whether it answers without a server error."""
        with suppress(requests.RequestException), requests.Session() as session:
            session.trust_env = False  # no proxy for loopback
            return session.get(self.url + self._ready_path, timeout=30).status_code < 500
        return False

    def wait_ready(self) -> None:
        """Wait for an answer; raises `RuntimeError` with the end of the log if there is none."""
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline and self._process and self._process.poll() is None:
            if self.is_ready():
                return
            time.sleep(0.02)
        end = self._log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"the server ({self.role}) did not become ready:\n{end}")

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to what is left of its session."""
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        self._temporary.cleanup()


class GatewayServer(ServerProcess):
    """`audiocnn gateway` in front of a server that runs already."""

    def __init__(
        self, settings: Mapping[str, str], *, checkout: Path | None = None, ready_path: str = "/ready"
    ) -> None:
        """`settings` are environment variables of docs/gateway.md; `checkout` has another version of it."""
        port, command = new_port(), [sys.executable, "-m", "audiocnn", "gateway"]
        super().__init__("gateway", port, command, {}, ready_path=ready_path, folder=checkout)
        own = {"GATEWAY_PORT": str(port), "LOG_FILE": f"{self._log}.json"}
        if checkout:
            own["PYTHONPATH"] = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
        self._environment = MALLOC | os.environ | dict(settings) | own

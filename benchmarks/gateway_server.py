"""`audiocnn gateway` on a free port in front of a server that runs already."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import requests

from audiocnn.torchserve.server import MALLOC
from benchmarks.ports import new_port

_READY_SECONDS = 180.0
_STOP_SECONDS = 30.0


class GatewayServer:
    """One process. Starts without waiting; `stop` may be called in any state."""

    def __init__(self, **settings: str) -> None:
        """`settings` are environment variables of docs/gateway.md, such as `TORCHSERVE_URL`."""
        port = new_port()
        self.url = f"http://127.0.0.1:{port}"
        self._folder = tempfile.TemporaryDirectory(prefix="audiocnn-gateway-", ignore_cleanup_errors=True)
        self._log = Path(self._folder.name, "log")
        self._environment: Mapping[str, str] = (
            MALLOC | os.environ | settings | {"GATEWAY_PORT": str(port), "LOG_FILE": f"{self._log}.json"}
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> psutil.Process:
        """The running process."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def start(self) -> None:
        """Start the process; returns at once."""
        command = [sys.executable, "-m", "audiocnn", "gateway"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        """Wait for an answer; raises `RuntimeError` with the end of the log if there is none."""
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline and self._process and self._process.poll() is None:
            try:
                if requests.get(f"{self.url}/ready", timeout=30).ok:
                    return
            except requests.RequestException:
                pass  # it does not listen yet
            time.sleep(0.05)
        raise RuntimeError(f"the gateway did not become ready:\n{self._log.read_text()[-2000:]}")

    def stop(self) -> None:
        """SIGTERM, then SIGKILL."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self._folder.cleanup()

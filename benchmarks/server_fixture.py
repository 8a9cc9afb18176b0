"""`audiocnn serve` on free ports, with a model store and log folder of its own, as a context manager."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil

from audiocnn.torchserve.properties import read_properties
from audiocnn.torchserve.tune import entry, rule_of_thumb
from benchmarks.command import CONFIG
from benchmarks.server_process import new_address, private_addresses

_START_SECONDS = 180.0
_STOP_SECONDS = 60.0
ARCHIVE = "audiocnn.mar"


class ServerFixture:
    """The supervisor, TorchServe and the gateway: ready within the context, stopped at its end."""

    def __init__(
        self,
        folder: Path,
        *,
        config: Path = CONFIG,
        flags: Sequence[str] = (),
        settings: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`folder` is for the store and the logs; `settings` replace lines of the configuration."""
        self.store, self.logs = folder / "store", folder / "logs"
        self.lines: list[tuple[float, str]] = []  # output, with times of `time.monotonic()`
        self.store.mkdir(parents=True)
        properties = read_properties(config)
        shutil.copy(Path(properties["model_store"], ARCHIVE), self.store)
        properties |= private_addresses() | {"model_store": str(self.store), "enable_model_api": "true"}
        properties |= settings or {}
        self.inference, self.management = properties["inference_address"], properties["management_address"]
        self.gateway = new_address()
        self._command = [sys.executable, "-m", "audiocnn", "serve", "--config", str(config)]
        self._command += ["--logs", str(self.logs), "--gateway", self.gateway.removeprefix("http://"), *flags]
        self._command += [word for key, value in properties.items() for word in ("--set", f"{key}={value}")]
        self._environment = os.environ | (environment or {})
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when it is ready; raises `RuntimeError` with its output otherwise."""
        began = time.monotonic()
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        if not self.printed("ready:", since=began, timeout_seconds=_START_SECONDS):
            printed = "\n".join(line for _, line in self.lines)
            self.stop()
            raise RuntimeError(f"the server did not start:\n{printed}")

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))
        process.stdout.close()

    def printed(self, text: str, *, since: float, timeout_seconds: float) -> bool:
        """Whether a line with this text is printed after the time `since`, within `timeout_seconds`."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if any(text in line for when, line in list(self.lines) if when >= since):
                return True
            if self._process is None or self._process.poll() is not None:
                return False
            time.sleep(0.05)
        return False

    def terminate(self) -> int:
        """Send SIGTERM; returns the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(_STOP_SECONDS)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to what remains."""
        if self._process is None or self._process.poll() is not None:
            return
        processes = [process for process, _ in self._roles()]
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.terminate()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    def _roles(self) -> list[tuple[psutil.Process, str]]:
        assert self._process is not None
        supervisor = psutil.Process(self._process.pid)
        found = [(supervisor, "supervisor")]
        for process in supervisor.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found.append((process, role(process)))
        return found

    def processes(self) -> dict[str, psutil.Process]:
        """The running ones: `supervisor`, `java`, `gateway`, `worker 1`, ... (oldest first)."""
        roles = self._roles()
        named = {kind: process for process, kind in roles if kind in ("supervisor", "java", "gateway")}
        workers = sorted((p for p, kind in roles if kind == "worker"), key=lambda process: process.pid)
        return named | {f"worker {number}": process for number, process in enumerate(workers, 1)}

    def workers(self) -> list[psutil.Process]:
        """The Python processes that classify, oldest first."""
        return [process for name, process in self.processes().items() if name.startswith("worker")]

    def remaining(self) -> list[psutil.Process]:
        """All running processes of this TorchServe, whatever their parent is now."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                is_ours = process.environ().get("LOG_LOCATION") == str(self.logs.resolve())
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


def role(process: psutil.Process) -> str:
    """`java`, `worker`, `gateway`, or empty."""
    line = process.cmdline()
    if process.name() == "java":
        return "java"
    if any(word.endswith("model_service_worker.py") for word in line):
        parent = process.parent()
        is_decoder = parent is not None and parent.cmdline() == line  # a fork: audiocnn.audio.isolation
        return "" if is_decoder else "worker"
    return "gateway" if line[1:4] == ["-m", "audiocnn", "gateway"] else ""


def tuned_server(folder: Path) -> ServerFixture:
    """The whole server with the usual setting for the throughput of this machine."""
    setting = rule_of_thumb(os.cpu_count() or 1, 0, "throughput")
    models = json.dumps(entry(read_properties(CONFIG), setting))
    environment = {"AUDIOCNN_THREADS": str(setting.threads)}
    return ServerFixture(folder / "server", settings={"models": models}, environment=environment)

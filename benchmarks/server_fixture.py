"""Our whole server in a place of its own, to be mistreated: `audiocnn serve --gateway` on free ports, with a
private model store and log folder, watched from outside as an operator would."""

from __future__ import annotations

import contextlib
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
from benchmarks.systems import new_port

_START_SECONDS = 180.0
_STOP_SECONDS = 60.0
ARCHIVE = "audiocnn.mar"


class Stage:
    """The server as a context: started and ready within, stopped with all that is left of it afterwards."""

    def __init__(
        self,
        folder: Path,
        *,
        config: Path = Path("config.properties"),
        gateway: bool = True,
        flags: Sequence[str] = (),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`folder` is for the store and the logs; `settings` replace lines of the configuration."""
        self.store, self.logs = folder / "store", folder / "logs"
        self.store.mkdir(parents=True)
        self.lines: list[tuple[float, str]] = []  # what it printed, and when (`time.monotonic()`)
        source = Path(read_properties(config)["model_store"], ARCHIVE)
        shutil.copy(source, self.store)
        own = {
            f"{n}_address": f"http://127.0.0.1:{new_port()}" for n in ("inference", "management", "metrics")
        }
        own |= {f"grpc_{name}_port": str(new_port()) for name in ("inference", "management")}
        own |= {"model_store": str(self.store), "enable_model_api": "true"}
        self.settings = read_properties(config) | own | dict(settings or {})
        self.inference, self.management = own["inference_address"], own["management_address"]
        self.gateway = f"http://127.0.0.1:{new_port()}" if gateway else ""
        command = [
            sys.executable,
            "-m",
            "audiocnn",
            "serve",
            "--config",
            str(config),
            "--logs",
            str(self.logs),
            *flags,
        ]
        command += [word for key, value in self.settings.items() for word in ("--set", f"{key}={value}")]
        self._command = command + (["--gateway", self.gateway.removeprefix("http://")] if gateway else [])
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Returns when it is ready; `RuntimeError` with what it printed if it does not become so."""
        began = time.monotonic()
        self._process = subprocess.Popen(
            self._command,
            env=os.environ | (environment or {}),
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

    def printed(self, word: str, *, since: float, timeout_seconds: float) -> bool:
        """Whether a line with this word comes in time, after the moment `since`."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if any(word in line for when, line in list(self.lines) if when >= since):
                return True
            if self._process is None or self._process.poll() is not None:
                return False
            time.sleep(0.05)
        return False

    def terminate(self) -> int:
        """SIGTERM, and its exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(_STOP_SECONDS)

    def stop(self) -> None:
        """Stop it, by force what does not."""
        if self._process is None or self._process.poll() is not None:
            return
        family = [process for process, _ in self._family()]
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.terminate()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    def _family(self) -> list[tuple[psutil.Process, str]]:
        assert self._process is not None
        supervisor = psutil.Process(self._process.pid)
        found = [(supervisor, "supervisor")]
        for process in supervisor.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found.append((process, role(process)))
        return found

    def processes(self) -> dict[str, psutil.Process]:
        """The living ones that matter: `supervisor`, `java`, `gateway`, `worker 1`, ..."""
        family = self._family()
        named = {kind: process for process, kind in family if kind in ("supervisor", "java", "gateway")}
        workers = sorted((p for p, kind in family if kind == "worker"), key=lambda process: process.pid)
        return named | {f"worker {number}": process for number, process in enumerate(workers, 1)}

    def left(self) -> list[psutil.Process]:
        """All processes that TorchServe of this stage began, whoever is their parent now."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                is_ours = process.environ().get("LOG_LOCATION") == str(self.logs.resolve())
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def workers(self) -> list[psutil.Process]:
        """The Python processes that answer, oldest first."""
        return [process for name, process in self.processes().items() if name.startswith("worker")]


def role(process: psutil.Process) -> str:
    """`java`, `worker`, `gateway`, or nothing of these: empty."""
    line = process.cmdline()
    if process.name() == "java":
        return "java"
    if any(word.endswith("model_service_worker.py") for word in line):
        parent = process.parent()
        is_decoder = (
            parent is not None and parent.cmdline() == line
        )  # a fork of a worker: audiocnn.audio.isolation
        return "" if is_decoder else "worker"
    return "gateway" if line[1:4] == ["-m", "audiocnn", "gateway"] else ""

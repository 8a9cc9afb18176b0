"""TorchServe as a managed process: start, readiness, health, drain, stop."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from audiocnn.client.client import Client
from audiocnn.private_folder import PrivateFolder, remove_abandoned
from audiocnn.torchserve.archives import known_sha256, verify
from audiocnn.torchserve.logfiles import ends_of, open_log
from audiocnn.torchserve.management_api import Management, ManagementError
from audiocnn.torchserve.ports import is_free
from audiocnn.torchserve.processes import (
    is_java,
    is_temporary_folder,
    port_owner,
    send_signal,
    session_members,
)
from audiocnn.torchserve.properties import ca_file, key_file, response_timeout_seconds
from audiocnn.torchserve.store import remove_leftovers
from audiocnn.torchserve.watchdog import HealthMonitor

MODEL = "audiocnn"
_FOLDER = "audiocnn-ts-"
# In bytes: a socket's path has 107 at most, and /audiocnn-ts-12345678/.ts.sock.90000 follows.
_MAX_TEMPORARY_PATH = 70

# glibc's allocator, for TorchServe, its workers and the gateway. By default glibc raises both thresholds to
# the size of the largest freed block, so resident memory grows. Lower thresholds cost time: with 256 kB each
# spectrogram is a new mapping, and a worker takes twice the CPU time.
MALLOC = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 20),
}
_SERVED = ("load_models", "models")  # the settings that change after a rollout
_WORKLESS_SECONDS = 120.0  # TorchServe's own time limit for the start of a worker
_POLL_SECONDS = 30.0  # the time-out of the management API
_STOP_SECONDS = 10.0  # for Java and the workers to end after SIGTERM


class ServerStartError(RuntimeError):
    """The server did not start; the message says what to do."""


class TorchServe:
    """The launcher, the Java front end and the workers of one server.

    Sockets and unpacked models are in a private temporary folder, so that several servers can run on one
    machine.
    """

    name = "TorchServe"

    def __init__(
        self,
        properties: Mapping[str, str],
        *,
        log_folder: Path,
        environment: Mapping[str, str] | None = None,
        reread: Callable[[], Mapping[str, str]] | None = None,
        max_unhealthy_seconds: float = _WORKLESS_SECONDS,
    ) -> None:
        """`environment` is added to this process's. `reread` returns the current configuration. It is called
        before a restart, because a rollout may have changed the served archive. A restart is needed after
        `max_unhealthy_seconds` without a worker.
        """
        self.properties = dict(properties)
        self._added = dict(environment or {})
        self._reread, self._max_unhealthy_seconds = reread, max_unhealthy_seconds
        self.inference = self.properties.get("inference_address", "http://127.0.0.1:8080")
        self.management = self.properties.get("management_address", "http://127.0.0.1:8081")
        self.is_ready = False
        self._starts = 0
        self._log_folder = log_folder.resolve()
        self._launcher: subprocess.Popen[bytes] | None = None
        self._folder: PrivateFolder | None = None
        self._monitor: HealthMonitor | None = None

    def start(self) -> None:
        """Start the processes. A restart appends to the same log.

        Raises `ServerStartError` for a missing archive, a missing Java or a port in use, and `ArchiveError`
        for an archive that does not have the recorded checksum.
        """
        is_first = self._starts == 0
        if self._reread and not is_first:
            current = self._reread()
            self.properties |= {name: current[name] for name in _SERVED if name in current}
        self._starts += 1
        self.is_ready = False
        remove_leftovers(Path(self.properties.get("model_store", ".")))
        self._check()
        remove_abandoned(_FOLDER, is_temporary_folder)
        self._folder = PrivateFolder(_FOLDER)
        config = self._folder.path / "config.properties"
        config.write_text("".join(f"{k}={v}\n" for k, v in self.properties.items()), encoding="utf-8")
        self._log_folder.mkdir(parents=True, exist_ok=True)
        command = [str(Path(sys.executable).with_name("torchserve")), "--start", "--foreground"]
        command += ["--ts-config", str(config), "--no-config-snapshots"]
        with open_log(self.log_file, is_first=is_first) as log:
            self._launcher = subprocess.Popen(
                command, env=self._environment(), stdout=log, stderr=log, start_new_session=True
            )

    def _check(self) -> None:
        for archive in self.archives():
            if not archive.is_file():
                raise ServerStartError(f"{archive} is missing: build it with `make archive`")
            verify(archive, known_sha256(archive, archive.parent))
        if len(os.fsencode(tempfile.gettempdir())) > _MAX_TEMPORARY_PATH:
            raise ServerStartError(
                f"the path of the temporary folder is too long for the sockets of workers: "
                f"{tempfile.gettempdir()}. Set TMPDIR to a shorter one, at most {_MAX_TEMPORARY_PATH} bytes"
            )
        environment = self._environment()
        if "JAVA_HOME" not in environment and not shutil.which("java", path=environment["PATH"]):
            raise ServerStartError("Java was not found: `make setup` installs one into .venv/bin")
        for name, host, port in self._listeners():
            if not is_free(host, port):
                raise ServerStartError(
                    f"port {port} ({name}) is in use{port_owner(port)}: stop that process, or choose "
                    f"another port with --set {name}=..."
                )

    @property
    def is_open_to_code(self) -> bool:
        """Whether archives, which run code, can be registered without a token."""
        has_api = self.properties.get("enable_model_api") == "true"
        return has_api and key_file(self.properties) is None

    def archives(self) -> list[Path]:
        """Paths of the archives that TorchServe loads at its start."""
        store = Path(self.properties.get("model_store", "."))
        named = self.properties.get("load_models", f"{MODEL}.mar")
        if named == "all":
            return sorted(store.glob("*.mar"))
        return [store / entry.rpartition("=")[2].strip() for entry in named.split(",") if entry.strip()]

    def _listeners(self) -> Iterator[tuple[str, str, int]]:
        """Name of the setting, host and port of each address that TorchServe listens on."""
        for name in ("inference_address", "management_address", "metrics_address"):
            address = urlsplit(self.properties.get(name, ""))
            if address.hostname and address.port:
                yield name, address.hostname, address.port
        for name, port in (("grpc_inference_port", "7070"), ("grpc_management_port", "7071")):
            host = self.properties.get(name.replace("port", "address"), "127.0.0.1")
            yield name, host, int(self.properties.get(name, port))

    def _environment(self) -> dict[str, str]:
        """This process's environment, without variables that override the configuration or the archive."""
        environment = MALLOC | dict(os.environ) | self._added
        for name in ("PYTHONPATH", "TS_CONFIG_FILE"):
            environment.pop(name, None)
        if not Path(environment.get("JAVA_HOME", ""), "bin", "java").is_file():
            environment.pop("JAVA_HOME", None)
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
        environment["LOG_LOCATION"] = environment["METRICS_LOCATION"] = str(self._log_folder)
        if timeout := response_timeout_seconds(self.properties):
            environment.setdefault("AUDIOCNN_BATCH_SECONDS", f"{timeout / 3:g}")
        if self._folder:
            environment["TMPDIR"] = environment["TEMP"] = str(self._folder.path)
        return environment

    @property
    def log_file(self) -> Path:
        """Standard output and standard error of the processes."""
        return self._log_folder / "torchserve.log"

    def is_alive(self) -> bool:
        """Whether the launcher, and with it Java, runs."""
        return self._launcher is not None and self._launcher.poll() is None

    def failure_reason(self) -> str:
        """Why a restart is needed, followed by the ends of the logs; empty if none is needed.

        A restart is needed when the launcher has ended or no worker has been ready for 120 s, for example
        because the private folder in /tmp was deleted.
        """
        if not self.is_alive():
            return f"TorchServe ended by itself, see {self.log_file}\n{self._ends_of_logs()}"
        if self.unhealthy_seconds > self._max_unhealthy_seconds:
            seconds = f"{self._max_unhealthy_seconds:.0f} s"
            return f"TorchServe has had no worker for {seconds}, see {self.log_file}\n{self._ends_of_logs()}"
        return ""

    @property
    def unhealthy_seconds(self) -> float:
        """Seconds without a ready worker while the processes run."""
        return self._monitor.unhealthy_seconds if self._monitor else 0.0

    def wait_ready(self, timeout_seconds: float, stop: threading.Event | None = None) -> None:
        """Wait until a prediction succeeds or `stop` is set.

        Raises `ServerStartError`, with the end of the log, after `timeout_seconds` or if the process ends.
        `/ping` is not enough: it reports Healthy when no model is loaded.
        """
        deadline = time.monotonic() + timeout_seconds
        keys, certificate = key_file(self.properties), ca_file(self.properties)
        with Client(self.inference, model=MODEL, key_file=keys, ca_file=certificate) as client:
            while time.monotonic() < deadline and self.is_alive() and not (stop and stop.is_set()):
                if client.ready():
                    self.is_ready = True
                    self._monitor = HealthMonitor(self._has_worker, timeout_seconds=_POLL_SECONDS)
                    return
                time.sleep(0.2)
        if stop and stop.is_set():
            return
        reason = "did not answer in time" if self.is_alive() else "stopped"
        raise ServerStartError(f"TorchServe {reason}. {self._ends_of_logs()}")

    def _ends_of_logs(self) -> str:
        """The last lines of Java and of the workers."""
        return ends_of(self.log_file, self.log_file.with_name("model_log.log"))

    def drain(self, seconds: float, force: threading.Event) -> bool:
        """Wait until all versions are idle, at most `seconds` or until `force` is set; whether they are."""
        deadline = time.monotonic() + seconds
        management = self._connect()
        try:
            busy = [version.name for version in management.versions()]
            while busy and time.monotonic() < deadline and not force.is_set():
                slice_seconds = min(2.0, deadline - time.monotonic())
                if management.wait_idle(busy[0], timeout_seconds=slice_seconds):
                    busy.pop(0)
        except ManagementError:
            return False
        finally:
            management.close()
        return not busy

    def _has_worker(self) -> bool:
        with contextlib.closing(self._connect()) as management:
            version = management.default()
        return version.ready_workers > 0 or not version.min_workers

    def _connect(self) -> Management:
        keys, certificate = key_file(self.properties), ca_file(self.properties)
        return Management(self.management, MODEL, key_file=keys, ca_file=certificate)

    def stop(self) -> None:
        """Send SIGTERM to Java, which ends the workers and the launcher; kill what runs after 10 s.

        The launcher leads a session, so its members are found also after it has ended, and a Java that
        starts meanwhile gets the signal too.
        """
        if self._monitor:
            self._monitor.stop()
            self._monitor = None
        if self._launcher is not None:
            deadline = time.monotonic() + _STOP_SECONDS
            while (members := session_members(self._launcher)) and time.monotonic() < deadline:
                java = [process for process in members if is_java(process)]
                if not java and not self.is_alive():
                    break  # Java was killed: the workers get no signal from it
                send_signal(java, signal.SIGTERM)
                time.sleep(0.05)
            send_signal(session_members(self._launcher), signal.SIGKILL)
            self._launcher.wait()
            self._launcher = None
        if self._folder:
            self._folder.remove()
            self._folder = None

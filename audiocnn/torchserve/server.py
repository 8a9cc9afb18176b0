"""One TorchServe as an object: started, watched, drained, stopped; nothing of it is left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from audiocnn.client.client import Client
from audiocnn.private_folder import PrivateFolder, remove_abandoned
from audiocnn.torchserve.archives import known_sha256, verify
from audiocnn.torchserve.logfiles import ends_of, open_log
from audiocnn.torchserve.management_api import Management, ManagementError
from audiocnn.torchserve.ports import is_free
from audiocnn.torchserve.properties import ca_file, key_file, response_timeout_seconds
from audiocnn.torchserve.store import remove_leftovers
from audiocnn.torchserve.watchdog import HealthMonitor

MODEL = "audiocnn"
_FOLDER = "audiocnn-ts-"

# For TorchServe, its workers and the gateway. Left to itself, glibc raises both thresholds to what sounds of
# megabytes once took and keeps what is freed: memory wanders. Lower ones cost time: with 256 kB, every
# spectrogram is a new mapping, and a worker needs twice the processor time.
MALLOC = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 20),
}
_SERVED = ("load_models", "models")  # the settings that a rollout says to change
_WORKLESS_SECONDS = 120.0  # TorchServe itself gives a worker so long to start
_POLL_SECONDS = 30.0  # the time-out of the management API
_STOP_SECONDS = 10.0  # for Java and the workers to end by themselves


class ServerStartError(RuntimeError):
    """The server cannot start, with what to do about it."""


class TorchServe:
    """One TorchServe: the launcher, the Java front end and its workers, in a private folder for
    sockets and unpacked models, so that two servers on one machine do not meet."""

    name = "TorchServe"

    def __init__(
        self,
        properties: Mapping[str, str],
        *,
        log_folder: Path,
        reread: Callable[[], Mapping[str, str]] | None = None,
    ) -> None:
        """`reread` gives the configuration as it is when TorchServe is started another time: a rollout
        has perhaps changed what is served since."""
        self.properties = dict(properties)
        self._reread = reread
        self.inference = self.properties.get("inference_address", "http://127.0.0.1:8080")
        self.management = self.properties.get("management_address", "http://127.0.0.1:8081")
        self.is_ready = False
        self._starts = 0
        self._log_folder = log_folder.resolve()
        self._launcher: subprocess.Popen[bytes] | None = None
        self._folder: PrivateFolder | None = None
        self._monitor: HealthMonitor | None = None

    def start(self) -> None:
        """Start the processes; raises `ServerStartError` for what can be seen to be wrong beforehand.

        Another start goes on in the same log.
        """
        is_first = self._starts == 0
        if self._reread and not is_first:
            now = self._reread()
            self.properties |= {name: now[name] for name in _SERVED if name in now}
        self._starts += 1
        self.is_ready = False
        remove_leftovers(Path(self.properties.get("model_store", ".")))
        self._check()
        remove_abandoned(_FOLDER, _is_used)
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
        environment = self._environment()
        if "JAVA_HOME" not in environment and not shutil.which("java", path=environment["PATH"]):
            raise ServerStartError("there is no Java: `make setup` puts one into .venv/bin")
        for name, host, port in self._listeners():
            if not is_free(host, port):
                raise ServerStartError(
                    f"port {port} ({name}) is taken{_listener(port)}: stop what listens there, or give "
                    f"this server other ports with --set {name}=..."
                )

    @property
    def is_open_to_code(self) -> bool:
        """Whether who reaches the management port may register archives without a token."""
        has_api = self.properties.get("enable_model_api") == "true"
        return has_api and key_file(self.properties) is None

    def archives(self) -> list[Path]:
        """The files that TorchServe will load."""
        store = Path(self.properties.get("model_store", "."))
        named = self.properties.get("load_models", f"{MODEL}.mar")
        if named == "all":
            return sorted(store.glob("*.mar"))
        return [store / entry.rpartition("=")[2].strip() for entry in named.split(",") if entry.strip()]

    def _listeners(self) -> Iterator[tuple[str, str, int]]:
        """Name of the setting, host and port of everything that TorchServe will listen on."""
        for name in ("inference_address", "management_address", "metrics_address"):
            address = urlsplit(self.properties.get(name, ""))
            if address.hostname and address.port:
                yield name, address.hostname, address.port
        for name, port in (("grpc_inference_port", "7070"), ("grpc_management_port", "7071")):
            host = self.properties.get(name.replace("port", "address"), "127.0.0.1")
            yield name, host, int(self.properties.get(name, port))

    def _environment(self) -> dict[str, str]:
        """Ours, less what would silently win over the configuration, the archive or the Java found."""
        environment = MALLOC | dict(os.environ)
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
        """Where everything that TorchServe prints goes."""
        return self._log_folder / "torchserve.log"

    def is_alive(self) -> bool:
        """Whether the launcher, and with it Java, still runs."""
        return self._launcher is not None and self._launcher.poll() is None

    def failure_reason(self) -> str:
        """Why it must be started again, if it must: it ended, or nothing in it can answer any more.
        The first line is the reason, the others are the ends of its logs.

        Its workers need its folder, for one, which whoever cleans up /tmp may have emptied.
        """
        if not self.is_alive():
            return f"TorchServe ended by itself, see {self.log_file}\n{self._ends_of_logs()}"
        if self.unhealthy_seconds > _WORKLESS_SECONDS:
            seconds = f"{_WORKLESS_SECONDS:.0f} s"
            return f"TorchServe has had no worker for {seconds}, see {self.log_file}\n{self._ends_of_logs()}"
        return ""

    @property
    def unhealthy_seconds(self) -> float:
        """For so long it has lived without a worker that can answer."""
        return self._monitor.unhealthy_seconds if self._monitor else 0.0

    def wait_ready(self, timeout_seconds: float, stop: threading.Event | None = None) -> None:
        """Wait until a real prediction comes back; `ServerStartError` with the end of the log if none does.

        `/ping` would not do: it says Healthy with no model loaded.
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
        """What Java printed last, and what the workers did."""
        return ends_of(self.log_file, self.log_file.with_name("model_log.log"))

    def drain(self, seconds: float, hurry: threading.Event) -> bool:
        """Wait until nothing is queued or in work, so long at most, or until `hurry`; whether it is so."""
        deadline = time.monotonic() + seconds
        management = self._connect()
        try:
            busy = [version.name for version in management.versions()]
            while busy and time.monotonic() < deadline and not hurry.is_set():
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
        """SIGTERM to Java, which ends the workers and the launcher; what is left then is killed.

        The launcher leads a session of its own, so its members are found also when it has died before
        them; and Java gets its signal also when it appears only now.
        """
        if self._monitor:
            self._monitor.stop()
            self._monitor = None
        if self._launcher is not None:
            deadline = time.monotonic() + _STOP_SECONDS
            while (members := _session(self._launcher)) and time.monotonic() < deadline:
                java = [process for process in members if _is_java(process)]
                if not java and not self.is_alive():
                    break  # workers whose Java was killed: nobody will tell them to end
                _signal(java, signal.SIGTERM)
                time.sleep(0.05)
            _signal(_session(self._launcher), signal.SIGKILL)
            self._launcher.wait()
            self._launcher = None
        if self._folder:
            self._folder.remove()
            self._folder = None


def _is_used(folder: Path) -> bool:
    """Whether a TorchServe lives in it: one whose `audiocnn serve` was killed goes on, but has no lock."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("TMPDIR") == str(folder):
                return True
    return False


def _session(leader: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The living processes of the session that `leader` leads, or led."""
    leader.poll()  # reaps it, so that it does not count as living
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            is_alive = process.status() != psutil.STATUS_ZOMBIE
            if is_alive and os.getsid(process.pid) == leader.pid:
                members.append(process)
    return members


def _is_java(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name() == "java"
    return False


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _listener(port: int) -> str:
    """Whose port it is, as far as can be seen: a TorchServe whose `audiocnn serve` was killed stays."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,)
            if listens and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""


def free_port() -> int:
    """A port on loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

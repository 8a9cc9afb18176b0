"""Containers for `deploy.image_test`, without a daemon: buildah builds them, runc runs them.

runc is what Docker and Kubernetes run containers with, so a read-only root, a user without capabilities and
a pod's shared network are the real ones here.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CLONE_NEWNET = 0x40000000
_START_SECONDS = 30.0
_LISTENS = "0A"  # in /proc/net/tcp


class ImageError(RuntimeError):
    """An image cannot be built, or does not do what it should."""


class Store:
    """Images of our own in one folder, apart from those of the machine."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        driver = "overlay" if _has_overlay(folder) else "vfs"
        self.folder = folder
        self._command = ["buildah", "--storage-driver", driver]
        self._command += ["--root", str(folder / "images"), "--runroot", str(folder / "run")]

    def buildah(self, *arguments: str) -> str:
        """Run it; what it printed on standard output. `ImageError` if it failed."""
        done = subprocess.run([*self._command, *arguments], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise ImageError(f"buildah {' '.join(arguments[:2])} ended with {done.returncode}, see above")
        return done.stdout.strip()

    def remove(self) -> None:
        """All of it; containers first (a build that failed leaves its own), for they are mounted."""
        self.buildah("rm", "--all")
        shutil.rmtree(self.folder)

    def has(self, image: str) -> bool:
        """Whether there is an image of this name."""
        return image in self.buildah("images", "--format", "{{.Name}}").splitlines()

    def config(self, image: str) -> dict[str, Any]:
        """User, command, environment and health check of an image."""
        inspected = json.loads(self.buildah("inspect", "--type", "image", image))
        config: dict[str, Any] = inspected["Docker"]["config"]
        return config

    @contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """The files of an image, in a container of their own."""
        name = self.buildah("from", "--pull-never", image)
        try:
            yield Path(self.buildah("mount", name))
        finally:
            self.buildah("rm", name)


def _has_overlay(folder: Path) -> bool:
    """Whether layers can be stacked here; else each one is a copy of all below it (vfs)."""
    parts = [folder / "probe" / name for name in ("lower", "upper", "work", "merged")]
    for part in parts:
        part.mkdir(parents=True, exist_ok=True)
    lower, upper, work, merged = map(str, parts)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    command = ["mount", "-t", "overlay", "overlay", "-o", options, merged]
    if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
        return False
    subprocess.run(["umount", merged], check=True)
    return True


class Container:
    """One container: a read-only root, no capabilities and no way to gain any, two folders of its own."""

    def __init__(self, name: str, root: Path, config: Mapping[str, Any], folder: Path) -> None:
        self.name = f"audiocnn-{name}-{os.getpid()}"
        self._root, self._config = root, config
        self._bundle = folder / self.name
        self._process: subprocess.Popen[bytes] | None = None
        self.log = self._bundle / "output.log"

    def start(
        self,
        *,
        environment: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        memory_mib: int = 0,
        network_of: Container | None = None,
    ) -> None:
        """Start the image's command, or `arguments` in its place, in a network that has nothing but loopback.

        `network_of`: a container whose network it shares, as in a pod.
        """
        self._bundle.mkdir(parents=True)
        subprocess.run(["runc", "spec"], cwd=self._bundle, check=True)
        spec = json.loads((self._bundle / "config.json").read_text())
        user, _, group = self._config["User"].partition(":")
        pairs = [*self._config["Env"], *(f"{k}={v}" for k, v in (environment or {}).items())]
        spec["process"] |= {
            "terminal": False,
            "user": {"uid": int(user), "gid": int(group)},
            "args": [*self._config["Entrypoint"], *(arguments or self._config["Cmd"])],
            "env": pairs,
            "cwd": self._config["WorkingDir"],
            "capabilities": {},
            "noNewPrivileges": True,
            "rlimits": [],
        }
        spec["root"] = {"path": str(self._root), "readonly": True}
        for place, mode in (("/tmp", "1777"), ("/var/log/audiocnn", "1777")):  # noqa: S108
            options = ["nosuid", "nodev", f"mode={mode}", "size=1g"]
            mount = {"destination": place, "type": "tmpfs", "source": "tmpfs", "options": options}
            spec["mounts"].append(mount)
        if network_of:
            for namespace in spec["linux"]["namespaces"]:
                if namespace["type"] == "network":
                    namespace["path"] = f"/proc/{network_of.pid}/ns/net"
        if memory_mib:
            spec["linux"]["resources"]["memory"] = {"limit": memory_mib << 20}
        (self._bundle / "config.json").write_text(json.dumps(spec))
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                ["runc", "run", "--bundle", str(self._bundle), self.name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_for_start()

    def _wait_for_start(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self.is_alive():
            state = subprocess.run(["runc", "state", self.name], capture_output=True, check=False)
            if state.returncode == 0 and json.loads(state.stdout)["status"] == "running":
                self.pid = int(json.loads(state.stdout)["pid"])
                return
            time.sleep(0.05)
        raise ImageError(f"{self.name} did not start:\n{self.output()}")

    def is_alive(self) -> bool:
        """Whether its first process still runs."""
        return self._process is not None and self._process.poll() is None

    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A further command in it, as its user."""
        return subprocess.run(
            ["runc", "exec", self.name, *command], capture_output=True, text=True, check=False
        )

    def wait_healthy(self, seconds: float) -> float:
        """Run the image's health check until it is content; seconds that one more then takes."""
        check = self._config["Healthcheck"]["Test"]
        assert check[0] == "CMD"
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.is_alive():
            if self.run(*check[1:]).returncode == 0:
                started = time.monotonic()
                self.run(*check[1:])
                return time.monotonic() - started
            time.sleep(0.2)
        raise ImageError(f"{self.name} did not become healthy:\n{self.output()}")

    def ports(self) -> set[int]:
        """Where its network can be reached from outside: ports that listen on more than loopback."""
        found = set()
        for name, loopback in (("tcp", "0100007F"), ("tcp6", "00000000000000000000000001000000")):
            for line in Path(f"/proc/{self.pid}/net/{name}").read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                address, _, port = local.partition(":")
                mapped = address.endswith("FFFF00000100007F")  # Java's way of saying 127.0.0.1
                if state == _LISTENS and address != loopback and not mapped:
                    found.add(int(port, 16))
        return found

    def peak_memory_mib(self) -> float:
        """The most memory that all its processes had together, files in its temporary folders included."""
        stats = subprocess.run(["runc", "events", "--stats", self.name], stdout=subprocess.PIPE, check=True)
        peak: int = json.loads(stats.stdout)["data"]["memory"]["usage"]["max"]
        return peak / (1 << 20)

    def stop(self, seconds: float) -> tuple[int, float]:
        """SIGTERM to its first process, as an orchestrator does; exit code, and seconds that it took."""
        assert self._process is not None
        started = time.monotonic()
        subprocess.run(["runc", "kill", self.name, "TERM"], check=True)
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise ImageError(f"{self.name} still runs {seconds:.0f} s after SIGTERM") from error
        return code, time.monotonic() - started

    def remove(self) -> None:
        """Whatever is left of it."""
        subprocess.run(["runc", "delete", "--force", self.name], stderr=subprocess.DEVNULL, check=False)
        if self._process is not None:
            self._process.wait()


@contextmanager
def inside_network(container: Container) -> Iterator[None]:
    """This thread's new connections are made in the container's network."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/net") as ours, open(f"/proc/{container.pid}/ns/net") as theirs:
        if libc.setns(theirs.fileno(), _CLONE_NEWNET):
            raise ImageError(os.strerror(ctypes.get_errno()))
        try:
            yield
        finally:
            libc.setns(ours.fileno(), _CLONE_NEWNET)

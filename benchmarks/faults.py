"""The faults of `benchmarks.chaos`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import requests

from audiocnn.client.retry import Endpoint, read_reply
from audiocnn.errors import AudioError, ServerError
from audiocnn.torchserve.management_api import Management
from audiocnn.torchserve.scale import copy_as
from benchmarks.background_load import ReferenceClip, RequestLog, RequestRecord, failure
from benchmarks.load import OCTETS
from benchmarks.server_fixture import ARCHIVE, ServerFixture

RESPONSE_SECONDS = 10  # TorchServe's responseTimeout here: it replaces a hanging worker after it
_BURST = 200
_FROZEN_SECONDS = 4.0
_FULL_SECONDS = 6.0
_RECOVERY_SECONDS = 90.0
_LOG_DISK = "16m"
_LARGE_BYTES = 39_000_000
_LARGE_BURST = 64


@dataclass
class FaultContext:
    """The server and the clips. `burst` logs the requests that a fault sends itself."""

    server: ServerFixture
    clips: Sequence[ReferenceClip]
    burst: RequestLog

    def manage(self, *arguments: str) -> None:
        """`audiocnn manage`; raises `RuntimeError` with its output if it fails."""
        command = [sys.executable, "-m", "audiocnn", "manage", "--inference", self.server.inference]
        command += ["--management", self.server.management, *arguments]
        run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        if run.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: {run.stdout}{run.stderr}")

    def wait_workers(self, count: int, *, without: Sequence[psutil.Process] = ()) -> None:
        """Until `count` workers are ready, none of them in `without`."""
        gone = {process.pid for process in without}
        deadline = time.monotonic() + _RECOVERY_SECONDS
        with closing(Management(self.server.management)) as management:
            while time.monotonic() < deadline:
                version = management.default()
                if version.ready_workers >= count and not gone & set(version.pids):
                    return
                time.sleep(0.1)
        raise RuntimeError(f"no {count} new workers after {_RECOVERY_SECONDS:.0f} s")

    def wait_printed(self, line: str, *, since: float) -> None:
        """Until the supervisor prints this line; raises `RuntimeError` if it does not."""
        if not self.server.printed(line, since=since, timeout_seconds=_RECOVERY_SECONDS):
            raise RuntimeError(f"no {line!r} after {_RECOVERY_SECONDS:.0f} s")


def _replace(context: FaultContext, count: int | None, harm: Callable[[psutil.Process], None]) -> None:
    """Kill or suspend so many workers (None: all), and wait for others."""
    workers = context.server.workers()[:count]
    for worker in workers:
        harm(worker)
    context.wait_workers(2, without=workers)


def _freeze_java(context: FaultContext) -> None:
    java = context.server.processes()["java"]
    java.suspend()
    time.sleep(_FROZEN_SECONDS)
    java.resume()


def _large_bodies(context: FaultContext) -> None:
    clip = context.clips[0]
    _flood(context, [replace(clip, body=clip.body + bytes(_LARGE_BYTES))], _LARGE_BURST)


def _flood(context: FaultContext, clips: Sequence[ReferenceClip], count: int) -> None:
    url = Endpoint(url=context.server.inference).address("predictions")

    def send(number: int) -> None:
        context.burst.add(_send_once(url, clips[number % len(clips)]))

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(send, range(count)))


def _send_once(url: str, clip: ReferenceClip) -> RequestLog:
    began, why = time.monotonic(), ""
    try:
        reply = requests.post(url, data=clip.body, headers=OCTETS, timeout=60)
        matches = clip.matches(read_reply(reply.status_code, reply.headers, reply.content))
        outcome = "right" if matches else "wrong"
    except (requests.RequestException, ServerError, AudioError) as error:
        outcome, why = failure(error)
    return RequestLog(1, [RequestRecord(began, time.monotonic(), outcome, 0, why)])


def _roll_out(context: FaultContext) -> None:
    store, archive = context.server.store, context.server.store.parent / "new.mar"
    copy_as(store / ARCHIVE, archive, "2.0")
    context.manage("rollout", str(archive), "--store", str(store))
    context.manage("rollback", "--store", str(store))


def _scale(context: FaultContext) -> None:
    for workers in (1, 4, 1, 2):
        context.manage("scale", str(workers), "--store", str(context.server.store))


def _terminate(context: FaultContext) -> None:
    if code := context.server.terminate():
        raise RuntimeError(f"exit code {code}")
    if remaining := context.server.remaining():
        raise RuntimeError(f"{len(remaining)} processes are still running")
    context.server.start()


def _fill_disk(context: FaultContext) -> None:
    with _no_space(context.server.logs):
        _replace(context, 1, psutil.Process.kill)
        time.sleep(_FULL_SECONDS)
        full = _log_sizes(context.server)
    deadline = time.monotonic() + _FULL_SECONDS
    while not (grown := {name for name, n in _log_sizes(context.server).items() if n > full.get(name, 0)}):
        if time.monotonic() > deadline:
            raise RuntimeError("nothing is logged although the disk has space again")
        time.sleep(0.1)
    if not {"access_log.log", "gateway_log.log"} & grown:
        raise RuntimeError(f"the disk has space again, but only {grown} is written")


def _log_sizes(server: ServerFixture) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in server.logs.glob("*.log")}


@contextmanager
def _no_space(folder: Path) -> Iterator[None]:
    """Within the context the file system of `folder` is full to the last byte."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def log_disk(folder: Path) -> Iterator[None]:
    """A small tmpfs for the logs; raises `PermissionError` unless run as root."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_LOG_DISK}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        raise PermissionError("only root can mount a small disk for the logs")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607


def _kill(context: FaultContext, *names: str) -> None:
    began, processes = time.monotonic(), context.server.processes()
    for name in names:
        processes[name].kill()
    for name in names:
        title = {"java": "TorchServe", "gateway": "the gateway"}[name]
        context.wait_printed(f"{title} answers again", since=began)


MAY_REFUSE = ("overflow", "large")
_kill_process, _suspend = psutil.Process.kill, psutil.Process.suspend
# What happens, and a function that returns when it is over.
FAULTS: dict[str, tuple[str, Callable[[FaultContext], None]]] = {
    "worker": ("kill -9 of one worker", lambda c: _replace(c, 1, _kill_process)),
    "workers": ("kill -9 of all workers at once", lambda c: _replace(c, None, _kill_process)),
    "hang": ("a worker hangs in a request, past responseTimeout", lambda c: _replace(c, 1, _suspend)),
    "hang-all": ("all workers hang, past responseTimeout", lambda c: _replace(c, None, _suspend)),
    "freeze": ("Java suspended for 4 s", _freeze_java),
    "overflow": ("200 more requests at once, without retries", lambda c: _flood(c, c.clips, _BURST)),
    "large": ("64 bodies of 39 MB at once, without retries", _large_bodies),
    "rollout": ("`audiocnn manage rollout` to another version, and `rollback`", _roll_out),
    "scale": ("`audiocnn manage scale` to 1, 4, 1 and 2 workers", _scale),
    "disk": ("the disk with the logs is full for 6 s, and a worker dies meanwhile", _fill_disk),
    "java": ("kill -9 of Java; the supervisor starts it again", lambda c: _kill(c, "java")),
    "gateway": ("kill -9 of the gateway; the supervisor starts it again", lambda c: _kill(c, "gateway")),
    "both": ("kill -9 of Java and the gateway at once", lambda c: _kill(c, "gateway", "java")),
    "terminate": ("SIGTERM to the server while it is busy, then started again", _terminate),
}


def server_settings(properties: dict[str, str]) -> dict[str, str]:
    """Two workers and a short responseTimeout."""
    models = json.loads(properties["models"])
    for version in models["audiocnn"].values():
        version |= {"minWorkers": 2, "maxWorkers": 2, "responseTimeout": RESPONSE_SECONDS}
    return {"models": json.dumps(models)}

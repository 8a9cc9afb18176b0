"""What can happen to a server. Every fault returns when it is over or undone, not when all is well again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from audiocnn.client.retry import Endpoint, read_reply
from audiocnn.errors import AudioError, ServerBusyError, ServerError
from audiocnn.torchserve.management_api import Management
from audiocnn.torchserve.scale import copy_as
from benchmarks.background_load import Account, Asked, Known
from benchmarks.load import OCTETS
from benchmarks.server_fixture import ARCHIVE, Stage

RESPONSE_SECONDS = 10  # TorchServe's responseTimeout on this stage: a hanging worker is replaced after it
_BURST = 200
_FROZEN_SECONDS = 4.0
_FULL_SECONDS = 6.0
_BACK_SECONDS = 90.0
_LOG_DISK = "16m"
_BIG_BYTES = 39_000_000


@dataclass
class Scene:
    """Where a fault happens. `burst` takes what a fault sends by itself."""

    stage: Stage
    clips: Sequence[Known]
    burst: Account

    def manage(self, *arguments: str) -> None:
        """`audiocnn manage`; `RuntimeError` with what it printed if it fails."""
        command = [sys.executable, "-m", "audiocnn", "manage", "--inference", self.stage.inference]
        command += ["--management", self.stage.management, *arguments]
        run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        if run.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: {run.stdout}{run.stderr}")

    def wait_workers(self, count: int, *, without: Sequence[psutil.Process] = ()) -> None:
        """Until so many workers are ready, none of them among `without`."""
        gone = {process.pid for process in without}
        deadline = time.monotonic() + _BACK_SECONDS
        management = Management(self.stage.management)
        try:
            while time.monotonic() < deadline:
                version = management.default()
                if version.ready_workers >= count and not gone & set(version.pids):
                    return
                time.sleep(0.1)
        finally:
            management.close()
        raise RuntimeError(f"no {count} new workers after {_BACK_SECONDS:.0f} s")


def kill_worker(scene: Scene) -> None:
    """kill -9 of one worker"""
    victim = scene.stage.workers()[0]
    victim.kill()
    scene.wait_workers(2, without=[victim])


def kill_workers(scene: Scene) -> None:
    """kill -9 of all workers at once"""
    victims = scene.stage.workers()
    for victim in victims:
        victim.kill()
    scene.wait_workers(2, without=victims)


def hang_worker(scene: Scene) -> None:
    """a worker hangs in a request, past responseTimeout"""
    victim = scene.stage.workers()[0]
    victim.suspend()
    scene.wait_workers(2, without=[victim])


def hang_workers(scene: Scene) -> None:
    """all workers hang, past responseTimeout"""
    victims = scene.stage.workers()
    for victim in victims:
        victim.suspend()
    scene.wait_workers(2, without=victims)


def freeze_java(scene: Scene) -> None:
    """Java stands still for 4 s"""
    java = scene.stage.processes()["java"]
    java.suspend()
    time.sleep(_FROZEN_SECONDS)
    java.resume()


def overflow(scene: Scene) -> None:
    """200 more requests at once, by callers who do not ask twice"""
    _flood(scene, scene.clips, _BURST)


def large_bodies(scene: Scene) -> None:
    """64 bodies of 39 MB at once, by callers who do not ask twice"""
    long = Known(scene.clips[0].body + bytes(_BIG_BYTES), scene.clips[0].top, scene.clips[0].confidence)
    _flood(scene, [long], 64)


def _flood(scene: Scene, clips: Sequence[Known], count: int) -> None:
    impatient = Endpoint(url=scene.stage.inference).address("predictions")

    def once(number: int) -> None:
        clip, account = clips[number % len(clips)], Account(sent=1)
        began, why = time.monotonic(), ""
        try:
            reply = requests.post(impatient, data=clip.body, headers=OCTETS, timeout=60)
            right = clip.matches(read_reply(reply.status_code, reply.headers, reply.content))
            outcome = "right" if right else "wrong"
        except ServerBusyError as error:
            outcome, why = "refused", str(error)[:60]
        except (requests.RequestException, ServerError, AudioError) as error:
            outcome, why = "failed", f"{type(error).__name__}: {error}"[:200]
        account.asked.append(Asked(began, time.monotonic(), outcome, 0, why))
        scene.burst.add(account)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(once, range(count)))


def roll_out(scene: Scene) -> None:
    """`audiocnn manage rollout` to another version, and `rollback`"""
    store, archive = scene.stage.store, scene.stage.store.parent / "new.mar"
    copy_as(store / ARCHIVE, archive, "2.0")
    scene.manage("rollout", str(archive), "--store", str(store))
    scene.manage("rollback", "--store", str(store))


def scale(scene: Scene) -> None:
    """`audiocnn manage scale` to 1, 4, 1 and 2 workers"""
    for workers in (1, 4, 1, 2):
        scene.manage("scale", str(workers), "--store", str(scene.stage.store))


def terminate(scene: Scene) -> None:
    """SIGTERM to the server while it is busy, then started again"""
    if code := scene.stage.terminate():
        raise RuntimeError(f"exit code {code}")
    if left := scene.stage.left():
        raise RuntimeError(f"{len(left)} processes were left behind")
    scene.stage.start()


def fill_disk(scene: Scene) -> None:
    """the disk with the logs is full for 6 s, and a worker dies meanwhile"""
    with _no_space(scene.stage):
        kill_worker(scene)
        time.sleep(_FULL_SECONDS)
        full = _logged(scene.stage)
    deadline = time.monotonic() + _FULL_SECONDS
    while not (grown := {name for name, size in _logged(scene.stage).items() if size > full.get(name, 0)}):
        if time.monotonic() > deadline:
            raise RuntimeError("there is space again, and nothing is logged any more")
        time.sleep(0.1)
    if not {"access_log.log", "gateway_log.log"} & grown:
        raise RuntimeError(f"there is space again, and only {grown} is written")


def _logged(stage: Stage) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in stage.logs.glob("*.log")}


@contextmanager
def _no_space(stage: Stage) -> Iterator[None]:
    """No byte can be added to a log: its file system, mounted for it, is filled up."""
    filler = stage.logs / "filler"
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
    """A small file system of its own for the logs; raises `PermissionError` for who must not mount one."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_LOG_DISK}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        raise PermissionError("only root can mount a small disk for the logs")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607


def kill_java(scene: Scene) -> None:
    """kill -9 of Java; the supervisor starts it again"""
    _kill_and_wait(scene, "java", "TorchServe answers again")


def kill_gateway(scene: Scene) -> None:
    """kill -9 of the gateway; the supervisor starts it again"""
    _kill_and_wait(scene, "gateway", "the gateway answers again")


def kill_both(scene: Scene) -> None:
    """kill -9 of Java and the gateway at once"""
    began = time.monotonic()
    processes = scene.stage.processes()
    for name in ("gateway", "java"):
        processes[name].kill()
    for line in ("TorchServe answers again", "the gateway answers again"):
        if not scene.stage.printed(line, since=began, timeout_seconds=_BACK_SECONDS):
            raise RuntimeError(f"not back after {_BACK_SECONDS:.0f} s")


def _kill_and_wait(scene: Scene, name: str, line: str) -> None:
    began = time.monotonic()
    scene.stage.processes()[name].kill()
    if not scene.stage.printed(line, since=began, timeout_seconds=_BACK_SECONDS):
        raise RuntimeError(f"the {name} is not back after {_BACK_SECONDS:.0f} s")


MAY_REFUSE = ("overflow", "large")
FAULTS: dict[str, Callable[[Scene], None]] = {
    "worker": kill_worker,
    "workers": kill_workers,
    "hang": hang_worker,
    "hang-all": hang_workers,
    "freeze": freeze_java,
    "overflow": overflow,
    "large": large_bodies,
    "rollout": roll_out,
    "scale": scale,
    "disk": fill_disk,
    "java": kill_java,
    "gateway": kill_gateway,
    "both": kill_both,
    "terminate": terminate,
}


def stage_settings(properties: dict[str, str]) -> dict[str, str]:
    """Two workers, and a time-out that is worth waiting for."""
    models = json.loads(properties["models"])
    for version in models["audiocnn"].values():
        version |= {"minWorkers": 2, "maxWorkers": 2, "responseTimeout": RESPONSE_SECONDS}
    return {"models": json.dumps(models)}

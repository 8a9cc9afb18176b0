"""What the serving benchmark measures: the bare engine in processes, our TorchServe, other servers.

All are started without waiting, made ready, measured any number of times, and stopped by process id.
"""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import requests

from audiocnn.classifier import Classifier
from audiocnn.torchserve.ports import free_port
from audiocnn.torchserve.properties import read_properties
from audiocnn.torchserve.server import MODEL, TorchServe
from audiocnn.torchserve.tune import Setting, entry
from benchmarks import baselines, load
from benchmarks.corpus import Clips
from benchmarks.load import Measured, Sample, Target

READY_SECONDS = 180.0
STOP_SECONDS = 10.0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")

_given: set[int] = set()


def new_port() -> int:
    """A free port that was not given before: servers are started faster than they listen."""
    while (port := free_port()) in _given:
        pass
    _given.add(port)
    return port


class Contestant(Protocol):
    """Something that answers clips."""

    name: str
    setting: Setting

    def start(self) -> None:
        """Begin to start; returns at once."""
        ...

    def wait_ready(self) -> None:
        """Wait until all workers can answer; `TimeoutError` or `RuntimeError` if they cannot."""
        ...

    def closed(self, concurrency: int, seconds: float) -> Measured:
        """What `concurrency` clients get in `seconds`."""
        ...

    def stop(self) -> None:
        """End all processes; harmless if there are none."""
        ...


class Bare:
    """The engine without a server: processes that turn bytes into JSON as fast as they can."""

    def __init__(self, setting: Setting, model: Path, device: str, clips: Clips, name: str = "bare") -> None:
        self.name, self.setting = name, setting
        self._arguments = (model, device, setting.threads, setting.batch, clips)
        self._workers: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []

    def start(self) -> None:
        """See `Contestant`."""
        context = multiprocessing.get_context("spawn")
        for _ in range(self.setting.workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_bare_worker, args=(theirs, *self._arguments), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))

    def wait_ready(self) -> None:
        """See `Contestant`."""
        for _, connection in self._workers:
            if not connection.poll(READY_SECONDS):
                raise TimeoutError(f"{self.name} {self.setting} did not load")
            connection.recv()  # EOFError if the process died: its own message is on the screen

    def closed(self, concurrency: int, seconds: float) -> Measured:
        """As many clips as possible; every process always has its next batch, so clients mean nothing."""
        for _, connection in self._workers:
            connection.send(seconds)
        parts: list[list[Sample]] = [connection.recv() for _, connection in self._workers]
        rates = [sum(s.is_right for s in samples) / samples[-1].finished for samples in parts]
        return Measured(sum(rates), [sample for samples in parts for sample in samples])

    def stop(self) -> None:
        """See `Contestant`."""
        for process, connection in self._workers:
            process.kill()
            process.join()
            connection.close()
        self._workers = []


def _bare_worker(
    connection: Connection, model: Path, device: str, threads: int, batch: int, clips: Clips
) -> None:
    """Says that it is ready, then for every number of seconds received sends the samples of so long."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    classifier = Classifier.load(model, device=device, threads=threads)
    bodies, number = clips.bodies, 0
    baselines.answers(classifier, bodies[:batch])
    connection.send(None)
    while True:
        seconds: float = connection.recv()
        samples: list[Sample] = []
        begin = time.perf_counter()
        while (started := time.perf_counter() - begin) < seconds:
            chosen = [(number + k) % len(bodies) for k in range(batch)]
            number += batch
            replies = baselines.answers(classifier, [bodies[clip] for clip in chosen])
            finished = time.perf_counter() - begin
            for clip, reply in zip(chosen, replies, strict=True):
                top = load.top_class(reply)
                is_right = top == clips.expected[clip]
                samples.append(Sample(clip, started, started, finished, 200, top, is_right))
        connection.send(samples)


class Ours:
    """TorchServe with our handler, as config.properties has it but for the setting and the ports."""

    def __init__(
        self,
        setting: Setting,
        config: Path,
        device: str,
        clips: Clips,
        name: str = "torchserve",
        *,
        changes: Mapping[str, str] | None = None,
    ) -> None:
        """`changes` are lines of the configuration to replace."""
        self.name, self.setting = name, setting
        properties = read_properties(config) | dict(changes or {})
        properties |= {
            "models": json.dumps(entry(properties, setting)),
            "number_of_gpu": "0" if device == "cpu" else "1",
        }
        for address in ("inference", "management", "metrics"):
            properties[f"{address}_address"] = f"http://127.0.0.1:{new_port()}"
        properties |= {f"grpc_{part}_port": str(new_port()) for part in ("inference", "management")}
        self._logs = tempfile.TemporaryDirectory(prefix="audiocnn-logs-", ignore_cleanup_errors=True)
        self._server = TorchServe(properties, log_folder=Path(self._logs.name))
        self.target = Target(
            f"{self._server.inference}/predictions/{MODEL}", clips.bodies, clips.expected, load.OCTETS
        )

    def start(self) -> None:
        """See `Contestant`."""
        os.environ["AUDIOCNN_THREADS"] = str(self.setting.threads)  # inherited by the handler
        self._server.start()

    def wait_ready(self) -> None:
        """See `Contestant`."""
        self._server.wait_ready(READY_SECONDS)
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            (model,) = requests.get(f"{self._server.management}/models/{MODEL}", timeout=10).json()
            if sum(w["status"] == "READY" for w in model["workers"]) == self.setting.workers:
                return
            time.sleep(0.2)
        raise TimeoutError(f"{self.name} {self.setting}: not all workers became ready")

    def closed(self, concurrency: int, seconds: float) -> Measured:
        """See `Contestant`."""
        return load.closed_loop(self.target, concurrency, seconds)

    def stop(self) -> None:
        """See `Contestant`."""
        self._server.stop()
        self._logs.cleanup()


class Rival:
    """A server of `benchmarks.baselines`."""

    def __init__(self, kind: str, setting: Setting, model: Path, device: str, clips: Clips) -> None:
        self.name, self.setting, self._kind = kind, setting, kind
        port = new_port()
        url = f"http://127.0.0.1:{port}{baselines.PATHS[kind]}"
        self.target = Target(url, clips.bodies, clips.expected, load.OCTETS)
        if kind == "seed":
            self.target = Target(url, [_as_json(body) for body in clips.bodies], clips.expected, load.JSON)
        self._folder = tempfile.TemporaryDirectory(prefix="audiocnn-rival-", ignore_cleanup_errors=True)
        self._command = [sys.executable, "-m", "benchmarks.baselines", kind, "--port", str(port)]
        self._command += ["--model", str(model), "--device", device, "--ready-folder", self._ready_folder()]
        for name in ("workers", "threads", "batch", "delay"):
            self._command += [f"--{name}", str(getattr(setting, name))]
        self._process: subprocess.Popen[bytes] | None = None

    def _ready_folder(self) -> str:
        folder = Path(self._folder.name, "ready")
        folder.mkdir(exist_ok=True)
        return str(folder)

    @property
    def _log(self) -> Path:
        return Path(self._folder.name, "log")

    def start(self) -> None:
        """See `Contestant`."""
        environment = dict(os.environ)
        if self._kind == "seed":  # default threads, as the seeds have them
            for variable in THREAD_VARIABLES:
                environment.pop(variable, None)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait_ready(self) -> None:
        """See `Contestant`."""
        assert self._process is not None
        folder, deadline = Path(self._ready_folder()), time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if len(list(folder.iterdir())) >= self.setting.workers and self._answers():
                return
            time.sleep(0.1)
        end = self._log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{self.name} {self.setting} did not become ready:\n{end}")

    def _answers(self) -> bool:
        session = requests.Session()
        session.trust_env = False  # no proxy between this machine and itself
        with session:
            try:
                body, headers = self.target.bodies[0], dict(self.target.headers)
                return (
                    session.post(self.target.url, data=body, headers=headers, timeout=30).status_code == 200
                )
            except requests.RequestException:
                return False

    def closed(self, concurrency: int, seconds: float) -> Measured:
        """See `Contestant`."""
        return load.closed_loop(self.target, concurrency, seconds)

    def stop(self) -> None:
        """See `Contestant`."""
        if self._process is not None:
            _end(self._process)
            self._process = None
        self._folder.cleanup()


class WithoutMaps:
    """The seed-style server once more, asked for predictions alone; it runs and ends with the other."""

    def __init__(self, seed: Rival) -> None:
        self.name, self.setting = "seed without maps", seed.setting
        url = seed.target.url.replace(baselines.PATHS["seed"], baselines.WITHOUT_MAPS)
        self.target = Target(url, seed.target.bodies, seed.target.expected, seed.target.headers)

    def start(self) -> None:
        """It is the other's process."""

    wait_ready = stop = start

    def closed(self, concurrency: int, seconds: float) -> Measured:
        """See `Contestant`."""
        return load.closed_loop(self.target, concurrency, seconds)


def _as_json(body: bytes) -> bytes:
    return json.dumps({"audio_data": base64.b64encode(body).decode()}).encode()


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the server, then SIGKILL to what is left of the session that it leads, orphans too."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

"""What `benchmarks.serving` compares: the bare engine, our TorchServe, and `benchmarks.baselines`.

A system starts without waiting, becomes ready, is measured any number of times, and stops.
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
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import psutil
import requests

from audiocnn.classifier import Classifier
from audiocnn.model import openvino_graph
from audiocnn.torchserve.properties import read_properties
from audiocnn.torchserve.server import MODEL, TorchServe
from audiocnn.torchserve.tune import Setting, entry
from benchmarks import baselines, load
from benchmarks.corpus import Clips
from benchmarks.gateway_server import GatewayServer
from benchmarks.load import LoadResult, Sample, Target
from benchmarks.ports import new_port, private_addresses
from benchmarks.server_fixture import role

READY_SECONDS = 180.0
STOP_SECONDS = 10.0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class System(Protocol):
    """Anything that classifies clips."""

    name: str
    setting: Setting

    def start(self) -> None:
        """Start the processes; returns at once."""
        ...

    def wait_ready(self) -> None:
        """Wait for all workers; raises `TimeoutError` or `RuntimeError` if they do not become ready."""
        ...

    def closed(self, concurrency: int, seconds: float) -> LoadResult:
        """A closed loop of `concurrency` clients."""
        ...

    def processes(self) -> dict[str, list[psutil.Process]]:
        """What computes, by role: `engine`, `java`, `worker`, `gateway` or `server`."""
        ...

    def stop(self) -> None:
        """End all processes; does nothing if there are none."""
        ...


class BareEngine:
    """The classifier without a server: processes that turn bytes into JSON without a pause."""

    def __init__(self, setting: Setting, model: Path, device: str, clips: Clips, name: str = "bare") -> None:
        self.name, self.setting = name, setting
        self._arguments = (model, device, setting.threads, setting.batch, clips)
        self._workers: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []

    def start(self) -> None:
        """See `System`."""
        context = multiprocessing.get_context("spawn")
        for _ in range(self.setting.workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_bare_worker, args=(theirs, *self._arguments), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))

    def wait_ready(self) -> None:
        """See `System`."""
        for _, connection in self._workers:
            if not connection.poll(READY_SECONDS):
                raise TimeoutError(f"{self.name} {self.setting} did not load")
            connection.recv()  # EOFError if the process died: it has printed why

    def closed(self, concurrency: int, seconds: float) -> LoadResult:
        """Every process always has its next batch, so `concurrency` has no effect."""
        for _, connection in self._workers:
            connection.send(seconds)
        parts: list[list[Sample]] = [connection.recv() for _, connection in self._workers]
        rates = [sum(s.is_right for s in samples) / samples[-1].finished for samples in parts]
        return LoadResult(sum(rates), [sample for samples in parts for sample in samples])

    def processes(self) -> dict[str, list[psutil.Process]]:
        """See `System`."""
        return {"engine": [psutil.Process(process.pid) for process, _ in self._workers]}

    def stop(self) -> None:
        """See `System`."""
        for process, connection in self._workers:
            process.kill()
            process.join()
            connection.close()
        self._workers = []


def _bare_worker(
    connection: Connection, model: Path, device: str, threads: int, batch: int, clips: Clips
) -> None:
    """Sends None when it is ready, then for each number of seconds received the samples of that time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    classifier = Classifier.load(model, device=device, threads=threads)
    baselines.replies(classifier, clips.bodies[:batch])
    connection.send(None)
    while True:
        connection.send(_samples(classifier, clips, batch, connection.recv()))


def _samples(classifier: Classifier, clips: Clips, batch: int, seconds: float) -> list[Sample]:
    samples: list[Sample] = []
    begin = time.perf_counter()
    while (started := time.perf_counter() - begin) < seconds:
        chosen = [(len(samples) + k) % len(clips.bodies) for k in range(batch)]
        replies = baselines.replies(classifier, [clips.bodies[clip] for clip in chosen])
        finished = time.perf_counter() - begin
        for clip, reply in zip(chosen, replies, strict=True):
            top = load.top_class(reply)
            samples.append(Sample(clip, started, started, finished, 200, top, top == clips.expected[clip]))
    return samples


class _Server:
    """A system that is measured over HTTP."""

    name: str
    setting: Setting
    target: Target

    def closed(self, concurrency: int, seconds: float) -> LoadResult:
        """See `System`."""
        return load.closed_loop(self.target, concurrency, seconds)


class TorchServeSystem(_Server):
    """TorchServe with our handler, as config.properties has it but for the setting and the ports."""

    def __init__(
        self,
        setting: Setting,
        config: Path,
        device: str,
        clips: Clips,
        name: str = "torchserve",
        runtime: str = "",
    ) -> None:
        self.name, self.setting = name, setting
        # Inherited by the handler. No runtime: the one that it chooses.
        self._environment = {"AUDIOCNN_THREADS": str(setting.threads), openvino_graph.VARIABLE: runtime}
        properties = read_properties(config) | private_addresses()
        properties["models"] = json.dumps(entry(properties, setting))
        properties["number_of_gpu"] = "0" if device == "cpu" else "1"
        self._logs = tempfile.TemporaryDirectory(prefix="audiocnn-logs-", ignore_cleanup_errors=True)
        self._server = TorchServe(properties, log_folder=Path(self._logs.name))
        self.inference = self._server.inference
        url = f"{self.inference}/predictions/{MODEL}"
        self.target = Target(url, clips.bodies, clips.expected, load.OCTETS)

    def start(self) -> None:
        """See `System`."""
        before = dict(os.environ)
        os.environ.update(self._environment)
        try:
            self._server.start()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def wait_ready(self) -> None:
        """See `System`."""
        self._server.wait_ready(READY_SECONDS)
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            (model,) = requests.get(f"{self._server.management}/models/{MODEL}", timeout=10).json()
            if sum(w["status"] == "READY" for w in model["workers"]) == self.setting.workers:
                return
            time.sleep(0.2)
        raise TimeoutError(f"{self.name} {self.setting}: not all workers became ready")

    def processes(self) -> dict[str, list[psutil.Process]]:
        """See `System`."""
        folder = str(Path(self._logs.name).resolve())
        ours = [p for p in psutil.Process().children() if p.environ().get("LOG_LOCATION") == folder]
        family = [each for first in ours for each in (first, *first.children(recursive=True))]
        java = [each for each in family if role(each) == "java"]
        return {"java": java, "worker": [each for each in family if each not in java]}

    def stop(self) -> None:
        """See `System`."""
        self._server.stop()
        self._logs.cleanup()


class GatewaySystem(_Server):
    """The gateway in front of a TorchServe that runs already, asked with forms or with raw bodies."""

    def __init__(self, torchserve: TorchServeSystem, clips: Clips, *, is_form: bool) -> None:
        self.name = "gateway, form" if is_form else "gateway, raw"
        self.setting = torchserve.setting
        self._torchserve = torchserve
        self._gateway = GatewayServer(TORCHSERVE_URL=torchserve.inference)
        bodies = [load.as_form(body) for body in clips.bodies] if is_form else clips.bodies
        headers = load.FORM if is_form else load.OCTETS
        self.target = Target(f"{self._gateway.url}/predict", bodies, clips.expected, headers)

    def start(self) -> None:
        """See `System`."""
        self._gateway.start()

    def wait_ready(self) -> None:
        """See `System`."""
        self._gateway.wait_ready()

    def processes(self) -> dict[str, list[psutil.Process]]:
        """See `System`."""
        return {**self._torchserve.processes(), "gateway": [self._gateway.process]}

    def stop(self) -> None:
        """See `System`."""
        self._gateway.stop()


class BaselineServer(_Server):
    """A server of `benchmarks.baselines`."""

    def __init__(self, kind: str, setting: Setting, model: Path, device: str, clips: Clips) -> None:
        self.name, self.setting = kind, setting
        port, bodies, headers = new_port(), clips.bodies, load.OCTETS
        if kind == "baseline":
            bodies, headers = [_as_json(body) for body in bodies], load.JSON
        url = f"http://127.0.0.1:{port}{baselines.PATHS[kind]}"
        self.target = Target(url, bodies, clips.expected, headers)
        self._folder = tempfile.TemporaryDirectory(prefix="audiocnn-baseline-", ignore_cleanup_errors=True)
        self._log, self._ready = Path(self._folder.name, "log"), Path(self._folder.name, "ready")
        self._command = [sys.executable, "-m", "benchmarks.baselines", kind, "--port", str(port)]
        self._command += ["--model", str(model), "--device", device, "--ready-folder", str(self._ready)]
        for name in ("workers", "threads", "batch", "delay"):
            self._command += [f"--{name}", str(getattr(setting, name))]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """See `System`."""
        environment = dict(os.environ)
        if self.name == "baseline":  # runs with PyTorch's default number of threads
            for variable in THREAD_VARIABLES:
                environment.pop(variable, None)
        self._ready.mkdir()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait_ready(self) -> None:
        """See `System`."""
        assert self.process is not None
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            if len(list(self._ready.iterdir())) >= self.setting.workers and self._is_answering():
                return
            time.sleep(0.1)
        end = self._log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{self.name} {self.setting} did not become ready:\n{end}")

    def _is_answering(self) -> bool:
        with requests.Session() as session:
            session.trust_env = False  # no proxy for loopback
            body, headers = self.target.bodies[0], dict(self.target.headers)
            try:
                return session.post(self.target.url, data=body, headers=headers, timeout=30).ok
            except requests.RequestException:
                return False

    def processes(self) -> dict[str, list[psutil.Process]]:
        """See `System`."""
        assert self.process is not None
        server = psutil.Process(self.process.pid)
        return {"server": [server, *server.children(recursive=True)]}

    def stop(self) -> None:
        """See `System`."""
        if self.process is not None:
            _end(self.process)
            self.process = None
        self._folder.cleanup()


class BaselineWithoutMaps(_Server):
    """The running baseline, asked for predictions only."""

    def __init__(self, baseline: BaselineServer) -> None:
        self.name, self.setting = "baseline without maps", baseline.setting
        self._baseline = baseline
        target = baseline.target
        url = target.url.replace(baselines.PATHS["baseline"], baselines.WITHOUT_MAPS)
        self.target = Target(url, target.bodies, target.expected, target.headers)

    def start(self) -> None:
        """Nothing to do: `BaselineServer` owns the process."""

    wait_ready = stop = start

    def processes(self) -> dict[str, list[psutil.Process]]:
        """See `System`."""
        return self._baseline.processes()


def _as_json(body: bytes) -> bytes:
    return json.dumps({"audio_data": base64.b64encode(body).decode()}).encode()


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL to the rest of its session."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

"""What `benchmarks.serving` compares: the bare engine, our TorchServe, and `benchmarks.baselines`.

A system starts without waiting, becomes ready, is measured any number of times, and stops.
"""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from audiocnn.classifier import Classifier
from audiocnn.model import openvino_graph
from audiocnn.torchserve.management_api import Management
from audiocnn.torchserve.properties import read_properties
from audiocnn.torchserve.server import MODEL, TorchServe
from audiocnn.torchserve.tune import Setting, entry
from benchmarks import baselines, load
from benchmarks.corpus import Clips
from benchmarks.load import LoadResult, Sample, Target
from benchmarks.server_fixture import role
from benchmarks.server_process import GatewayServer, ServerProcess, new_port, private_addresses

READY_SECONDS = 180.0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class BareEngine:
    """The classifier without a server: processes that turn bytes into JSON without a pause."""

    def __init__(self, setting: Setting, model: Path, device: str, clips: Clips, name: str = "bare") -> None:
        self.name, self.setting, self.server = name, setting, self
        self._arguments = (model, device, setting.threads, setting.batch, clips)
        self._workers: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []

    def start(self) -> None:
        """Start them; returns at once."""
        context = multiprocessing.get_context("spawn")
        for _ in range(self.setting.workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_bare_worker, args=(theirs, *self._arguments), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))

    def wait_ready(self) -> None:
        """Wait for all workers; raises `TimeoutError` or `RuntimeError` if they do not become ready."""
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
        """What computes, by role."""
        return {"engine": [psutil.Process(process.pid) for process, _ in self._workers]}

    def stop(self) -> None:
        """End all of them; does nothing if there are none."""
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


class TorchServeServer:
    """TorchServe with our handler, as config.properties has it but for the setting and the ports."""

    def __init__(self, setting: Setting, config: Path, device: str, runtime: str) -> None:
        properties = read_properties(config) | private_addresses()
        properties["models"] = json.dumps(entry(properties, setting))
        properties["number_of_gpu"] = "0" if device == "cpu" else "1"
        # For the handler. No runtime: the one that it chooses.
        environment = {"AUDIOCNN_THREADS": str(setting.threads), openvino_graph.VARIABLE: runtime}
        self._logs = tempfile.TemporaryDirectory(prefix="audiocnn-logs-", ignore_cleanup_errors=True)
        self._server = TorchServe(properties, log_folder=Path(self._logs.name), environment=environment)
        self.inference = self._server.inference

    def start(self) -> None:
        """Start them; returns at once."""
        self._server.start()

    def wait_ready(self) -> None:
        """Wait for all workers; raises `TimeoutError` or `RuntimeError` if they do not become ready."""
        self._server.wait_ready(READY_SECONDS)
        with closing(Management(self._server.management)) as management:
            management.wait_ready(management.default().name, timeout_seconds=READY_SECONDS)

    def processes(self) -> dict[str, list[psutil.Process]]:
        """What computes, by role."""
        folder = str(Path(self._logs.name).resolve())
        ours = [p for p in psutil.Process().children() if p.environ().get("LOG_LOCATION") == folder]
        family = [each for first in ours for each in (first, *first.children(recursive=True))]
        java = [each for each in family if role(each) == "java"]
        return {"java": java, "worker": [each for each in family if each not in java]}

    def stop(self) -> None:
        """End all of them; does nothing if there are none."""
        self._server.stop()
        self._logs.cleanup()


Server = ServerProcess | TorchServeServer | BareEngine


@dataclass(frozen=True)
class HttpSystem:
    """A system that is measured over HTTP; `behind` are servers that its own asks."""

    name: str
    setting: Setting
    server: Server
    target: Target
    behind: Sequence[Server] = ()

    def closed(self, concurrency: int, seconds: float) -> LoadResult:
        """A closed loop of `concurrency` clients."""
        return load.closed_loop(self.target, concurrency, seconds)

    def processes(self) -> dict[str, list[psutil.Process]]:
        """What computes, by role."""
        return {role: own for one in (*self.behind, self.server) for role, own in one.processes().items()}


System = HttpSystem | BareEngine


def torchserve(
    setting: Setting, config: Path, device: str, clips: Clips, name: str = "torchserve", runtime: str = ""
) -> HttpSystem:
    """TorchServe, asked with raw bodies. No `runtime`: the one that the handler chooses."""
    server = TorchServeServer(setting, config, device, runtime)
    url = f"{server.inference}/predictions/{MODEL}"
    return HttpSystem(name, setting, server, Target(url, clips.bodies, clips.expected, load.OCTETS))


def gateway(torchserve: HttpSystem, clips: Clips, *, is_form: bool) -> HttpSystem:
    """The gateway in front of a TorchServe that runs already, asked with forms or with raw bodies."""
    assert isinstance(torchserve.server, TorchServeServer)
    server = GatewayServer({"TORCHSERVE_URL": torchserve.server.inference})
    bodies = [load.as_form(body) for body in clips.bodies] if is_form else clips.bodies
    headers = load.FORM if is_form else load.OCTETS
    target = Target(f"{server.url}/predict", bodies, clips.expected, headers)
    name = "gateway, form" if is_form else "gateway, raw"
    return HttpSystem(name, torchserve.setting, server, target, behind=[torchserve.server])


class BaselineServer(ServerProcess):
    """A server of `benchmarks.baselines`, whose workers report that they are ready."""

    def __init__(self, kind: str, setting: Setting, model: Path, device: str) -> None:
        port = new_port()
        command = [sys.executable, "-m", "benchmarks.baselines", kind, "--port", str(port)]
        command += ["--model", str(model), "--device", device]
        for name in ("workers", "threads", "batch", "delay"):
            command += [f"--{name}", str(getattr(setting, name))]
        # `baseline` runs with PyTorch's default number of threads.
        left_out = THREAD_VARIABLES if kind == "baseline" else ()
        environment = {name: value for name, value in os.environ.items() if name not in left_out}
        super().__init__("server", port, command, environment, ready_path="/")
        self._ready, self._workers = self._log.with_name("ready"), setting.workers
        self._command = [*command, "--ready-folder", str(self._ready)]
        self._ready.mkdir()

    def is_ready(self) -> bool:
        """Whether all workers are, and the server answers."""
        return len(list(self._ready.iterdir())) >= self._workers and super().is_ready()


def baseline(kind: str, setting: Setting, model: Path, device: str, clips: Clips) -> HttpSystem:
    """A server of `benchmarks.baselines`, asked as its clients do."""
    server, bodies, headers = BaselineServer(kind, setting, model, device), clips.bodies, load.OCTETS
    if kind == "baseline":
        bodies = [json.dumps({"audio_data": base64.b64encode(body).decode()}).encode() for body in bodies]
        headers = load.JSON
    target = Target(server.url + baselines.PATHS[kind], bodies, clips.expected, headers)
    return HttpSystem(kind, setting, server, target)


def without_maps(baseline: HttpSystem) -> HttpSystem:
    """The running baseline, asked for predictions only."""
    url = baseline.target.url.replace(baselines.PATHS["baseline"], baselines.WITHOUT_MAPS)
    return replace(baseline, name="baseline without maps", target=replace(baseline.target, url=url))

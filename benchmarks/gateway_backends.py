"""Start-up, memory and clips a second of the gateway with TorchServe and with a server of the Open Inference
Protocol. Part of `benchmarks.gateway`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psutil
import requests

from audiocnn.audio import synthetic
from benchmarks import load
from benchmarks.load import FORM, Target, as_form
from benchmarks.ports import new_port
from benchmarks.server_fixture import ServerFixture
from benchmarks.server_process import GatewayServer, ServerProcess

_START_SECONDS = 180.0


@dataclass(frozen=True)
class Stack:
    """A gateway with its model server, up."""

    gateway: str
    start_seconds: float  # from the start of the processes to the first right answer
    processes: Sequence[psutil.Process]  # without their children

    def memory_mb(self) -> float:
        """Proportional set size of all processes."""
        children = [child for each in self.processes for child in each.children(recursive=True)]
        found = {each.pid: each for each in (*self.processes, *children)}
        return sum(each.memory_full_info().pss for each in found.values()) / 1e6

    def target(self, expected: Sequence[str]) -> Target:
        """The synthetic sounds as forms."""
        forms = [as_form(synthetic.wav(name)) for name in synthetic.SOUNDS]
        return Target(f"{self.gateway}/predict", forms, expected, FORM)


def wait_for_answer(gateway: str, expected: str, began: float) -> float:
    """Seconds since `began` until a sound has the right answer; raises `RuntimeError` if it gets none."""
    form = as_form(synthetic.wav(next(iter(synthetic.SOUNDS))))
    while time.perf_counter() - began < _START_SECONDS:
        try:
            if requests.get(f"{gateway}/ready", timeout=60).ok:
                reply = requests.post(f"{gateway}/predict", data=form, headers=FORM, timeout=60)
                if load.top_class(reply.content) == expected:
                    return time.perf_counter() - began
        except requests.ConnectionError:
            pass  # it does not listen yet
        time.sleep(0.05)
    raise RuntimeError(f"no right answer from {gateway} in {_START_SECONDS:.0f} s")


@contextlib.contextmanager
def torchserve_stack(server: ServerFixture, expected: str) -> Iterator[Stack]:
    """The supervisor with Java, workers and gateway."""
    began = time.perf_counter()
    with server:
        seconds = wait_for_answer(server.gateway, expected, began)
        yield Stack(server.gateway, seconds, [server.processes()["supervisor"]])


@contextlib.contextmanager
def v2_stack(command: str, model: str, expected: str) -> Iterator[Stack]:
    """The server that `command` starts on the port `{port}`, and a gateway with `BACKEND=v2`."""
    port = new_port()
    words = shlex.split(command.format(port=port))
    server = ServerProcess("v2", port, words, os.environ)
    gateway = GatewayServer({"BACKEND": "v2", "V2_URL": server.url, "V2_MODEL": model})
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        for each in (server, gateway):
            stack.callback(each.stop)
            each.start()
        seconds = wait_for_answer(gateway.url, expected, began)
        yield Stack(gateway.url, seconds, [server.process, gateway.process])


def compare(
    stacks: dict[str, Stack], expected: Sequence[str], seconds: float, rounds: int, concurrency: Sequence[int]
) -> dict[str, dict[str, float]]:
    """A row for each stack: medians of interleaved rounds in clips a second, then memory."""
    rows: dict[str, dict[str, float]] = {
        name: {"start_seconds": s.start_seconds} for name, s in stacks.items()
    }
    targets = {name: stack.target(expected) for name, stack in stacks.items()}
    for count in concurrency:
        for name, measured in load.interleaved(targets, count, seconds, rounds).items():
            median = statistics.median(each.clips_per_second for each in measured)
            rows[name][f"clips_per_second_{count}"] = median
    for name, stack in stacks.items():
        rows[name]["memory_mb"] = stack.memory_mb()
    return rows

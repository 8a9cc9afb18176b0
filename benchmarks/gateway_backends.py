"""Start-up, memory and clips a second of the gateway with TorchServe and with a server of the Open Inference
Protocol. Part of `benchmarks.gateway`.
"""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import requests

from audiocnn.audio import synthetic
from audiocnn.torchserve.ports import free_port
from benchmarks import load
from benchmarks.load import FORM, Target, as_form
from benchmarks.server_fixture import ServerFixture

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


@contextmanager
def torchserve_stack(server: ServerFixture, expected: str) -> Iterator[Stack]:
    """The supervisor with Java, workers and gateway."""
    began = time.perf_counter()
    with server:
        seconds = wait_for_answer(server.gateway, expected, began)
        yield Stack(server.gateway, seconds, [server.processes()["supervisor"]])


@contextmanager
def v2_stack(command: str, model: str, expected: str) -> Iterator[Stack]:
    """The server that `command` starts on the port `{port}`, and a gateway with `BACKEND=v2`."""
    port, own = free_port(), free_port()
    settings = {
        "BACKEND": "v2",
        "V2_URL": f"http://127.0.0.1:{port}",
        "V2_MODEL": model,
        "GATEWAY_PORT": str(own),
    }
    commands = [shlex.split(command.format(port=port)), [sys.executable, "-m", "audiocnn", "gateway"]]
    began = time.perf_counter()
    running = [
        subprocess.Popen(
            each, env=os.environ | settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for each in commands
    ]
    try:
        gateway = f"http://127.0.0.1:{own}"
        seconds = wait_for_answer(gateway, expected, began)
        yield Stack(gateway, seconds, [psutil.Process(process.pid) for process in running])
    finally:
        for process in running:
            process.terminate()
            process.wait(60)


def compare(
    stacks: dict[str, Stack], expected: Sequence[str], seconds: float, rounds: int, concurrency: Sequence[int]
) -> dict[str, dict[str, float]]:
    """A row for each stack: medians of interleaved rounds in clips a second, then memory."""
    rows: dict[str, dict[str, float]] = {
        name: {"start_seconds": s.start_seconds} for name, s in stacks.items()
    }
    for count in concurrency:
        rates: dict[str, list[float]] = {name: [] for name in stacks}
        for number in range(rounds):
            for name in list(stacks)[:: 1 if number % 2 else -1]:
                measured = load.closed_loop(stacks[name].target(expected), count, seconds)
                rates[name].append(measured.clips_per_second)
        for name, values in rates.items():
            rows[name][f"clips_per_second_{count}"] = statistics.median(values)
    for name, stack in stacks.items():
        rows[name]["memory_mb"] = stack.memory_mb()
    return rows

"""The cost of the gateway: `python -m benchmarks.gateway`.

Starts `audiocnn serve --gateway` and sends the same clips to TorchServe and to the gateway, in interleaved
rounds on the same cores; ratios are taken within a round, and their median counts. Then the size and latency
of replies: `/inference` with everything as numbers, feature maps as pictures, and predictions only.

With `--v2-server MODEL=COMMAND` (several are possible) backends are compared instead, in one run: TorchServe,
and servers of the Open Inference Protocol, which the command starts on the port `{port}`.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

from audiocnn import command
from audiocnn.audio import synthetic
from audiocnn.classifier import Classifier
from benchmarks import load
from benchmarks.command import print_rows
from benchmarks.load import FORM, Target, as_form
from benchmarks.server_fixture import ServerFixture, tuned_server
from benchmarks.server_process import GatewayServer, ServerProcess, new_port

CONCURRENCY = (1, 16)
_START_SECONDS = 180.0


def targets(server: ServerFixture) -> dict[str, Target]:
    """TorchServe and the gateway with the same clips and expected classes."""
    clips = [synthetic.wav(name) for name in synthetic.SOUNDS]
    url = f"{server.inference}/predictions/audiocnn"
    expected = [requests.post(url, data=c, timeout=60).json()["predictions"][0]["class"] for c in clips]
    forms = [as_form(clip) for clip in clips]
    return {
        "torchserve": Target(url, clips, expected, load.OCTETS),
        "gateway": Target(f"{server.gateway}/predict", forms, expected, FORM),
    }


def overhead(targets: dict[str, Target], concurrency: int, seconds: float, rounds: int) -> dict[str, float]:
    """Medians of clips a second and p50, and of the ratios and differences within a round."""
    results = load.interleaved(targets, concurrency, seconds, rounds)
    rates = {name: [each.clips_per_second for each in own] for name, own in results.items()}
    waits = {
        name: [load.percentiles(each.samples)["p50_ms"] or float("nan") for each in own]
        for name, own in results.items()
    }
    ratios = [a / b for a, b in zip(rates["gateway"], rates["torchserve"], strict=True)]
    extra = [a - b for a, b in zip(waits["gateway"], waits["torchserve"], strict=True)]
    return {
        **{f"{name}_clips_per_second": statistics.median(values) for name, values in rates.items()},
        **{f"{name}_p50_ms": statistics.median(values) for name, values in waits.items()},
        "throughput_ratio": statistics.median(ratios),
        "extra_p50_ms": statistics.median(extra),
    }


def replies(gateway: str, repeats: int) -> dict[str, dict[str, float]]:
    """Bytes and median milliseconds of three kinds of reply, in interleaved rounds."""
    clip = synthetic.wav("rain")
    json_body = json.dumps({"audio_data": base64.b64encode(clip).decode()}).encode()
    kinds = {
        "inference (seeds' reply)": ("/inference", json_body, load.JSON),
        "feature_maps=png": ("/predict", as_form(clip, feature_maps="png"), FORM),
        "reduce_payload": ("/predict", as_form(clip, reduce_payload="true"), FORM),
    }
    sizes: dict[str, int] = {}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    with requests.Session() as session:
        for _ in range(repeats + 1):
            for name, (path, body, headers) in kinds.items():
                began = time.perf_counter()
                reply = session.post(gateway + path, data=body, headers=headers, timeout=60)
                times[name].append(1000 * (time.perf_counter() - began))
                reply.raise_for_status()
                sizes[name] = len(reply.content)
    return {name: {"bytes": sizes[name], "p50_ms": statistics.median(times[name][1:])} for name in kinds}


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
    stacks: dict[str, Stack], expected: Sequence[str], seconds: float, rounds: int
) -> dict[str, dict[str, float]]:
    """A row for each stack: medians of interleaved rounds in clips a second, then memory."""
    rows: dict[str, dict[str, float]] = {
        name: {"start_seconds": s.start_seconds} for name, s in stacks.items()
    }
    targets = {name: stack.target(expected) for name, stack in stacks.items()}
    for count in CONCURRENCY:
        for name, measured in load.interleaved(targets, count, seconds, rounds).items():
            median = statistics.median(each.clips_per_second for each in measured)
            rows[name][f"clips_per_second_{count}"] = median
    for name, stack in stacks.items():
        rows[name]["memory_mb"] = stack.memory_mb()
    return rows


def compare_with_torchserve(args: argparse.Namespace) -> dict[str, Any]:
    """Print what the gateway costs; returns it for the JSON."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tuned_server(Path(folder)) as server,
    ):
        both = targets(server)
        costs = {str(count): overhead(both, count, args.seconds, args.rounds) for count in CONCURRENCY}
        sizes = replies(server.gateway, repeats=20)
    print_rows(costs, "clients")
    print_rows(sizes, "reply")
    return {"overhead": costs, "replies": sizes}


def compare_backends(args: argparse.Namespace) -> dict[str, Any]:
    """Print what each backend takes; returns it for the JSON."""
    classifier = Classifier.load()
    expected = [classifier.predict(synthetic.wav(name)).label for name in synthetic.SOUNDS]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        server = tuned_server(Path(folder))
        stacks = {"torchserve": stack.enter_context(torchserve_stack(server, expected[0]))}
        for each in args.v2_server:
            model, _, command = each.partition("=")
            stacks[model] = stack.enter_context(v2_stack(command, model, expected[0]))
        rows = compare(stacks, expected, args.seconds, args.rounds)
    print_rows(rows, "backend")
    return {"backends": rows}


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seconds", type=command.positive, default=5.0, help="of one measurement (%(default)s)"
    )
    parser.add_argument("--rounds", type=command.count, default=3, help="interleaved rounds (%(default)s)")
    parser.add_argument(
        "--v2-server", action="append", metavar="MODEL=COMMAND", help="compare backends instead"
    )


@command.entry_point(_options, "--seconds 2 --rounds 5")
def main(args: argparse.Namespace) -> None:
    """Print the tables, then one line of JSON."""
    result = {"benchmark": "gateway", "seconds": args.seconds, "rounds": args.rounds}
    result |= compare_backends(args) if args.v2_server else compare_with_torchserve(args)
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())

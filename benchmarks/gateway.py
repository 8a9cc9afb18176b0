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
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import requests

from audiocnn import command
from audiocnn.audio import synthetic
from audiocnn.classifier import Classifier
from audiocnn.torchserve.properties import read_properties
from audiocnn.torchserve.tune import entry, rule_of_thumb
from benchmarks import load
from benchmarks.command import CONFIG, print_rows
from benchmarks.gateway_backends import compare, torchserve_stack, v2_stack
from benchmarks.load import FORM, Target, as_form
from benchmarks.server_fixture import ServerFixture

CONCURRENCY = (1, 16)


def tuned_server(folder: Path) -> ServerFixture:
    """The whole server with the usual setting for the throughput of this machine."""
    setting = rule_of_thumb(os.cpu_count() or 1, 0, "throughput")
    models = json.dumps(entry(read_properties(CONFIG), setting))
    environment = {"AUDIOCNN_THREADS": str(setting.threads)}
    return ServerFixture(folder / "server", settings={"models": models}, environment=environment)


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
        rows = compare(stacks, expected, args.seconds, args.rounds, CONCURRENCY)
    print_rows(rows, "backend")
    return {"backends": rows}


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (%(default)s)")
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

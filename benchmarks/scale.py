"""Pods, network and money for so many clips a second: `python -m benchmarks.scale`.

Measures what a clip costs: TorchServe and the gateway as in a pod, under load that saturates this machine,
and the processor time of every process in it. The load client runs here too; its time is measured and left
out. From that follow pods and prices. `--measured FILE` calculates again from the JSON of an earlier run,
with other prices.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import requests
from rich.console import Console
from rich.table import Table

from audiocnn.torchserve.properties import read_properties
from audiocnn.torchserve.tune import rule_of_thumb, running
from benchmarks import load
from benchmarks.gateway import gateway_before, targets

RATES = (10, 100, 1_000, 10_000, 100_000)
MIB = 1 << 20
_SECONDS_A_MONTH = 30 * 24 * 3600


@dataclass(frozen=True)
class Assumptions:
    """What is not measured. Prices are yours to fill in; the defaults are of the usual size."""

    pod_vcpus: float = 2.0
    pod_gib: float = 2.5
    utilisation: float = 0.5  # of a pod at the planned rate: the rest is for peaks and lost pods
    vcpu_hour: float = 0.04  # any currency
    gib_hour: float = 0.005


def processor_seconds(gateway: int) -> dict[str, float]:
    """Processor time so far of each part: this process is the load client, all others are its children."""
    spent = dict.fromkeys(("gateway", "java", "workers", "client"), 0.0)
    for process in psutil.Process().children(recursive=True):
        if part := _part(process, gateway):
            times = process.cpu_times()
            spent[part] += times.user + times.system
    spent["client"] = sum(os.times()[:2])
    return spent


def memory_mib(gateway: int) -> dict[str, float]:
    """Memory of each part that no other process shares with it, MiB."""
    held: dict[str, float] = {}
    for process in psutil.Process().children(recursive=True):
        if part := _part(process, gateway):
            held[part] = held.get(part, 0.0) + process.memory_full_info().uss / MIB
    return held


def _part(process: psutil.Process, gateway: int) -> str:
    if process.pid == gateway:
        return "gateway"
    if process.name() == "java":
        return "java"
    return "workers" if "model_service_worker" in " ".join(process.cmdline()) else ""


def measure(seconds: float, rounds: int, clients: int) -> dict[str, Any]:
    """What a clip costs through the gateway: medians over the rounds."""
    cores = os.cpu_count() or 1
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        running(
            read_properties(Path("config.properties")), rule_of_thumb(cores, 0, "throughput"), Path(folder)
        ) as server,
        gateway_before(server.inference) as (url, gateway),
    ):
        ready = time.monotonic() - began
        target = targets(server.inference, url)["gateway"]
        load.closed_loop(target, clients, seconds)  # Java compiles
        found = [_round(target, gateway, clients, seconds) for _ in range(rounds)]
        memory = memory_mib(gateway)
        reply = requests.post(target.url, data=target.bodies[0], headers=target.headers, timeout=60)
        metrics = (f"{server.properties['metrics_address']}/metrics", f"{url}/metrics")
        series = sum(_series(requests.get(address, timeout=60).text) for address in metrics)
    middle = {key: statistics.median(row[key] for row in found) for key in found[0]}
    return {
        "machine": f"{cores} cores, {_processor()}",
        "cores": cores,
        "clients": clients,
        "clips_per_second_with_client": middle.pop("rate"),
        "cpu_ms": middle,
        "request_bytes": round(statistics.mean(map(len, target.bodies))),
        "reply_bytes": len(reply.content),
        "series": series,
        "memory_mib": memory,
        "archive_mb": Path("model_store/audiocnn.mar").stat().st_size / 1e6,
        "seconds_to_ready": ready,
    }


def _series(metrics: str) -> int:
    return sum(1 for line in metrics.splitlines() if line and not line.startswith("#"))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _round(target: load.Target, gateway: int, clients: int, seconds: float) -> dict[str, float]:
    before = processor_seconds(gateway)
    measured = load.closed_loop(target, clients, seconds, warm_up=0.0)
    after = processor_seconds(gateway)
    answered = len(measured.samples)
    wrong = answered - sum(sample.is_right for sample in measured.samples)
    if wrong:
        raise RuntimeError(f"{wrong} of {answered} answers were wrong: nothing is measured")
    spent = {name: 1000 * (after[name] - before[name]) / answered for name in after}
    return spent | {"rate": measured.clips_per_second}


def pod_rate(measured: Mapping[str, Any], given: Assumptions) -> float:
    """Clips a second of one pod that is used as planned."""
    cpu_ms: float = sum(value for name, value in measured["cpu_ms"].items() if name != "client")
    return 1000 * given.pod_vcpus * given.utilisation / cpu_ms


def pod_price(given: Assumptions) -> float:
    """What one pod costs an hour."""
    return given.pod_vcpus * given.vcpu_hour + given.pod_gib * given.gib_hour


def plan(measured: Mapping[str, Any], given: Assumptions, rate: float) -> dict[str, float]:
    """For so many clips a second, day and night: at least two pods, so that one may fail."""
    pods = max(2, math.ceil(rate / pod_rate(measured, given)))
    return {
        "clips_per_second": rate,
        "pods": pods,
        "vcpus": pods * given.pod_vcpus,
        "gbit_per_second": rate * 8 * (measured["request_bytes"] + measured["reply_bytes"]) / 1e9,
        "million_clips_a_month": rate * _SECONDS_A_MONTH / 1e6,
        "price_an_hour": pods * pod_price(given),
        "price_a_million_clips": pods * pod_price(given) / (rate * 3600) * 1e6,
    }


def show(measured: Mapping[str, Any], given: Assumptions, rows: list[dict[str, float]]) -> None:
    """Both tables, for people."""
    console = Console(stderr=True)
    parts = Table("part", "ms of a core a clip", "memory, MiB", title=measured["machine"])
    for name, value in measured["cpu_ms"].items():
        held = measured["memory_mib"].get(name)
        parts.add_row(name, f"{value:.2f}", f"{held:.0f}" if held else "")
    console.print(parts)
    rate = measured["clips_per_second_with_client"]
    console.print(f"{rate:.0f} clips/s on all cores, the client beside it; {asdict(given)}")
    console.print(f"a pod: {pod_rate(measured, given):.0f} clips/s, {pod_price(given):.4f} an hour")
    table = Table("clips/s", "pods", "vCPU", "Gbit/s", "million clips a month", "an hour", "a million clips")
    for row in rows:
        table.add_row(*(f"{value:,.2f}" if value % 1 else f"{value:,.0f}" for value in row.values()))
    console.print(table)


def main() -> int:
    """Entry point."""
    default = Assumptions()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.split("\n\n")[0])
    parser.add_argument("--measured", type=Path, help="the JSON of an earlier run: measure nothing")
    parser.add_argument("--seconds", type=float, default=10.0, help="of one round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="at once (%(default)s)")
    parser.add_argument("--clips-per-second", type=float, nargs="+", default=RATES, metavar="N")
    for name, value in asdict(default).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value, help="(%(default)s)")
    args = parser.parse_args()
    given = Assumptions(**{name: getattr(args, name) for name in asdict(default)})
    if args.measured:
        measured = json.loads(args.measured.read_text(encoding="utf-8").splitlines()[-1])["measured"]
    else:
        measured = measure(args.seconds, args.rounds, args.clients)
    rows = [plan(measured, given, rate) for rate in args.clips_per_second]
    show(measured, given, rows)
    result = {"benchmark": "scale", "measured": measured, "assumed": asdict(given), "plan": rows}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the gateway costs: `python -m benchmarks.gateway`.

Starts TorchServe as it is configured, and a gateway in front of it, and asks both in turn with the same
clips: rounds are interleaved, ratios are taken within a round, the median of them counts. Then the price of
a reply: that of `/inference`, which sends everything as numbers, beside pictures and bare predictions.

The bytes go through one more process, which parses the form and writes them again, on the same cores.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import requests
from rich.console import Console
from rich.table import Table

from audiocnn.audio import synthetic
from audiocnn.torchserve.properties import read_properties
from audiocnn.torchserve.tune import Setting, rule_of_thumb, running
from benchmarks import load
from benchmarks.load import Target
from benchmarks.systems import new_port

CONCURRENCY = (1, 16)
_BOUNDARY = "benchmark"
_READY_SECONDS = 30.0


def as_form(clip: bytes, **options: str) -> bytes:
    """A multipart body with the clip in the field `file`."""
    fields = "".join(
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in options.items()
    )
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="clip.wav"\r\n\r\n'
    return fields.encode() + head.encode() + clip + f"\r\n--{_BOUNDARY}--\r\n".encode()


FORM = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}


@contextlib.contextmanager
def gateway_before(torchserve: str, **settings: str) -> Iterator[tuple[str, int]]:
    """Address and process id of a gateway on a port of its own, up, and stopped afterwards."""
    port = new_port()
    values = {"TORCHSERVE_URL": torchserve, "GATEWAY_PORT": str(port)} | settings
    process = subprocess.Popen(
        [sys.executable, "-m", "audiocnn", "gateway"],
        env=os.environ | values,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{url}/ready", timeout=10).ok:
                    break
            time.sleep(0.1)
        else:
            raise TimeoutError("the gateway did not start")
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(timeout=30)


def targets(torchserve: str, gateway: str) -> dict[str, Target]:
    """The same clips for both, and the class that both must name."""
    clips = [synthetic.wav(name) for name in synthetic.SOUNDS]
    url = f"{torchserve}/predictions/audiocnn"
    expected = [requests.post(url, data=c, timeout=60).json()["predictions"][0]["class"] for c in clips]
    return {
        "torchserve": Target(url, clips, expected, load.OCTETS),
        "gateway": Target(f"{gateway}/predict", [as_form(clip) for clip in clips], expected, FORM),
    }


def overhead(both: dict[str, Target], seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """For each concurrency: medians of clips a second and p50, and of the ratios within a round."""
    results: dict[str, dict[str, float]] = {}
    for concurrency in CONCURRENCY:
        rates: dict[str, list[float]] = {name: [] for name in both}
        waits: dict[str, list[float]] = {name: [] for name in both}
        for number in range(rounds):
            for name in list(both)[:: 1 if number % 2 else -1]:  # neither is always the first
                measured = load.closed_loop(both[name], concurrency, seconds)
                rates[name].append(measured.clips_per_second)
                waits[name].append(load.percentiles(measured.samples)["p50_ms"] or float("nan"))
        ratios = [a / b for a, b in zip(rates["gateway"], rates["torchserve"], strict=True)]
        extra = [a - b for a, b in zip(waits["gateway"], waits["torchserve"], strict=True)]
        results[str(concurrency)] = {
            **{f"{name}_clips_per_second": statistics.median(values) for name, values in rates.items()},
            **{f"{name}_p50_ms": statistics.median(values) for name, values in waits.items()},
            "throughput_ratio": statistics.median(ratios),
            "extra_p50_ms": statistics.median(extra),
        }
    return results


def replies(gateway: str, repeats: int) -> dict[str, dict[str, float]]:
    """Bytes and median milliseconds of the three ways to ask, in turn."""
    clip = synthetic.wav("rain")
    json_body = json.dumps({"audio_data": base64.b64encode(clip).decode()}).encode()
    ways = {
        "inference (seeds' reply)": ("/inference", json_body, load.JSON),
        "feature_maps=png": ("/predict", as_form(clip, feature_maps="png"), FORM),
        "reduce_payload": ("/predict", as_form(clip, reduce_payload="true"), FORM),
    }
    sizes: dict[str, int] = {}
    times: dict[str, list[float]] = {name: [] for name in ways}
    with requests.Session() as session:
        for _ in range(repeats + 1):
            for name, (path, body, headers) in ways.items():
                began = time.perf_counter()
                reply = session.post(gateway + path, data=body, headers=headers, timeout=60)
                times[name].append(1000 * (time.perf_counter() - began))
                reply.raise_for_status()
                sizes[name] = len(reply.content)
    return {name: {"bytes": sizes[name], "p50_ms": statistics.median(times[name][1:])} for name in ways}


def show(console: Console, results: dict[str, dict[str, float]], first: str) -> None:
    """A table with a row for each key."""
    columns = next(iter(results.values()))
    table = Table(first, *columns)
    for name, row in results.items():
        table.add_row(name, *(f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in row.values()))
    console.print(table)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    args = parser.parse_args()
    setting: Setting = rule_of_thumb(os.cpu_count() or 1, 0, "throughput")
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        running(read_properties(Path("config.properties")), setting, Path(folder)) as torchserve,
        gateway_before(torchserve.inference) as (gateway, _),
    ):
        both = targets(torchserve.inference, gateway)
        result = {
            "overhead": overhead(both, args.seconds, args.rounds),
            "replies": replies(gateway, repeats=20),
        }
    console = Console(stderr=True)
    show(console, result["overhead"], "clients")
    show(console, result["replies"], "reply")
    print(json.dumps({"benchmark": "gateway", "seconds": args.seconds, "rounds": args.rounds, **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Many live streams at once: `python -m benchmarks.streams [--streams 20] [--seconds 120]`.

Each plays a sound in real time over a WebSocket of its own, one hop a second. Printed are the lag (as the
gateway reports it, from the moment a hop was complete, and as a client sees it, from the moment the last
sample of the hop was due), the skipped hops, and the gateway's memory over time.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from audiocnn import command
from audiocnn.audio import synthetic
from audiocnn.audio.decoder import decode
from audiocnn.client.stream import stream
from benchmarks.command import print_rows
from benchmarks.server_fixture import tuned_server

RATE = 48_000  # a browser's: the gateway has to resample
_WARM_UP_SECONDS = 10.0  # buffers fill: memory counts after this


@dataclass
class StreamTotals:
    """Sums over all streams."""

    lags: list[float] = field(default_factory=list)  # seconds, as the gateway reports
    client_lags: list[float] = field(default_factory=list)  # seconds, as the client sees it
    hops: int = 0
    skipped: int = 0
    errors: int = 0
    right: int = 0
    memory: list[tuple[float, int]] = field(default_factory=list)  # seconds, bytes


@functools.cache
def pcm(name: str, seconds: float) -> bytes:
    """A synthetic sound, repeated, as the gateway takes it."""
    sound = decode(synthetic.wav(name), sample_rate=RATE).waveform
    return np.resize(sound, round(seconds * RATE)).astype("<f4").tobytes()


async def play_one(
    url: str, name: str, seconds: float, hop_seconds: float, totals: StreamTotals, *, delay: float
) -> None:
    """One stream, after `delay` seconds."""
    began, skipped = 0.0, 0

    def on_reply(reply: dict[str, Any]) -> None:
        nonlocal began, skipped
        skipped = reply.get("skipped", skipped)
        if reply["type"] == "ready":
            began = time.perf_counter()
        elif reply["type"] == "error":
            totals.errors += 1
        else:
            totals.lags.append(reply["lag_seconds"])
            totals.client_lags.append(time.perf_counter() - began - reply["hop"] * hop_seconds)
            totals.right += reply["predictions"][0]["class"] == name

    await asyncio.sleep(delay)
    await stream(pcm(name, seconds), sample_rate=RATE, hop_seconds=hop_seconds, url=url, on_reply=on_reply)
    totals.skipped += skipped
    totals.hops += int(seconds / hop_seconds)


async def watch(pid: int, totals: StreamTotals) -> None:
    """Record the gateway's memory every second, until cancelled."""
    process, began = psutil.Process(pid), time.perf_counter()
    while True:
        totals.memory.append((time.perf_counter() - began, process.memory_info().rss))
        await asyncio.sleep(1.0)


async def play(url: str, pid: int, count: int, seconds: float, hop_seconds: float) -> StreamTotals:
    """All streams at once."""
    totals = StreamTotals()
    watching = asyncio.create_task(watch(pid, totals))
    names = [list(synthetic.SOUNDS)[number % len(synthetic.SOUNDS)] for number in range(count)]
    delays = np.random.default_rng(0).uniform(0, hop_seconds, count)  # streams do not start at once
    await asyncio.gather(
        *(
            play_one(url, name, seconds, hop_seconds, totals, delay=float(delay))
            for name, delay in zip(names, delays, strict=True)
        )
    )
    watching.cancel()
    return totals


def summary(totals: StreamTotals) -> dict[str, float]:
    """The JSON line but for the conditions."""
    settled = [size / 2**20 for at, size in totals.memory if at >= _WARM_UP_SECONDS] or [0.0]
    tenth = max(1, len(settled) // 10)
    return {
        "hops": totals.hops,
        "answers": len(totals.lags),
        "skipped": totals.skipped,
        "errors": totals.errors,
        "right": totals.right,
        **{f"lag_p{p}_s": float(np.percentile(totals.lags, p)) for p in (50, 99)},
        "lag_max_s": max(totals.lags),
        **{f"client_p{p}_s": float(np.percentile(totals.client_lags, p)) for p in (50, 99)},
        "memory_first_mb": float(np.mean(settled[:tenth])),
        "memory_last_mb": float(np.mean(settled[-tenth:])),
        "memory_peak_mb": max(settled),
    }


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--streams", type=command.count, default=20, help="number of streams (%(default)s)")
    parser.add_argument(
        "--seconds", type=command.positive, default=120.0, help="of each stream (%(default)s)"
    )
    parser.add_argument(
        "--hop-seconds", type=command.positive, default=1.0, help="between two results (%(default)s)"
    )


@command.entry_point(_options, "--streams 50 --seconds 60")
def main(args: argparse.Namespace) -> int:
    """Exit code 1 if a lag reached 2 s."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tuned_server(Path(folder)) as server,
    ):
        url, pid = server.gateway.replace("http:", "ws:") + "/ws/predict", server.processes()["gateway"].pid
        totals = asyncio.run(play(url, pid, args.streams, args.seconds, args.hop_seconds))
    result = summary(totals)
    print_rows({f"{args.streams} streams": result}, "")
    conditions = {"streams": args.streams, "seconds": args.seconds, "hop_seconds": args.hop_seconds}
    print(json.dumps({"benchmark": "streams", **conditions, **result}))
    return int(result["lag_max_s"] >= 2)


if __name__ == "__main__":
    sys.exit(main())

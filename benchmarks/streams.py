"""Many live streams at once: `python -m benchmarks.streams [--streams 20] [--seconds 120]`.

Each plays a sound in real time over a WebSocket of its own, one hop a second. What is told: the lag (as the
gateway says it, from the moment a hop was complete, and as a client sees it, from the moment it sent the
hop's last sample), hops that were skipped, and the gateway's memory over time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from websockets.asyncio.client import ClientConnection, connect

from audiocnn.audio import synthetic
from audiocnn.audio.decoder import decode
from audiocnn.torchserve.properties import read_properties
from audiocnn.torchserve.tune import rule_of_thumb, running
from benchmarks.gateway import gateway_before

RATE = 48_000  # a browser's: the gateway has to resample
FRAME_SECONDS = 0.1
_WARM_UP_SECONDS = 10.0  # buffers fill with sound: memory counts from here


@dataclass
class Heard:
    """What all streams together got."""

    lags: list[float] = field(default_factory=list)  # seconds, as the gateway says
    round_trips: list[float] = field(default_factory=list)  # seconds, as the client sees it
    hops: int = 0
    skipped: int = 0
    errors: int = 0
    right: int = 0
    memory: list[tuple[float, int]] = field(default_factory=list)  # seconds, bytes


async def stream(
    url: str, name: str, seconds: float, hop_seconds: float, heard: Heard, *, delay: float
) -> None:
    """One stream: a synthetic sound, over and over, beginning `delay` seconds from now."""
    sound = decode(synthetic.wav(name), sample_rate=RATE).waveform
    size = round(FRAME_SECONDS * RATE)
    sent_at: dict[int, float] = {}  # by hop
    await asyncio.sleep(delay)
    async with connect(url, proxy=None, compression=None) as socket:
        await socket.send(json.dumps({"sample_rate": RATE, "hop_seconds": hop_seconds}))
        reading = asyncio.create_task(_read(socket, name, sent_at, heard))
        began = time.perf_counter()
        for number in range(round(seconds / FRAME_SECONDS)):
            await asyncio.sleep(max(0.0, began + (number + 1) * FRAME_SECONDS - time.perf_counter()))
            frame = np.take(sound, range(number * size, (number + 1) * size), mode="wrap")
            await socket.send(frame.astype("<f4").tobytes())
            sent_at.setdefault(int((number + 1) * FRAME_SECONDS / hop_seconds + 1e-9), time.perf_counter())
        await socket.send('{"end": true}')
        await reading
    heard.hops += int(seconds / hop_seconds)


async def _read(socket: ClientConnection, name: str, sent_at: dict[int, float], heard: Heard) -> None:
    skipped = 0
    async for text in socket:
        answer = json.loads(text)
        if answer["type"] == "ready":
            continue
        skipped = answer.get("skipped", skipped)
        if answer["type"] == "error":
            heard.errors += 1
            continue
        heard.lags.append(answer["lag_seconds"])
        if answer["hop"] in sent_at:
            heard.round_trips.append(time.perf_counter() - sent_at[answer["hop"]])
        heard.right += answer["predictions"][0]["class"] == name
    heard.skipped += skipped


async def watch(pid: int, heard: Heard) -> None:
    """The gateway's memory, every second."""
    process, began = psutil.Process(pid), time.perf_counter()
    while True:
        heard.memory.append((time.perf_counter() - began, process.memory_info().rss))
        await asyncio.sleep(1.0)


async def play(url: str, pid: int, count: int, seconds: float, hop_seconds: float) -> Heard:
    """All streams at once."""
    heard = Heard()
    watching = asyncio.create_task(watch(pid, heard))
    names = [list(synthetic.SOUNDS)[number % len(synthetic.SOUNDS)] for number in range(count)]
    delays = np.random.default_rng(0).uniform(0, hop_seconds, count)  # people do not start at once
    await asyncio.gather(
        *(
            stream(url, name, seconds, hop_seconds, heard, delay=float(delay))
            for name, delay in zip(names, delays, strict=True)
        )
    )
    watching.cancel()
    return heard


def summary(heard: Heard) -> dict[str, float]:
    """The numbers that count."""
    settled = [size / 2**20 for at, size in heard.memory if at >= _WARM_UP_SECONDS] or [0.0]
    tenth = max(1, len(settled) // 10)
    return {
        "hops": heard.hops,
        "answers": len(heard.lags),
        "skipped": heard.skipped,
        "errors": heard.errors,
        "right": heard.right,
        **{f"lag_p{p}_s": float(np.percentile(heard.lags, p)) for p in (50, 99)},
        "lag_max_s": max(heard.lags),
        **{f"client_p{p}_s": float(np.percentile(heard.round_trips, p)) for p in (50, 99)},
        "memory_first_mb": float(np.mean(settled[:tenth])),
        "memory_last_mb": float(np.mean(settled[-tenth:])),
        "memory_peak_mb": max(settled),
    }


def main() -> int:
    """Exit code 1 if a lag reached 2 s."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streams", description=__doc__)
    parser.add_argument("--streams", type=int, default=20, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=120.0, help="(%(default)s)")
    parser.add_argument("--hop-seconds", type=float, default=1.0, help="(%(default)s)")
    args = parser.parse_args()
    setting = rule_of_thumb(os.cpu_count() or 1, 0, "throughput")
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        running(read_properties(Path("config.properties")), setting, Path(folder)) as torchserve,
        gateway_before(torchserve.inference) as (gateway, pid),
    ):
        url = gateway.replace("http:", "ws:") + "/ws/predict"
        heard = asyncio.run(play(url, pid, args.streams, args.seconds, args.hop_seconds))
    result = summary(heard)
    table = Table("", *result)
    table.add_row(f"{args.streams} streams", *(f"{value:.4g}" for value in result.values()))
    Console(stderr=True, width=200).print(table)
    conditions = {"streams": args.streams, "seconds": args.seconds, "hop_seconds": args.hop_seconds}
    print(json.dumps({"benchmark": "streams", **conditions, **result}))
    return int(result["lag_max_s"] >= 2)


if __name__ == "__main__":
    sys.exit(main())

"""Many live streams at once: `python -m benchmarks.streams [--streams 20] [--seconds 120]`.

Each plays a sound in real time over a WebSocket of its own, one hop a second. Printed are the lag (as the
gateway reports it, from the moment a hop was complete, and as a client sees it, from the moment it sent the
last sample of the hop), the skipped hops, and the gateway's memory over time.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from websockets.asyncio.client import ClientConnection, connect

from audiocnn import command
from audiocnn.audio import synthetic
from audiocnn.audio.decoder import decode
from benchmarks.gateway import tuned_server

RATE = 48_000  # a browser's: the gateway has to resample
FRAME_SECONDS = 0.1
_WARM_UP_SECONDS = 10.0  # buffers fill: memory counts after this


@dataclass
class StreamTotals:
    """Sums over all streams."""

    lags: list[float] = field(default_factory=list)  # seconds, as the gateway reports
    round_trips: list[float] = field(default_factory=list)  # seconds, as the client sees it
    hops: int = 0
    skipped: int = 0
    errors: int = 0
    right: int = 0
    memory: list[tuple[float, int]] = field(default_factory=list)  # seconds, bytes


async def stream(
    url: str, name: str, seconds: float, hop_seconds: float, totals: StreamTotals, *, delay: float
) -> None:
    """One stream: a synthetic sound, repeated, after `delay` seconds."""
    sound = decode(synthetic.wav(name), sample_rate=RATE).waveform
    size = round(FRAME_SECONDS * RATE)
    sent_at: dict[int, float] = {}  # by hop
    await asyncio.sleep(delay)
    async with connect(url, proxy=None, compression=None) as socket:
        await socket.send(json.dumps({"sample_rate": RATE, "hop_seconds": hop_seconds}))
        reading = asyncio.create_task(_read(socket, name, sent_at, totals))
        began = time.perf_counter()
        for number in range(round(seconds / FRAME_SECONDS)):
            await asyncio.sleep(max(0.0, began + (number + 1) * FRAME_SECONDS - time.perf_counter()))
            frame = np.take(sound, range(number * size, (number + 1) * size), mode="wrap")
            await socket.send(frame.astype("<f4").tobytes())
            sent_at.setdefault(int((number + 1) * FRAME_SECONDS / hop_seconds + 1e-9), time.perf_counter())
        await socket.send('{"end": true}')
        await reading
    totals.hops += int(seconds / hop_seconds)


async def _read(socket: ClientConnection, name: str, sent_at: dict[int, float], totals: StreamTotals) -> None:
    skipped = 0
    async for text in socket:
        answer = json.loads(text)
        if answer["type"] == "ready":
            continue
        skipped = answer.get("skipped", skipped)
        if answer["type"] == "error":
            totals.errors += 1
            continue
        totals.lags.append(answer["lag_seconds"])
        if answer["hop"] in sent_at:
            totals.round_trips.append(time.perf_counter() - sent_at[answer["hop"]])
        totals.right += answer["predictions"][0]["class"] == name
    totals.skipped += skipped


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
            stream(url, name, seconds, hop_seconds, totals, delay=float(delay))
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
        **{f"client_p{p}_s": float(np.percentile(totals.round_trips, p)) for p in (50, 99)},
        "memory_first_mb": float(np.mean(settled[:tenth])),
        "memory_last_mb": float(np.mean(settled[-tenth:])),
        "memory_peak_mb": max(settled),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 if a lag reached 2 s."""
    parser = command.new_parser("benchmarks.streams", __doc__, "--streams 50 --seconds 60")
    parser.add_argument("--streams", type=int, default=20, help="number of streams (%(default)s)")
    parser.add_argument("--seconds", type=float, default=120.0, help="of each stream (%(default)s)")
    parser.add_argument("--hop-seconds", type=float, default=1.0, help="between two results (%(default)s)")
    args = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tuned_server(Path(folder)) as server,
    ):
        url, pid = server.gateway.replace("http:", "ws:") + "/ws/predict", server.processes()["gateway"].pid
        totals = asyncio.run(play(url, pid, args.streams, args.seconds, args.hop_seconds))
    result = summary(totals)
    table = Table("", *result)
    table.add_row(f"{args.streams} streams", *(f"{value:.4g}" for value in result.values()))
    Console(stderr=True, width=200).print(table)
    conditions = {"streams": args.streams, "seconds": args.seconds, "hop_seconds": args.hop_seconds}
    print(json.dumps({"benchmark": "streams", **conditions, **result}))
    return int(result["lag_max_s"] >= 2)


if __name__ == "__main__":
    sys.exit(main())

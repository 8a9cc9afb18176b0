"""Short clips beside long ones: `python -m benchmarks.long_clips`.

Eight clips of ten minutes arrive at once, and one of 5 s every second until they are answered, while every
worker has a quarter of a core (it is stopped and continued 20 times a second). Two gateways are in front of
the same TorchServe: one passes long clips on as they come, the other as many at a time as its defaults allow
(`MAX_LONG_IN_FLIGHT`). Rounds alternate between them. Printed are the waits of the short clips, the seconds
until the last long one was answered, and the statuses.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

from audiocnn import command
from audiocnn.audio import synthetic
from benchmarks import load
from benchmarks.server_fixture import ServerFixture, tuned_server
from benchmarks.server_process import GatewayServer

_PERIOD_SECONDS = 0.05
_SAMPLE_RATE = 44_100
_TIMEOUT_SECONDS = 600.0
_GAP_SECONDS = 1.0  # between short clips


def long_clip(minutes: float) -> bytes:
    """Ogg Vorbis of that length: rain."""
    rain, rate = soundfile.read(io.BytesIO(synthetic.wav("rain")), dtype="float32")
    assert rate == _SAMPLE_RATE
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, 1, format="OGG", subtype="VORBIS") as ogg:
        for _ in range(round(60 * minutes * rate / len(rain))):
            ogg.write(np.asarray(rain))
    return file.getvalue()


@contextlib.contextmanager
def throttled(server: ServerFixture, share: float) -> Iterator[None]:
    """Workers run for `share` of the time: SIGSTOP and SIGCONT in turn."""
    is_over = threading.Event()

    def run() -> None:
        workers = server.workers()
        while not is_over.is_set():
            for worker in workers:
                worker.resume()
            is_over.wait(share * _PERIOD_SECONDS)
            for worker in workers:
                worker.suspend()
            is_over.wait((1 - share) * _PERIOD_SECONDS)
        for worker in workers:
            worker.resume()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


Round = tuple[list[float], float, Counter[int]]


async def one_round(url: str, long: bytes, count: int) -> Round:
    """Seconds that each short clip waited, seconds until the last long one was answered, and all statuses.

    A short clip is sent every second until the long ones are answered.
    """
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
    connector = aiohttp.TCPConnector(force_close=True)  # the gateway closes idle connections
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def ask(clip: bytes) -> tuple[float, int]:
            began = time.perf_counter()
            async with session.post(url, data=io.BytesIO(clip), headers=load.OCTETS) as reply:
                await reply.read()
            return time.perf_counter() - began, reply.status

        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ask(long)) for _ in range(count)]
            short = []
            while not all(task.done() for task in asked):
                short.append(group.create_task(ask(synthetic.wav("rain"))))
                await asyncio.sleep(_GAP_SECONDS)
    waits, ends = ([task.result()[0] for task in tasks] for tasks in (short, asked))
    return waits, max(ends), Counter(task.result()[1] for task in [*short, *asked])


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=command.count, default=3, help="for each gateway (%(default)s)")
    parser.add_argument("--minutes", type=command.positive, default=10.0, help="of a long clip (%(default)s)")
    parser.add_argument("--long", type=command.count, default=8, help="long clips at once (%(default)s)")
    parser.add_argument(
        "--share", type=command.positive, default=0.25, help="of a core for a worker (%(default)s)"
    )


@command.entry_point(_options, "--rounds 3 --minutes 10")
def main(args: argparse.Namespace) -> int:
    """Exit code 1 if a reply was neither 200 nor 503."""
    clip = long_clip(args.minutes)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        server = stack.enter_context(tuned_server(folder))
        common = {"TORCHSERVE_URL": server.inference, "DEADLINE_SECONDS": str(_TIMEOUT_SECONDS)}
        gateways = {
            "as they come": GatewayServer(common | {"MAX_LONG_IN_FLIGHT": "64"}),
            "in turn": GatewayServer(common),
        }
        for gateway in gateways.values():
            stack.callback(gateway.stop)
            gateway.start()
            gateway.wait_ready()
        rows: dict[str, list[Round]] = {name: [] for name in gateways}
        with throttled(server, args.share):
            for number in range(args.rounds):
                for name in list(gateways)[:: 1 if number % 2 else -1]:
                    rows[name].append(
                        asyncio.run(one_round(f"{gateways[name].url}/predict", clip, args.long))
                    )
    return report(rows)


def report(rows: dict[str, list[Round]]) -> int:
    """Print the table and the line of JSON; returns the exit code."""
    is_right = True
    table = Table("long clips", "short clip, s: median", "90 %", "worst", "last long clip, s", "statuses")
    summary = {}
    for name, rounds in rows.items():
        waits = [seconds for own, _, _ in rounds for seconds in own]
        statuses: Counter[int] = sum((counts for _, _, counts in rounds), Counter())
        summary[name] = {
            "short_median_seconds": float(np.median(waits)),
            "short_90_seconds": float(np.quantile(waits, 0.9)),
            "short_worst_seconds": max(waits),
            "long_seconds": statistics.median(end for _, end, _ in rounds),
        }
        table.add_row(name, *(f"{value:.2f}" for value in summary[name].values()), str(dict(statuses)))
        is_right &= statuses.keys() <= {200, 503}
    Console(stderr=True).print(table)
    print(json.dumps({"benchmark": "long_clips", "gateways": summary}))
    return int(not is_right)


if __name__ == "__main__":
    sys.exit(main())

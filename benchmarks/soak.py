"""Memory and latency over time: `python -m benchmarks.soak --minutes 20`.

The whole server at 80 % of its measured capacity, with sounds of 0.5 to 60 s in several formats and all
options, a quarter of them through the gateway, some of them damaged. Each reply is compared with the first
one to the same request. Memory that grows from minutes 5 to 6 to the last minute may be a leak: see the plot.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from audiocnn import command
from audiocnn.arrays import FloatArray
from benchmarks import corpus, soak_report
from benchmarks.command import CONFIG, add_path
from benchmarks.load import FORM, OCTETS, as_form, as_headers, top_class
from benchmarks.server_fixture import ServerFixture
from benchmarks.soak_report import CompletedRequest, growth, latency

LOAD = 0.8  # of the measured capacity
CLIENTS = 16
QUEUE_SIZE = 200  # of due requests; more are dropped
LENGTHS = (0.5, 1, 2, 5, 5, 5, 5, 5, 8, 12, 30, 60)  # seconds
KINDS = ("wav", "wav", "wav", "flac", "ogg", "mp3", "aiff")
OPTIONS: tuple[dict[str, str], ...] = (
    *({},) * 8,
    {"top_k": "3"},
    {"feature_maps": "png"},
    {"evidence": "true"},
    {"spectrogram": "true", "waveform": "true"},
    {"windows": "true", "classes": "dog,rain,siren"},
)
_MEMORY_PERIOD_SECONDS = 2.0
_COLUMNS = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())


@dataclass(frozen=True)
class SoakRequest:
    """One HTTP request, repeated throughout."""

    url: str
    body: bytes
    headers: dict[str, str]


@dataclass
class SoakLog:
    """The measurements. Memory is a list of `(seconds, MB)` for each process."""

    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    done: list[CompletedRequest] = field(default_factory=list)
    wrong: Counter[str] = field(default_factory=Counter)
    shed: int = 0


def request_mix(
    server: ServerFixture, waveforms: Sequence[FloatArray], count: int = 120
) -> list[SoakRequest]:
    """Requests of all lengths, formats and options, to TorchServe and the gateway, some damaged."""
    rng = np.random.default_rng(0)
    return [_request(server, waveforms[number % len(waveforms)], number, rng) for number in range(count)]


def _request(
    server: ServerFixture, waveform: FloatArray, number: int, rng: np.random.Generator
) -> SoakRequest:
    samples = round(LENGTHS[number % len(LENGTHS)] * corpus.SAMPLE_RATE)
    sound = np.resize(np.roll(waveform, int(rng.integers(1 << 16))), samples)
    body = corpus.encode(sound, KINDS[number % len(KINDS)])
    if number % 24 == 23:
        body = body[: len(body) // 2] if number % 48 == 23 else b"no sound at all" * 100
    options = OPTIONS[int(rng.integers(len(OPTIONS)))]
    if number % 4 == 3:
        return SoakRequest(f"{server.gateway}/predict", as_form(body, **options), FORM)
    verb = "explanations" if number % 20 == 10 else "predictions"
    return SoakRequest(f"{server.inference}/{verb}/audiocnn", body, OCTETS | as_headers(options))


class ReplyChecker:
    """Sends requests and compares each reply with the first one."""

    def __init__(self, session: aiohttp.ClientSession, mix: Sequence[SoakRequest]) -> None:
        self._session, self._mix = session, mix
        self._expected: dict[int, tuple[int, str]] = {}

    async def record_expected(self) -> None:
        """Send each request once; raises `RuntimeError` for a server error."""
        for number in range(len(self._mix)):
            self._expected[number] = await self._send(number)
            if not 200 <= self._expected[number][0] < 500:
                raise RuntimeError(f"request {number} got {self._expected[number]}")

    async def check(self, number: int) -> str:
        """Empty if status and top class are the expected ones, else the difference."""
        number %= len(self._mix)
        try:
            got = await self._send(number)
        except (aiohttp.ClientError, TimeoutError) as error:
            return type(error).__name__
        return "" if got == self._expected[number] else f"{got} for {self._expected[number]}"

    async def _send(self, number: int) -> tuple[int, str]:
        request = self._mix[number]
        body = io.BytesIO(request.body)  # aiohttp warns of large bytes
        async with self._session.post(request.url, data=body, headers=request.headers) as reply:
            return reply.status, top_class(await reply.read())


async def capacity(checker: ReplyChecker, seconds: float) -> float:
    """Requests a second of `CLIENTS` clients without pauses."""
    begin, answered = time.monotonic(), 0

    async def client(number: int) -> None:
        nonlocal answered
        while time.monotonic() < begin + seconds:
            await checker.check(number)
            answered += 1
            number += CLIENTS

    await asyncio.gather(*map(client, range(CLIENTS)))
    return answered / (time.monotonic() - begin)


async def soak(checker: ReplyChecker, rate: float, seconds: float, log: SoakLog) -> None:
    """An open loop of `rate` requests a second; at most `QUEUE_SIZE` requests wait, more are dropped."""
    begin, waiting = time.monotonic(), 0
    clients = asyncio.Semaphore(CLIENTS)

    async def send(number: int, due: float) -> None:
        nonlocal waiting
        async with clients:
            waiting -= 1
            wrong = await checker.check(number)
        log.done.append(CompletedRequest(due, time.monotonic() - begin, not wrong))
        log.wrong.update([wrong] if wrong else [])

    async with asyncio.TaskGroup() as group:
        for number in range(round(rate * seconds)):
            await asyncio.sleep(max(0.0, begin + number / rate - time.monotonic()))
            if waiting < QUEUE_SIZE:
                waiting += 1
                group.create_task(send(number, number / rate))
            else:
                log.shed += 1


async def watch_memory(server: ServerFixture, log: SoakLog) -> None:
    """Record the resident memory of each process that runs now, until cancelled."""
    begin, processes = time.monotonic(), server.processes()
    while True:
        for name, process in processes.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                megabytes = process.memory_info().rss / 1e6
                log.memory.setdefault(name, []).append((time.monotonic() - begin, megabytes))
        await asyncio.sleep(_MEMORY_PERIOD_SECONDS)


async def run(
    server: ServerFixture, args: argparse.Namespace, log: SoakLog, progress: Progress
) -> dict[str, float]:
    """Record the expected replies, measure the capacity, soak; returns the rates."""
    waveforms, _ = corpus.recordings(40)
    timeout, seconds = aiohttp.ClientTimeout(total=120), 60 * args.minutes
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        checker = ReplyChecker(session, request_mix(server, waveforms))
        task = progress.add_task("recording the expected replies", total=None)
        await checker.record_expected()
        progress.update(task, description="measuring the capacity")
        await capacity(checker, args.measure)  # warm-up
        most = await capacity(checker, args.measure)
        rate = LOAD * most
        progress.update(task, description=f"{rate:.0f} requests/s", total=seconds)
        background = [asyncio.create_task(watch_memory(server, log))]
        background += [asyncio.create_task(_advance(progress, task, seconds))]
        await soak(checker, rate, seconds, log)
        for each in background:
            each.cancel()
    return {"capacity_per_second": most, "rate_per_second": rate}


async def _advance(progress: Progress, task: TaskID, seconds: float) -> None:
    for second in range(round(seconds)):
        progress.update(task, completed=second)
        await asyncio.sleep(1)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=command.positive, default=20.0, help="of load (%(default)s)")
    parser.add_argument(
        "--measure",
        type=command.positive,
        default=20.0,
        help="seconds of warm-up and of measuring (%(default)s)",
    )
    add_path(parser, "--config", CONFIG, "configuration of TorchServe")
    add_path(parser, "--picture", Path("soak.png"), "file for the plot")


@command.entry_point(_options, "--minutes 20 --picture soak.png")
def main(args: argparse.Namespace) -> int:
    """Entry point; 1 if a reply was not the expected one."""
    log, console = SoakLog(), Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        ServerFixture(Path(folder) / "server", config=args.config) as server,
        Progress(*_COLUMNS, console=console) as progress,
    ):
        rates = asyncio.run(run(server, args, log, progress))
    memory = {name: growth(series, args.minutes) for name, series in log.memory.items()}
    rows, wrong = latency(log.done, args.minutes), sum(log.wrong.values())
    soak_report.print_tables(console, memory, rows)
    if wrong:
        console.print("wrong:", dict(log.wrong.most_common(10)))
    cores = len(os.sched_getaffinity(0))
    load = f"{LOAD:.0%} of capacity, {rates['rate_per_second']:.0f} requests/s"
    title = f"{args.minutes:g} minutes at {load} on {cores} cores"
    soak_report.plot(log.memory, log.done, args.minutes, title, args.picture)
    console.print(f"plot: {args.picture}")
    result = {"benchmark": "soak", "minutes": args.minutes, "requests": len(log.done), "wrong": wrong}
    result |= {"shed": log.shed, **rates, "memory": memory, "latency": rows}
    print(json.dumps(result | {"max_growth_percent": max(m["growth_percent"] for m in memory.values())}))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

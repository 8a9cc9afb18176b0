"""Load on a server, and what it measured: closed loop and open loop, over HTTP on one machine.

Closed loop: so many clients, each sends its next request when it has its answer. It finds the most that a
server can do, and hides waiting: while the server stalls, nobody asks. Open loop: requests are due at fixed
times, whether or not earlier ones were answered, and latency counts from the moment a request was *due*,
so a stall is charged to everyone who had to wait for it (Tene, "How NOT to Measure Latency", 2013).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
import numpy as np

PERCENTILES = {"p50_ms": 50.0, "p90_ms": 90.0, "p99_ms": 99.0, "p99_9_ms": 99.9}
TIMEOUT_SECONDS = 120.0
WARM_UP_SECONDS = 0.5
OCTETS = {"Content-Type": "application/octet-stream"}
JSON = {"Content-Type": "application/json"}

# The top class comes first in every answer: reading only the head keeps 2 MB of maps off the client's core.
_TOP_CLASS = re.compile(rb'"class"\s*:\s*"([^"]*)"')
_HEAD_BYTES = 300


@dataclass(frozen=True)
class Target:
    """Where requests go, their bodies, and the top class that each body's answer must name."""

    url: str
    bodies: Sequence[bytes]
    expected: Sequence[str]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One request. Times are in seconds since the load began; `status` is 0 if there was no answer."""

    clip: int
    intended: float
    started: float
    finished: float
    status: int
    top_class: str
    is_right: bool  # a 200 that names the expected class

    @property
    def latency_ms(self) -> float:
        """From the intended start to the last byte of the answer."""
        return 1000 * (self.finished - self.intended)


@dataclass(frozen=True)
class Measured:
    """The samples that count, and how many right answers came a second."""

    clips_per_second: float
    samples: list[Sample]


def top_class(body: bytes) -> str:
    """The class that an answer names first; empty if it names none."""
    match = _TOP_CLASS.search(body[:_HEAD_BYTES])
    return match.group(1).decode() if match else ""


def percentiles(samples: Sequence[Sample]) -> dict[str, float | None]:
    """Latencies in ms by nearest rank: each value is one that was measured. None without an answer."""
    latencies = [sample.latency_ms for sample in samples if sample.is_right]
    if not latencies:
        return dict.fromkeys(PERCENTILES)
    values = np.percentile(latencies, list(PERCENTILES.values()), method="inverted_cdf")
    return dict(zip(PERCENTILES, map(float, values), strict=True))


def closed_loop(
    target: Target, concurrency: int, seconds: float, *, warm_up: float = WARM_UP_SECONDS
) -> Measured:
    """`concurrency` clients for `seconds` after `warm_up`; what was answered in that time counts."""
    return asyncio.run(_closed_loop(target, concurrency, seconds, warm_up))


def open_loop(target: Target, rate: float, seconds: float, *, poisson: bool = False) -> Measured:
    """`rate` requests a second, evenly spaced or at random (a Poisson process), for `seconds`."""
    count = max(1, round(rate * seconds))
    gaps = np.random.default_rng(0).exponential(1 / rate, count) if poisson else np.full(count, 1 / rate)
    due = np.cumsum(gaps) - gaps[0]
    return asyncio.run(_open_loop(target, due.tolist()))


async def _closed_loop(target: Target, concurrency: int, seconds: float, warm_up: float) -> Measured:
    samples: list[Sample] = []
    async with _session() as session:
        begin = time.perf_counter()

        def clock() -> float:
            return time.perf_counter() - begin

        async def client(number: int) -> None:
            while (now := clock()) < warm_up + seconds:
                samples.append(await _ask(session, target, number, now, clock))
                number += concurrency

        await asyncio.gather(*(client(number) for number in range(concurrency)))
    counted = [sample for sample in samples if warm_up <= sample.finished < warm_up + seconds]
    return Measured(sum(sample.is_right for sample in counted) / seconds, counted)


async def _open_loop(target: Target, due: Sequence[float]) -> Measured:
    async with _session() as session:
        begin = time.perf_counter()

        def clock() -> float:
            return time.perf_counter() - begin

        async with asyncio.TaskGroup() as group:
            tasks = []
            for number, intended in enumerate(due):
                await asyncio.sleep(max(0.0, intended - clock()))
                tasks.append(group.create_task(_ask(session, target, number, intended, clock)))
    samples = [task.result() for task in tasks]
    right = sum(sample.is_right for sample in samples)
    return Measured(right / max(sample.finished for sample in samples), samples)


def _session() -> aiohttp.ClientSession:
    """As many connections as there are requests under way: waiting for one would hide latency."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


async def _ask(
    session: aiohttp.ClientSession, target: Target, number: int, intended: float, clock: Callable[[], float]
) -> Sample:
    clip = number % len(target.bodies)
    started = clock()
    status, body = 0, b""
    try:
        async with session.post(target.url, data=target.bodies[clip], headers=target.headers) as reply:
            body = await reply.read()
            status = reply.status
    except (aiohttp.ClientError, TimeoutError):
        pass  # counted by its status
    named = top_class(body)
    is_right = status == 200 and named == target.expected[clip]
    return Sample(clip, intended, started, clock(), status, named, is_right)

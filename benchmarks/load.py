"""A load generator: closed and open loops over HTTP, on the machine of the server.

Closed loop: each client sends its next request when it has the reply to the last one. It finds the maximal
throughput, and hides waiting: while the server stalls, no request is sent. Open loop: requests are due at
fixed times, and latency counts from the moment a request was *due*, so a stall delays every request that was
due meanwhile (Tene, "How NOT to Measure Latency", 2013).
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
_BOUNDARY = "benchmark"
FORM = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}

# The top class comes first in every reply: searching the head only avoids parsing 2 MB of maps.
_TOP_CLASS = re.compile(rb'"class"\s*:\s*"([^"]*)"')
_HEAD_BYTES = 300


@dataclass(frozen=True)
class Target:
    """A URL, request bodies, and the expected top class of each."""

    url: str
    bodies: Sequence[bytes]
    expected: Sequence[str]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One request. Times are in seconds since the start of the load; `status` is 0 without a reply."""

    clip: int
    intended: float
    started: float
    finished: float
    status: int
    top_class: str
    is_right: bool  # status 200 and the expected class

    @property
    def latency_ms(self) -> float:
        """From the intended start to the last byte of the reply."""
        return 1000 * (self.finished - self.intended)


@dataclass(frozen=True)
class LoadResult:
    """The samples, and correct replies per second."""

    clips_per_second: float
    samples: list[Sample]


def as_form(clip: bytes, **options: str) -> bytes:
    """A multipart body (`FORM`) with the options and the clip in the field `file`."""
    disposition = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name="
    fields = "".join(f'{disposition}"{name}"\r\n\r\n{value}\r\n' for name, value in options.items())
    head = f'{fields}{disposition}"file"; filename="clip.wav"\r\n\r\n'
    return head.encode() + clip + f"\r\n--{_BOUNDARY}--\r\n".encode()


def as_headers(options: Mapping[str, str]) -> dict[str, str]:
    """Options as TorchServe takes them: `top_k` becomes `X-Top-K`."""
    return {"X-" + name.replace("_", "-").title(): value for name, value in options.items()}


def top_class(body: bytes) -> str:
    """The first class in a reply; empty if there is none."""
    match = _TOP_CLASS.search(body[:_HEAD_BYTES])
    return match.group(1).decode() if match else ""


def percentiles(samples: Sequence[Sample]) -> dict[str, float | None]:
    """Latencies in ms by nearest rank: each is a measured value. None without a correct reply."""
    latencies = [sample.latency_ms for sample in samples if sample.is_right]
    if not latencies:
        return dict.fromkeys(PERCENTILES)
    values = np.percentile(latencies, list(PERCENTILES.values()), method="inverted_cdf")
    return dict(zip(PERCENTILES, map(float, values), strict=True))


def closed_loop(
    target: Target, concurrency: int, seconds: float, *, warm_up: float = WARM_UP_SECONDS
) -> LoadResult:
    """`concurrency` clients for `seconds` after `warm_up`; replies within that time count."""
    return asyncio.run(_closed_loop(target, concurrency, seconds, warm_up))


def interleaved(
    targets: Mapping[str, Target], concurrency: int, seconds: float, rounds: int
) -> dict[str, list[LoadResult]]:
    """A closed loop on each target in each round; every second round is reversed."""
    results: dict[str, list[LoadResult]] = {name: [] for name in targets}
    for number in range(rounds):
        for name in list(targets)[:: 1 if number % 2 else -1]:
            results[name].append(closed_loop(targets[name], concurrency, seconds))
    return results


def due_times(rate: float, seconds: float, *, poisson: bool = False) -> list[float]:
    """Seconds at which `rate` requests a second are due, evenly spaced or as a Poisson process, from 0."""
    count = max(1, round(rate * seconds))
    gaps = np.random.default_rng(0).exponential(1 / rate, count) if poisson else np.full(count, 1 / rate)
    due: list[float] = (np.cumsum(gaps) - gaps[0]).tolist()
    return due


def open_loop(target: Target, due: Sequence[float]) -> LoadResult:
    """A request at each of the times `due`, whether or not earlier ones were answered."""
    return asyncio.run(open_loop_async(target, due))


async def _closed_loop(target: Target, concurrency: int, seconds: float, warm_up: float) -> LoadResult:
    samples: list[Sample] = []
    async with _session() as session:
        begin = time.perf_counter()

        def clock() -> float:
            return time.perf_counter() - begin

        async def client(number: int) -> None:
            while (now := clock()) < warm_up + seconds:
                samples.append(await _send(session, target, number, now, clock))
                number += concurrency

        await asyncio.gather(*(client(number) for number in range(concurrency)))
    counted = [sample for sample in samples if warm_up <= sample.finished < warm_up + seconds]
    return LoadResult(sum(sample.is_right for sample in counted) / seconds, counted)


async def open_loop_async(target: Target, due: Sequence[float]) -> LoadResult:
    """`open_loop` within a running event loop."""
    async with _session() as session:
        begin = time.perf_counter()

        def clock() -> float:
            return time.perf_counter() - begin

        async with asyncio.TaskGroup() as group:
            tasks = []
            for number, intended in enumerate(due):
                await asyncio.sleep(max(0.0, intended - clock()))
                tasks.append(group.create_task(_send(session, target, number, intended, clock)))
    samples = [task.result() for task in tasks]
    right = sum(sample.is_right for sample in samples)
    return LoadResult(right / max(sample.finished for sample in samples), samples)


def _session() -> aiohttp.ClientSession:
    """Without a limit of connections: waiting for a free one would hide latency."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


async def _send(
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
    found = top_class(body)
    is_right = status == 200 and found == target.expected[clip]
    return Sample(clip, intended, started, clock(), status, found, is_right)

"""Hours of ordinary work in minutes: `python -m benchmarks.soak --minutes 20`.

Our whole server under 80 % of what it can do, with sounds of 0.5 to 60 s in several formats, all kinds of
options, some through the gateway, some of them wrong; every answer is compared with the first one. Measures
the resident memory of every process every few seconds, and latency from the moment a request was due. Memory
that grows from minutes 5 to 6 to the last one is a leak, or will be told from one by looking at the picture.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import statistics
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
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from audiocnn.arrays import FloatArray
from benchmarks import sounds
from benchmarks.gateway import FORM, as_form
from benchmarks.load import OCTETS, top_class
from benchmarks.server_fixture import Stage

LOAD = 0.8  # of the measured capacity
CLIENTS = 16
MOST_WAITING = 200  # due and not begun: more is overload, and shed
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
_WARM_UP_SECONDS = 20.0
_CAPACITY_SECONDS = 20.0
_LOOK_SECONDS = 2.0


@dataclass(frozen=True)
class Request:
    """One way to ask, repeated again and again."""

    url: str
    body: bytes
    headers: dict[str, str]


@dataclass(frozen=True)
class Done:
    """Seconds since the start when it was due and when it was answered; whether as the first time."""

    due: float
    finished: float
    is_right: bool


@dataclass
class Record:
    """What a soak measured. Memory is in MB, a list of `(seconds, MB)` for each process."""

    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    done: list[Done] = field(default_factory=list)
    wrong: Counter[str] = field(default_factory=Counter)
    shed: int = 0


def requests(stage: Stage, waveforms: Sequence[FloatArray], count: int = 120) -> list[Request]:
    """A mix of everything that is asked: lengths, formats, options, doors, and mistakes."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        length = LENGTHS[number % len(LENGTHS)]
        sound = np.resize(
            np.roll(waveforms[number % len(waveforms)], int(rng.integers(1 << 16))),
            round(length * sounds.RATE),
        )
        body = sounds.encode(sound, KINDS[number % len(KINDS)])
        if number % 24 == 23:
            body = body[: len(body) // 2] if number % 48 == 23 else b"no sound at all" * 100
        options = OPTIONS[int(rng.integers(len(OPTIONS)))]
        if number % 4 == 3:
            made.append(Request(f"{stage.gateway}/predict", as_form(body, **options), FORM))
            continue
        headers = OCTETS | {"X-" + name.replace("_", "-").title(): value for name, value in options.items()}
        verb = "explanations" if number % 20 == 10 else "predictions"
        made.append(Request(f"{stage.inference}/{verb}/audiocnn", body, headers))
    return made


class Asker:
    """Asks, and knows what was answered the first time."""

    def __init__(self, session: aiohttp.ClientSession, mix: Sequence[Request]) -> None:
        self._session, self._mix = session, mix
        self._known: dict[int, tuple[int, str]] = {}

    async def learn(self) -> None:
        """Ask everything once; `RuntimeError` if something gets a server error."""
        for number in range(len(self._mix)):
            self._known[number] = await self._ask(number)
            if not 200 <= self._known[number][0] < 500:
                raise RuntimeError(f"request {number} got {self._known[number]}")

    async def ask(self, number: int) -> str:
        """Empty if the answer is the known one (status and top class), else what came."""
        number %= len(self._mix)
        try:
            got = await self._ask(number)
        except (aiohttp.ClientError, TimeoutError) as error:
            return type(error).__name__
        return "" if got == self._known[number] else f"{got} for {self._known[number]}"

    async def _ask(self, number: int) -> tuple[int, str]:
        request = self._mix[number]
        sent = io.BytesIO(request.body)  # aiohttp warns of large bytes, which it would send in one go
        async with self._session.post(request.url, data=sent, headers=request.headers) as reply:
            body = await reply.read()
            return reply.status, top_class(body)


async def capacity(asker: Asker, seconds: float) -> float:
    """Requests a second of `CLIENTS` that never pause."""
    begin, answered = time.monotonic(), 0

    async def client(number: int) -> None:
        nonlocal answered
        while time.monotonic() < begin + seconds:
            await asker.ask(number)
            answered += 1
            number += CLIENTS

    await asyncio.gather(*map(client, range(CLIENTS)))
    return answered / (time.monotonic() - begin)


async def soak(asker: Asker, rate: float, seconds: float, record: Record) -> None:
    """`rate` requests a second; who is late is charged for it, and what is hopelessly late is shed."""
    begin = time.monotonic()
    waiting: asyncio.Queue[tuple[int, float] | None] = asyncio.Queue()

    async def client() -> None:
        while (item := await waiting.get()) is not None:
            wrong = await asker.ask(item[0])
            record.done.append(Done(item[1], time.monotonic() - begin, not wrong))
            record.wrong.update([wrong] if wrong else [])

    clients = [asyncio.create_task(client()) for _ in range(CLIENTS)]
    for number in range(round(rate * seconds)):
        due = number / rate
        await asyncio.sleep(max(0.0, begin + due - time.monotonic()))
        if waiting.qsize() < MOST_WAITING:
            waiting.put_nowait((number, due))
        else:
            record.shed += 1
    for _ in clients:
        waiting.put_nowait(None)
    await asyncio.gather(*clients)


async def watch(stage: Stage, record: Record) -> None:
    """Resident memory of every process that was there at the beginning, until cancelled."""
    begin, known = time.monotonic(), stage.processes()
    while True:
        for name, process in known.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                megabytes = process.memory_info().rss / 1e6
                record.memory.setdefault(name, []).append((time.monotonic() - begin, megabytes))
        await asyncio.sleep(_LOOK_SECONDS)


async def run(stage: Stage, minutes: float, record: Record, progress: Progress) -> dict[str, float]:
    """Learn, measure the capacity, soak; returns the rates."""
    waveforms, _ = sounds.recordings(40)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        asker = Asker(session, requests(stage, waveforms))
        task = progress.add_task("learning the answers", total=None)
        await asker.learn()
        progress.update(task, description="measuring the capacity")
        await capacity(asker, _WARM_UP_SECONDS)
        most = await capacity(asker, _CAPACITY_SECONDS)
        rate = LOAD * most
        progress.update(task, description=f"{rate:.0f} requests/s", total=60 * minutes)
        watching = asyncio.create_task(watch(stage, record))
        ticking = asyncio.create_task(_tick(progress, task, 60 * minutes))
        await soak(asker, rate, 60 * minutes, record)
        for each in (watching, ticking):
            each.cancel()
    return {"capacity_per_second": most, "rate_per_second": rate}


async def _tick(progress: Progress, task: object, seconds: float) -> None:
    for second in range(round(seconds)):
        progress.update(task, completed=second)  # type: ignore[arg-type]
        await asyncio.sleep(1)


def growth(series: Sequence[tuple[float, float]], minutes: float) -> dict[str, float]:
    """Median MB of minutes 5 to 6 and of the last minute, and the growth in %; of a short soak, the second
    quarter is taken for minutes 5 to 6."""
    early = (300.0, 360.0) if minutes >= 10 else (15 * minutes, 30 * minutes)
    late = (60 * (minutes - 1), 60 * minutes) if minutes >= 10 else (45 * minutes, 60 * minutes)
    first, last = (statistics.median(mb for t, mb in series if a <= t <= b) for a, b in (early, late))
    return {
        "early_mb": round(first, 1),
        "late_mb": round(last, 1),
        "growth_percent": round(100 * (last / first - 1), 2),
    }


def latency(done: Sequence[Done], minutes: float) -> list[dict[str, float]]:
    """p50 and p99 in ms of what was due in each minute."""
    rows = []
    for minute in range(round(max(1, minutes))):
        waits = [1000 * (d.finished - d.due) for d in done if 60 * minute <= d.due < 60 * (minute + 1)]
        if waits:
            p50, p99 = np.percentile(waits, [50, 99], method="inverted_cdf")
            rows.append(
                {"minute": minute + 1, "p50_ms": round(float(p50), 1), "p99_ms": round(float(p99), 1)}
            )
    return rows


def draw(record: Record, minutes: float, title: str, path: Path) -> None:
    """Memory and latency over time, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    memory, waits = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    colours = {"java": "#b45309", "gateway": "#7c3aed", "supervisor": "#64748b"}
    blues = iter(("#1d4ed8", "#0891b2", "#15803d", "#be123c"))
    for name, series in sorted(record.memory.items(), key=lambda item: -item[1][-1][1]):
        times, values = zip(*series, strict=True)
        grown = growth(series, minutes)["growth_percent"]
        colour = colours.get(name) or next(blues, "#000000")
        label = f"{name} ({grown:+.1f} %)"
        memory.plot([t / 60 for t in times], values, color=colour, lw=1.3, alpha=0.85, label=label)
    memory.set_ylabel("resident memory, MB")
    memory.set_ylim(bottom=0)
    memory.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5), alignment="left")
    rows = latency(record.done, minutes)
    for key, label, colour in (("p50_ms", "p50", "#0f766e"), ("p99_ms", "p99", "#b91c1c")):
        middles = [row["minute"] - 0.5 for row in rows]
        waits.plot(middles, [row[key] for row in rows], color=colour, marker="o", ms=3, lw=1.6, label=label)
    waits.set_ylabel("latency in each minute, ms")
    waits.set_ylim(bottom=0)
    waits.set_xlim(0, minutes)
    waits.set_xlabel("minutes")
    waits.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5), alignment="left")
    for axes in (memory, waits):
        axes.grid(axis="y", color="#e5e7eb")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 1 if an answer was another than the first one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="of load (%(default)s)")
    parser.add_argument("--config", type=Path, default=Path("config.properties"), help="(%(default)s)")
    parser.add_argument("--picture", type=Path, default=Path("soak.png"), help="where to draw (%(default)s)")
    args = parser.parse_args(arguments)
    record, console = Record(), Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        Stage(Path(folder) / "stage", config=args.config) as stage,
        Progress(*columns, console=console) as progress,
    ):
        rates = asyncio.run(run(stage, args.minutes, record, progress))
    memory = {name: growth(series, args.minutes) for name, series in record.memory.items()}
    rows = latency(record.done, args.minutes)
    _print(console, memory, rows)
    wrong = sum(record.wrong.values())
    if wrong:
        console.print("wrong:", dict(record.wrong.most_common(10)))
    cores = len(os.sched_getaffinity(0))
    load = f"{LOAD:.0%} of capacity, {rates['rate_per_second']:.0f} requests/s"
    title = f"{args.minutes:g} minutes at {load} on {cores} cores"
    draw(record, args.minutes, title, args.picture)
    console.print(f"picture: {args.picture}")
    result = {"benchmark": "soak", "minutes": args.minutes, "requests": len(record.done), "wrong": wrong}
    result |= {"shed": record.shed, **rates, "memory": memory, "latency": rows}
    result |= {"max_growth_percent": max(m["growth_percent"] for m in memory.values())}
    print(json.dumps(result))
    return int(wrong > 0)


def _print(console: Console, memory: dict[str, dict[str, float]], rows: list[dict[str, float]]) -> None:
    table = Table("process", "early MB", "late MB", "growth")
    for name, m in memory.items():
        table.add_row(name, f"{m['early_mb']:.0f}", f"{m['late_mb']:.0f}", f"{m['growth_percent']:+.2f} %")
    console.print(table)
    table = Table("minute", "p50 ms", "p99 ms")
    for row in rows:
        table.add_row(f"{row['minute']:.0f}", f"{row['p50_ms']:.0f}", f"{row['p99_ms']:.0f}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())

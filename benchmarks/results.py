"""What the serving benchmark found: the series, their ratios, the table, the line of JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from audiocnn.torchserve.tune import Setting
from benchmarks import load
from benchmarks.corpus import Clips
from benchmarks.load import Measured, Sample
from benchmarks.systems import Contestant

WENT_WRONG = ("refused", "failed", "wrong")


@dataclass
class Series:
    """All that one contestant got under one load; an entry a round."""

    server: str
    setting: Setting
    load: str
    clips_per_second: list[float] = field(default_factory=list)
    rounds: list[list[Sample]] = field(default_factory=list)

    @property
    def samples(self) -> list[Sample]:
        """Those of all rounds."""
        return [sample for samples in self.rounds for sample in samples]

    def row(self) -> dict[str, Any]:
        """The line of the table: median clips/s, percentiles over all rounds, and what went wrong.

        An open loop may ask for more than there is: a server that refuses the rest is busy, not broken.
        """
        refused = sum(sample.status == 503 for sample in self.samples) if "open" in self.load else 0
        return {
            "server": self.server,
            **asdict(self.setting),
            "load": self.load,
            "clips_per_second": statistics.median(self.clips_per_second),
            **load.percentiles(self.samples),
            "answers": len(self.samples),
            "refused": refused,
            "failed": sum(sample.status != 200 for sample in self.samples) - refused,
            "wrong": sum(sample.status == 200 and not sample.is_right for sample in self.samples),
        }


class Book:
    """The series of the run, by server and load."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str], Series] = {}

    def add(self, contestant: Contestant, load_name: str, measured: Measured) -> None:
        """One more round."""
        key = (contestant.name, load_name)
        series = self.series.setdefault(key, Series(contestant.name, contestant.setting, load_name))
        series.clips_per_second.append(measured.clips_per_second)
        series.rounds.append(measured.samples)

    def saturation(self, server: str) -> list[float]:
        """The most clips a second that the server did in every round, whatever the concurrency."""
        closed = [s for (name, what), s in self.series.items() if name == server and "closed" in what]
        return [max(rates) for rates in zip(*(s.clips_per_second for s in closed), strict=True)]

    def ratio(self, ours: str, theirs: str) -> float | None:
        """Of the saturations: the median of the rounds; None if the other did nothing."""
        rates = self.saturation(theirs)
        if not rates or not all(rates):
            return None
        return statistics.median(a / b for a, b in zip(self.saturation(ours), rates, strict=True))

    def median_ms(self, server: str) -> float:
        """Of one client's requests."""
        p50 = load.percentiles(self.series[(server, "closed 1")].samples)["p50_ms"]
        return p50 if p50 is not None else float("nan")


def summarise(book: Book, facts: dict[str, Any]) -> dict[str, Any]:
    """The line of JSON."""
    at_70 = load.percentiles(book.series[("torchserve", "open 70%")].samples)
    p50, p99 = at_70["p50_ms"], at_70["p99_ms"]
    rows = [series.row() for series in book.series.values()]
    return {
        "served_over_bare": book.ratio("torchserve", "bare"),
        "served_over_seed_style": book.ratio("torchserve", "seed"),
        "served_over_seed_style_without_maps": book.ratio("torchserve", "seed without maps"),
        "served_over_fastapi_same_classifier": book.ratio("torchserve", "fastapi"),
        "served_over_litserve": book.ratio("torchserve", "litserve"),
        "alone_overhead_ms": book.median_ms("torchserve, latency") - book.median_ms("bare alone"),
        "p99_over_p50_at_70pct": p99 / p50 if p50 and p99 else None,
        "failed": sum(row["failed"] for row in rows),
        "wrong": sum(row["wrong"] for row in rows),
        **facts,
        "rows": rows,
    }


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """For people."""
    columns = (
        "server",
        "workers x threads",
        "batch",
        "delay",
        "load",
        "clips/s",
        "p50",
        "p90",
        "p99",
        "p99.9",
    )
    table = Table(*columns, *WENT_WRONG, caption="latencies in ms; in an open loop from when they were due")
    for row in rows:
        split = f"{row['workers']} x {row['threads'] or 'all'}"
        ms = [f"{row[name]:.1f}" if row[name] is not None else "-" for name in load.PERCENTILES]
        middle = [str(row["batch"]), str(row["delay"]), row["load"], f"{row['clips_per_second']:.1f}"]
        table.add_row(row["server"], split, *middle, *ms, *(str(row[name]) for name in WENT_WRONG))
    Console(width=140).print(table)


def print_mismatches(book: Book, clips: Clips) -> None:
    """Each wrong answer once, with how often it came: a benchmark of wrong answers is worthless."""
    counts: dict[tuple[str, int, str], int] = {}
    for series in book.series.values():
        for sample in series.samples:
            if sample.status == 200 and not sample.is_right:
                key = (series.server, sample.clip, sample.top_class)
                counts[key] = counts.get(key, 0) + 1
    for (server, clip, named), count in counts.items():
        print(f"WRONG: {server} named clip {clip} {named!r}, not {clips.expected[clip]!r} ({count} times)")


def write_raw(book: Book, file: TextIO) -> None:
    """A line of JSON for every request."""
    for series in book.series.values():
        head = {"server": series.server, **asdict(series.setting), "load": series.load}
        for number, samples in enumerate(series.rounds):
            for sample in samples:
                file.write(json.dumps(head | {"round": number} | asdict(sample)) + "\n")

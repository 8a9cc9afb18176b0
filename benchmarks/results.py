"""Results of the serving benchmark: series, ratios, the table, the line of JSON."""

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
from benchmarks.load import LoadResult, Sample
from benchmarks.systems import System

FAILURE_COLUMNS = ("refused", "failed", "wrong")


@dataclass
class Series:
    """One system under one load, an entry a round."""

    server: str
    setting: Setting
    load: str
    clips_per_second: list[float] = field(default_factory=list)
    rounds: list[list[Sample]] = field(default_factory=list)
    cpu_ms: list[dict[str, float]] = field(default_factory=list)  # per clip, by role of the process

    @property
    def samples(self) -> list[Sample]:
        """The samples of all rounds."""
        return [sample for samples in self.rounds for sample in samples]

    def row(self) -> dict[str, Any]:
        """A row of the table: median clips/s, percentiles over all rounds, and failures.

        An open loop may exceed the capacity: its 503s count as `refused`, not as `failed`.
        """
        refused = sum(sample.status == 503 for sample in self.samples) if "open" in self.load else 0
        return {
            "server": self.server,
            **asdict(self.setting),
            "load": self.load,
            "clips_per_second": statistics.median(self.clips_per_second),
            **load.percentiles(self.samples),
            "cpu_ms": self._cpu_ms(),
            "answers": len(self.samples),
            "refused": refused,
            "failed": sum(sample.status != 200 for sample in self.samples) - refused,
            "wrong": sum(sample.status == 200 and not sample.is_right for sample in self.samples),
        }

    def _cpu_ms(self) -> dict[str, float]:
        roles = self.cpu_ms[0] if self.cpu_ms else {}
        return {role: statistics.median(row[role] for row in self.cpu_ms) for role in roles}


class Results:
    """The series of a run, by system and load."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str], Series] = {}

    def add(
        self, system: System, load_name: str, measured: LoadResult, cpu_ms: dict[str, float] | None = None
    ) -> None:
        """Add one round."""
        key = (system.name, load_name)
        series = self.series.setdefault(key, Series(system.name, system.setting, load_name))
        series.clips_per_second.append(measured.clips_per_second)
        series.rounds.append(measured.samples)
        if cpu_ms:
            series.cpu_ms.append(cpu_ms)

    def saturation(self, server: str) -> list[float]:
        """The highest clips per second of each round, over all concurrencies."""
        closed = [s for (name, what), s in self.series.items() if name == server and "closed" in what]
        return [max(rates) for rates in zip(*(s.clips_per_second for s in closed), strict=True)]

    def ratio(self, ours: str, theirs: str) -> float | None:
        """The median over rounds of the ratio of saturations; None if one has no result."""
        own, rates = self.saturation(ours), self.saturation(theirs)
        if not own or not rates or not all(rates):
            return None
        return statistics.median(a / b for a, b in zip(own, rates, strict=True))

    def median_ms(self, server: str) -> float:
        """Median latency of a single client."""
        p50 = load.percentiles(self.series[(server, "closed 1")].samples)["p50_ms"]
        return p50 if p50 is not None else float("nan")


def summarise(results: Results, facts: dict[str, Any]) -> dict[str, Any]:
    """The line of JSON, with `facts` about the run."""
    at_70 = load.percentiles(results.series[("torchserve", "open 70%")].samples)
    p50, p99 = at_70["p50_ms"], at_70["p99_ms"]
    rows = [series.row() for series in results.series.values()]
    return {
        "served_over_bare": results.ratio("torchserve", "bare"),
        "served_over_seed_style": results.ratio("torchserve", "baseline"),
        "served_over_seed_style_without_maps": results.ratio("torchserve", "baseline without maps"),
        "served_over_fastapi_same_classifier": results.ratio("torchserve", "fastapi"),
        "served_over_litserve": results.ratio("torchserve", "litserve"),
        "openvino_over_onnxruntime": results.ratio("torchserve", "torchserve, onnxruntime"),
        "gateway_form_over_served": results.ratio("gateway, form", "torchserve"),
        "gateway_raw_over_served": results.ratio("gateway, raw", "torchserve"),
        "gateway_raw_extra_ms": results.median_ms("gateway, raw") - results.median_ms("torchserve"),
        "alone_overhead_ms": results.median_ms("torchserve, latency") - results.median_ms("bare alone"),
        "p99_over_p50_at_70pct": p99 / p50 if p50 and p99 else None,
        "failed": sum(row["failed"] for row in rows),
        "wrong": sum(row["wrong"] for row in rows),
        **facts,
        "rows": rows,
    }


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print a row for each series."""
    columns = "server", "workers x threads", "batch", "delay", "load", "clips/s", "p50", "p90", "p99", "p99.9"
    caption = "latency in ms, in open loops from when it was due; CPU: ms a clip of each process"
    table = Table(*columns, "CPU", *FAILURE_COLUMNS, caption=caption)
    for row in rows:
        split = f"{row['workers']} x {row['threads'] or 'all'}"
        ms = [f"{row[name]:.1f}" if row[name] is not None else "-" for name in load.PERCENTILES]
        middle = [str(row["batch"]), str(row["delay"]), row["load"], f"{row['clips_per_second']:.1f}"]
        cpu = ", ".join(f"{role} {value:.1f}" for role, value in row["cpu_ms"].items())
        table.add_row(row["server"], split, *middle, *ms, cpu, *(str(row[name]) for name in FAILURE_COLUMNS))
    Console(width=170).print(table)


def print_mismatches(results: Results, clips: Clips) -> None:
    """Print each kind of wrong answer once, with its count."""
    counts: dict[tuple[str, int, str], int] = {}
    for series in results.series.values():
        for sample in series.samples:
            if sample.status == 200 and not sample.is_right:
                key = (series.server, sample.clip, sample.top_class)
                counts[key] = counts.get(key, 0) + 1
    for (server, clip, found), count in counts.items():
        print(f"WRONG: {server}: clip {clip} is {found!r}, not {clips.expected[clip]!r} ({count} times)")


def write_raw(results: Results, file: TextIO) -> None:
    """Write a line of JSON for each request."""
    for series in results.series.values():
        head = {"server": series.server, **asdict(series.setting), "load": series.load}
        for number, samples in enumerate(series.rounds):
            for sample in samples:
                file.write(json.dumps(head | {"round": number} | asdict(sample)) + "\n")

"""What `benchmarks.soak` reports: growth of memory, latency by minute, tables and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

_COLOURS = {"java": "#b45309", "gateway": "#7c3aed", "supervisor": "#64748b"}
_WORKER_COLOURS = ("#1d4ed8", "#0891b2", "#15803d", "#be123c")
Series = Sequence[tuple[float, float]]  # seconds, MB


@dataclass(frozen=True)
class CompletedRequest:
    """Seconds since the start when a request was due and when it was answered; whether as expected."""

    due: float
    finished: float
    is_right: bool


def growth(series: Series, minutes: float) -> dict[str, float]:
    """Median MB of minutes 5 to 6 and of the last minute, and the growth in percent.

    Below 10 minutes: of the second and the last quarter.
    """
    early = (300.0, 360.0) if minutes >= 10 else (15 * minutes, 30 * minutes)
    late = (60 * (minutes - 1), 60 * minutes) if minutes >= 10 else (45 * minutes, 60 * minutes)
    first, last = (
        statistics.median([mb for t, mb in series if a <= t <= b] or [mb for _, mb in series])
        for a, b in (early, late)
    )
    percent = round(100 * (last / first - 1), 2)
    return {"early_mb": round(first, 1), "late_mb": round(last, 1), "growth_percent": percent}


def latency(done: Sequence[CompletedRequest], minutes: float) -> list[dict[str, float]]:
    """p50 and p99 in ms of the requests due in each minute."""
    rows = []
    for minute in range(round(max(1, minutes))):
        waits = [1000 * (d.finished - d.due) for d in done if 60 * minute <= d.due < 60 * (minute + 1)]
        if waits:
            p50, p99 = (round(float(p), 1) for p in np.percentile(waits, [50, 99], method="inverted_cdf"))
            rows.append({"minute": minute + 1, "p50_ms": p50, "p99_ms": p99})
    return rows


def print_tables(console: Console, memory: dict[str, dict[str, float]], rows: list[dict[str, float]]) -> None:
    """Print memory by process and latency by minute."""
    table = Table("process", "early MB", "late MB", "growth")
    for name, m in memory.items():
        table.add_row(name, f"{m['early_mb']:.0f}", f"{m['late_mb']:.0f}", f"{m['growth_percent']:+.2f} %")
    console.print(table)
    table = Table("minute", "p50 ms", "p99 ms")
    for row in rows:
        table.add_row(f"{row['minute']:.0f}", f"{row['p50_ms']:.0f}", f"{row['p99_ms']:.0f}")
    console.print(table)


def plot(
    memory: Mapping[str, Series], done: Sequence[CompletedRequest], minutes: float, title: str, path: Path
) -> None:
    """Memory and latency over time, as a picture file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    _plot_memory(above, memory, minutes)
    _plot_latency(below, latency(done, minutes))
    below.set_xlim(0, minutes)
    below.set_xlabel("minutes")
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5), alignment="left")
        axes.grid(axis="y", color="#e5e7eb")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def _plot_memory(axes: Any, memory: Mapping[str, Series], minutes: float) -> None:
    blues = iter(_WORKER_COLOURS)
    for name, series in sorted(memory.items(), key=lambda item: -item[1][-1][1]):
        times, values = zip(*series, strict=True)
        colour = _COLOURS.get(name) or next(blues, "#000000")
        label = f"{name} ({growth(series, minutes)['growth_percent']:+.1f} %)"
        axes.plot([t / 60 for t in times], values, color=colour, lw=1.3, alpha=0.85, label=label)
    axes.set_ylabel("resident memory, MB")


def _plot_latency(axes: Any, rows: list[dict[str, float]]) -> None:
    middles = [row["minute"] - 0.5 for row in rows]
    for key, label, colour in (("p50_ms", "p50", "#0f766e"), ("p99_ms", "p99", "#b91c1c")):
        axes.plot(middles, [row[key] for row in rows], color=colour, marker="o", ms=3, lw=1.6, label=label)
    axes.set_ylabel("latency in each minute, ms")

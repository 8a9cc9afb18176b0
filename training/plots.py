"""Pictures of what `training.evaluate` measured, each for a light and for a dark screen.

Class names are drawn without their emoji: few fonts have them, and none in one colour.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from audiocnn.labels import describe

Report = dict[str, Any]

_DPI = 160
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a class may be called `$$`
}


@dataclass(frozen=True)
class Theme:
    """Colours of a picture, the same as those of the page around it."""

    name: str
    paper: str
    ink: str
    faint: str  # grid lines and what is less important
    good: str
    bad: str


LIGHT = Theme("light", paper="#ffffff", ink="#1f2933", faint="#d3dae2", good="#1f6f8b", bad="#d1495b")
DARK = Theme("dark", paper="#181c21", ink="#e4e8ec", faint="#3a424c", good="#57b4d0", bad="#f0788a")


def draw_confusion(report: Report, theme: Theme) -> Figure:
    """True classes down, predicted ones across; right answers in one colour, mistakes in the other."""
    names, counts = report["class_names"], np.array(report["confusion"])
    size = 2.6 + 0.19 * len(names)
    figure, axes = _figure(theme, size, size)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    diagonal = np.eye(len(names), dtype=bool)
    for part, colour in ((diagonal, theme.good), (~diagonal, theme.bad)):
        ramp = LinearSegmentedColormap.from_list(colour, [theme.paper, colour])
        axes.imshow(np.ma.masked_where(~part | (counts == 0), share), cmap=ramp, vmin=0, vmax=1)
    for true, predicted in np.argwhere(counts):
        colour = theme.paper if share[true, predicted] > 0.5 else theme.ink
        number = str(counts[true, predicted])
        axes.text(predicted, true, number, ha="center", va="center", color=colour, fontsize=6.5)
    labels = [words(name) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), labels, fontsize=8)
    axes.set_xticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color=theme.faint, linewidth=0.3)
    axes.tick_params(which="both", length=0)
    groups = [describe(name).group for name in names]
    for edge in (n - 0.5 for n in range(1, len(names)) if groups[n] != groups[n - 1]):
        axes.axhline(edge, color=theme.ink, linewidth=0.6, alpha=0.6)
        axes.axvline(edge, color=theme.ink, linewidth=0.6, alpha=0.6)
    axes.set(xlabel="heard as", ylabel="is")
    return figure


def draw_f1(report: Report, theme: Theme) -> Figure:
    """A bar for every class, best on top, with the mean over the classes."""
    rows = by_f1(report)
    figure, axes = _figure(theme, 6.5, 1.0 + 0.19 * len(rows))
    values = [row["f1"] for _, row in rows]
    labels = [words(name) for name, _ in rows]
    _bars(axes, theme, labels, values, [value < 0.5 for value in values], "{:.2f}")
    _mark(axes, theme, report["macro_f1"], f"mean {report['macro_f1']:.3f}")
    axes.set_xlabel("F1")
    return figure


def draw_reliability(report: Report, theme: Theme) -> Figure:
    """Accuracy against confidence in bins of equal numbers of clips, with one standard error."""
    figure, axes = _figure(theme, 5.2, 5.0)
    bins = report["reliability"]
    confidence, accuracy, count = (
        np.array([row[key] for row in bins], dtype=float) for key in ("confidence", "accuracy", "count")
    )
    # (hits + 1) / (n + 2): a bin without a mistake has an error too (Laplace's rule of succession).
    smooth = (accuracy * count + 1) / (count + 2)
    error = np.sqrt(smooth * (1 - smooth) / count)
    axes.plot([0, 1], [0, 1], color=theme.faint, linewidth=1.5, label="as sure as right")
    axes.vlines(confidence, confidence, accuracy, color=theme.bad, linewidth=3, alpha=0.45, label="gap")
    axes.errorbar(
        confidence,
        accuracy,
        yerr=(np.minimum(error, accuracy), np.minimum(error, 1 - accuracy)),
        color=theme.good,
        marker="o",
        linewidth=1.4,
        elinewidth=0.8,
        label=f"model (ECE {report['ece']:.1%})",
    )
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy", aspect="equal")
    axes.grid(color=theme.faint, linewidth=0.4)
    axes.legend(facecolor=theme.paper, edgecolor="none", framealpha=1, loc="lower right")
    return figure


def draw_robustness(report: Report, theme: Theme) -> Figure:
    """A bar for every condition and a line where the clean clips are."""
    result = report["robustness"]
    rows = result["conditions"]
    figure, axes = _figure(theme, 6.5, 1.0 + 0.28 * len(rows))
    labels = [row["condition"] for row in rows]
    is_worst = [label == result["worst"] for label in labels]
    _bars(axes, theme, labels, [row["accuracy"] for row in rows], is_worst, "{:.1%}")
    _mark(axes, theme, result["clean"], f"clean {result['clean']:.1%}")
    axes.set_xlabel("accuracy")
    return figure


PICTURES: dict[str, Callable[[Report, Theme], Figure]] = {
    "confusion": draw_confusion,
    "f1": draw_f1,
    "reliability": draw_reliability,
    "robustness": draw_robustness,
}


def by_f1(report: Report) -> list[tuple[str, dict[str, float]]]:
    """Class names with their row of `per_class`, best F1 first."""
    return sorted(report["per_class"].items(), key=lambda item: -item[1]["f1"])


def _figure(theme: Theme, width: float, height: float) -> tuple[Figure, Axes]:
    """An empty picture, in inches, in the theme's colours."""
    figure = Figure(figsize=(width, height), facecolor=theme.paper, layout="constrained")
    axes = figure.add_subplot(facecolor=theme.paper)
    axes.tick_params(colors=theme.ink)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    for spine in axes.spines.values():
        spine.set_color(theme.faint)
    return figure, axes


def _bars(
    axes: Axes, theme: Theme, labels: list[str], values: list[float], is_bad: list[bool], form: str
) -> None:
    """Bars from the top down with their values (0 to 1): inside, or beside where there is no room."""
    positions = range(len(values))
    axes.barh(positions, values, color=[theme.bad if bad else theme.good for bad in is_bad], height=0.76)
    for position, value in enumerate(values):
        fits = value > 0.12
        axes.text(
            value - 0.01 if fits else value + 0.01,
            position,
            form.format(value),
            ha="right" if fits else "left",
            va="center_baseline",
            fontsize=7.5,
            color=theme.paper if fits else theme.ink,
        )
    axes.set_yticks(positions, labels, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 1.01), ylim=(len(values) - 0.4, -0.6))
    axes.spines["left"].set_visible(False)


def _mark(axes: Axes, theme: Theme, value: float, label: str) -> None:
    """A line down behind the bars, with words above it."""
    axes.axvline(value, color=theme.ink, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    top = (value, axes.get_ylim()[1])
    axes.annotate(label, top, (0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=8)


def words(name: str) -> str:
    """A class name for people."""
    return name.replace("_", " ")


def draw(report: Report, folder: Path) -> dict[str, dict[str, bytes]]:
    """All pictures as PNG, also written as `NAME-light.png` and `NAME-dark.png`: `[name][theme]`."""
    pictures: dict[str, dict[str, bytes]] = {}
    for name, make in PICTURES.items():
        if name == "robustness" and name not in report:
            continue
        pictures[name] = {}
        for theme in (LIGHT, DARK):
            file = io.BytesIO()
            with mpl.rc_context(_STYLE | {"text.color": theme.ink}):
                make(report, theme).savefig(file, format="png", dpi=_DPI)
            pictures[name][theme.name] = file.getvalue()
            (folder / f"{name}-{theme.name}.png").write_bytes(file.getvalue())
    return pictures

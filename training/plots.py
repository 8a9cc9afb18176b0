"""Plots of an evaluation: confusion matrix and reliability diagram."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Report = dict[str, Any]

_DPI = 160
_STYLE: dict[Any, Any] = {"font.size": 9, "text.parse_math": False}  # a class may be called `$$`


def plot_confusion(report: Report, axes: Axes) -> None:
    """Clips by true class (rows) and predicted class (columns); colours are shares of the true class."""
    names, counts = [class_words(name) for name in report["class_names"]], np.array(report["confusion"])
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for true, predicted in np.argwhere(counts):
        colour = "white" if share[true, predicted] > 0.5 else "black"
        number = str(counts[true, predicted])
        axes.text(predicted, true, number, ha="center", va="center", color=colour, fontsize=6.5)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="predicted class", ylabel="true class")


def plot_reliability(report: Report, axes: Axes) -> None:
    """Accuracy against confidence in bins of equal numbers of clips, with one standard error."""
    rows = report["reliability"]
    confidence, accuracy, count = (
        np.array([row[key] for row in rows], dtype=float) for key in ("confidence", "accuracy", "count")
    )
    # Laplace's rule of succession: a bin without a mistake has an error too.
    smooth = (accuracy * count + 1) / (count + 2)
    error = np.sqrt(smooth * (1 - smooth) / count)
    limits = np.minimum(error, accuracy), np.minimum(error, 1 - accuracy)
    axes.plot([0, 1], [0, 1], color="grey", label="perfect calibration")
    axes.errorbar(confidence, accuracy, yerr=limits, marker="o", label=f"model (ECE {report['ece']:.1%})")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy", aspect="equal")
    axes.grid(alpha=0.4)
    axes.legend(loc="lower right")


PLOTS: dict[str, Callable[[Report, Axes], None]] = {
    "confusion": plot_confusion,
    "reliability": plot_reliability,
}


def class_words(name: str) -> str:
    """A class name for people."""
    return name.replace("_", " ")


def write_plots(report: Report, folder: Path) -> dict[str, bytes]:
    """Write `NAME.png` for each plot into `folder`; returns the PNG bytes by name."""
    sizes = {"confusion": 2.6 + 0.19 * len(report["class_names"]), "reliability": 5.2}  # inches
    images = {}
    for name, plot in PLOTS.items():
        with mpl.rc_context(_STYLE):
            figure = Figure(figsize=(sizes[name], sizes[name]), layout="constrained")
            plot(report, figure.add_subplot())
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=_DPI)
        images[name] = file.getvalue()
        (folder / f"{name}.png").write_bytes(images[name])
    return images

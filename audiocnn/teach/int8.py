"""The int8 version of a taught model on waveforms, calibrated on the clips that it was taught with.

Convolutions run in int8, but for the front end and the first two of the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader

from audiocnn.arrays import FloatArray
from audiocnn.files import replacing
from audiocnn.model.engine import Engine
from audiocnn.model.quantisation import quantised
from audiocnn.probabilities import probabilities

MAX_WINDOWS = 40  # to calibrate on, and as many to compare
MAX_DIFFERENCE = 0.05  # of a confidence, else float32 is served
_QUANTISED = ["Conv", "Relu", "MaxPool"]
_FLOAT_CONVOLUTIONS = 3  # the DFT of the front end, and the first block


class _CalibrationWindows(CalibrationDataReader):  # type: ignore[misc]  # untyped
    """Yields one window after another."""

    def __init__(self, name: str, windows: FloatArray) -> None:
        self._inputs: Iterator[dict[str, FloatArray]] = ({name: window[None]} for window in windows)

    def get_next(self) -> dict[str, FloatArray] | None:
        """The next input of the graph, or None."""
        return next(self._inputs, None)


def chosen(windows: FloatArray) -> FloatArray:
    """At most `2 * MAX_WINDOWS` of windows `(n, window_samples)`, evenly spaced."""
    numbers = np.unique(np.linspace(0, len(windows) - 1, 2 * MAX_WINDOWS).round().astype(int))
    return np.asarray(windows[numbers])


def write_int8(source: Path, windows: FloatArray, out: Path) -> None:
    """Quantise the model `source` with ranges measured on windows `(n, window_samples)`."""
    proto = onnx.load(source)
    nodes = list(proto.graph.node)
    convolutions = [number for number, node in enumerate(nodes) if node.op_type == "Conv"]
    int8 = quantised(
        proto,
        _CalibrationWindows(proto.graph.input[0].name, windows[::2][:MAX_WINDOWS]),
        operators=_QUANTISED,
        excluded=[node.name for node in nodes[: convolutions[_FLOAT_CONVOLUTIONS]]],
    )
    with replacing(out) as part:
        onnx.save(int8, part)


def compare(int8: Path, float32: Path, windows: FloatArray) -> dict[str, float]:
    """Largest difference of a confidence and share of equal top classes, on windows not calibrated on."""
    held_out = windows[1::2][:MAX_WINDOWS] if len(windows) > 1 else windows
    probs = []
    for path in (int8, float32):
        engine = Engine(path)
        probs.append(probabilities(engine.run_windows(held_out)["logits"], engine.config))
    agreement = float((probs[0].argmax(axis=1) == probs[1].argmax(axis=1)).mean())
    return {"largest_difference": float(np.abs(probs[0] - probs[1]).max()), "agreement": agreement}


def is_acceptable(comparison: dict[str, float]) -> bool:
    """Whether the int8 file may answer."""
    return comparison["agreement"] == 1.0 and comparison["largest_difference"] <= MAX_DIFFERENCE

"""Maps for front ends: scaled to [-1, 1] as those of the seeds read them, or as a picture."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from audiocnn.greyscale import to_grey


def scaled_maps(visualization: dict[str, Any]) -> dict[str, Any]:
    """Every map divided by its largest magnitude: values in [-1, 1], zero stays zero.

    A map is `{"shape": [h, w], "values": [[...]]}`; what is no such map (a PNG) is left as it is.
    """
    return {name: _scaled(item) if "values" in item else item for name, item in visualization.items()}


def _scaled(item: dict[str, Any]) -> dict[str, Any]:
    values: npt.NDArray[np.float64] = np.asarray(item["values"], np.float64)
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    return item | {"values": np.round(values / largest, 4).tolist()}


def spectrogram_png(spectrogram: dict[str, Any]) -> bytes:
    """8-bit grey PNG, one pixel a cell, low frequencies at the bottom, loud is bright.

    Its text fields say what the axes and the greys mean: `hz` and `seconds` (first to last), `range`.
    """
    values: npt.NDArray[np.float64] = np.asarray(spectrogram["values"], np.float64)
    grey, low, high = to_grey(values)
    info = PngInfo()
    for axis in ("hz", "seconds"):
        info.add_text(axis, f"{spectrogram[axis][0]:g} to {spectrogram[axis][-1]:g}")
    info.add_text("range", f"{low:g} to {high:g}")
    file = io.BytesIO()
    Image.fromarray(grey[::-1]).save(file, format="PNG", pnginfo=info)
    return file.getvalue()

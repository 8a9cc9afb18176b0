"""Pictures of a sound, as HTML: 8-bit tiles drawn here, with axes that are text.

A tile has one pixel a cell and travels inside the HTML as a PNG of a few kilobytes; the browser stretches
it. Axes, ticks and lines are HTML and SVG in the colours of the page, so they are sharp on every screen,
light or dark, and stay readable on a phone. All pictures of a clip take 7 ms; matplotlib took 840.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

FloatArray = npt.NDArray[np.float32]
Colours = npt.NDArray[np.uint8]  # (256, 3)
Tick = tuple[float, str]  # place from 0 (left, bottom) to 1, label

_HZ_TICKS = (100, 500, 1000, 2000, 4000, 8000, 16_000)
_WAVE_BINS = 600
_OVERLAY_SIZE = (64, 32)  # columns, rows; the browser smooths it, and evidence is coarser still
_OVERLAY_ALPHA = 0.6


def _signed(value: float) -> str:
    """One decimal, with a real minus."""
    return f"{value:.1f}".replace("-", "−")


def _ramp(*stops: tuple[int, int, int]) -> Colours:
    """256 colours through equally spaced stops."""
    places = np.linspace(0, 255, len(stops))
    channels = [np.interp(np.arange(256), places, channel) for channel in zip(*stops, strict=True)]
    return np.round(np.stack(channels, axis=1)).astype(np.uint8)


LOUDNESS = _ramp(  # matplotlib's magma at nine places: even steps to the eye, readable without colour
    (0, 0, 4),
    (28, 16, 68),
    (79, 18, 123),
    (129, 37, 129),
    (181, 54, 122),
    (229, 80, 100),
    (251, 135, 97),
    (254, 194, 135),
    (252, 253, 191),
)
SIGNED = _ramp((33, 102, 172), (146, 197, 222), (255, 255, 255), (253, 184, 99), (230, 97, 1))

FOR, AGAINST = (0, 226, 140), (70, 140, 255)  # hues that LOUDNESS does not have


def waveform(answer: dict[str, Any], shown: tuple[float, float] | None = None) -> str:
    """Amplitude over the seconds of the whole clip; `shown` is the window drawn elsewhere, if only a part."""
    values: FloatArray = np.asarray(answer["waveform"]["values"], np.float32)
    duration = answer["duration"]
    peak = max(float(np.abs(values).max(initial=0.0)), 1e-3)
    edges = np.unique(np.linspace(0, len(values), min(_WAVE_BINS, len(values)) + 1).astype(int)[:-1])
    high, low = np.maximum.reduceat(values, edges) / peak, np.minimum.reduceat(values, edges) / peak
    least = 0.006  # a line where there is no sound
    x = np.arange(len(edges)) + 0.5
    upper = " ".join(f"{a:.1f},{-b:.3f}" for a, b in zip(x, np.maximum(high, low + least), strict=True))
    lower = " ".join(f"{a:.1f},{-b:.3f}" for a, b in zip(x[::-1], low[::-1], strict=True))
    svg = (
        f'<svg viewBox="0 -1.05 {len(edges)} 2.1" preserveAspectRatio="none" role="img" '
        f'aria-label="waveform"><polygon points="{upper} {lower}"/></svg>'
    )
    if shown:
        left, right = (100 * second / duration for second in shown)
        svg += f'<i class="shown" style="left:{left:.2f}%;width:{right - left:.2f}%"></i>'
    levels = [(0.976, f"{peak:.2g}"), (0.5, "0"), (0.024, f"−{peak:.2g}")]
    return _figure("wave", svg, x=second_ticks(0.0, duration), y=levels, x_label="seconds", y_label="")


def spectrogram(answer: dict[str, Any]) -> str:
    """What the network saw, with Hz and seconds, and over it where the score of a class came from."""
    placed, evidence = answer["input_spectrogram"], answer["evidence"]
    start, end = evidence["start"], evidence["end"]
    seconds = np.asarray(placed["seconds"])
    real = max(2, int((seconds <= end).sum()))  # beyond the end a short clip repeats
    values: FloatArray = np.asarray(placed["values"], np.float32)[:, :real]
    # The few loudest cells, such as bands above what was recorded, would take the colours from the rest.
    low, high = (float(edge) for edge in np.percentile(values, [2, 97]))
    high = max(high, low + 0.1)
    marks = [(place, _signed(low + place * (high - low))) for place in (0.0, 0.5, 1.0)]
    marks[-1] = (1.0, f"{marks[-1][1]} σ")
    places = np.clip((values - low) / (high - low), 0, 1)
    tile = _image(_png(places, LOUDNESS), "mel spectrogram", "tile")
    tile += _overlay(evidence, float(seconds[real - 1]))
    return _figure(
        "mel",
        tile,
        x=second_ticks(start, end),
        y=hz_ticks(placed["hz"]),
        x_label="seconds",
        y_label="Hz",
        scale=colour_bar(LOUDNESS, marks),
    )


def _overlay(evidence: dict[str, Any], last: float) -> str:
    """Green where the sound spoke for the class, blue where against it; clear where it did not matter."""
    values: FloatArray = np.asarray(evidence["values"], np.float32)
    rows, columns = values.shape
    # Cell i is centred on band i * stride, so the last one is a stride before the end of its axis.
    row_at = np.linspace(0, rows, _OVERLAY_SIZE[1])
    column_at = np.interp(
        np.linspace(evidence["start"], last, _OVERLAY_SIZE[0]), evidence["seconds"], np.arange(columns)
    )
    along = np.stack([np.interp(column_at, np.arange(columns), row) for row in values])
    fine = np.stack([np.interp(row_at, np.arange(rows), column) for column in along.T], axis=1)
    scaled = fine / max(float(np.abs(values).max()), 1e-9)
    rgba = np.empty((*scaled.shape, 4), np.uint8)
    rgba[..., :3] = np.where(scaled[..., None] > 0, FOR, AGAINST)
    rgba[..., 3] = np.round(255 * _OVERLAY_ALPHA * np.abs(scaled))
    file = io.BytesIO()
    Image.fromarray(rgba[::-1]).save(file, format="PNG")
    return _image(file.getvalue(), f"where the score of {evidence['class']} came from", "overlay")


def feature_map(name: str, item: dict[str, Any]) -> str:
    """A map that came as a grey PNG, in blue, white and orange on [-1, 1]: zero is white."""
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(item["png"]))), np.float32)
    low, high = item["range"]
    values = low + grey / 255 * (high - low)
    largest = max(abs(low), abs(high)) or 1.0
    tile = _image(_png((values / largest + 1) / 2, SIGNED), name, "tile")
    rows, columns = item["shape"]
    caption = f"<b>{escape(name)}</b> <span>{rows} × {columns}</span>"
    return (
        f'<figure class="map" data-layer="{escape(name)}">{tile}<figcaption>{caption}</figcaption></figure>'
    )


def signed_bar() -> str:
    """The scale of the feature maps."""
    return colour_bar(SIGNED, [(0.0, "−1"), (0.5, "0"), (1.0, "+1")])


def colour_bar(colours: Colours, marks: Sequence[Tick]) -> str:
    """A scale: its colours from low to high, with ticks."""
    picture = _image(_png(np.linspace(0, 1, 64)[:, None], colours), "colour scale", "tile")
    return f'<div class="scale"><div>{picture}</div>{ticks("y", marks)}</div>'


def second_ticks(start: float, end: float, most: int = 6) -> list[Tick]:
    """Whole or round seconds from start to end; minutes and seconds past two minutes."""
    span = max(end - start, 1e-6)
    steps = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300)
    step = next((each for each in steps if span / each <= most), 600)
    first = int(np.ceil(start / step - 1e-6))
    marks = [number * step for number in range(first, int(end / step + 1e-6) + 1)]
    return [((mark - start) / span, clock(mark) if end > 120 else f"{mark:g}") for mark in marks]


def clock(seconds: float) -> str:
    """Minutes and seconds: 1:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def hz_ticks(hz: Sequence[float]) -> list[Tick]:
    """Round frequencies where they lie between the rows of a map."""
    rows = np.arange(len(hz)) / max(1, len(hz) - 1)
    return [
        (float(np.interp(each, hz, rows)), f"{each // 1000}k" if each >= 1000 else str(each))
        for each in _HZ_TICKS
        if hz[0] <= each <= hz[-1]
    ]


def _figure(
    kind: str,
    inside: str,
    *,
    x: Sequence[Tick],
    y: Sequence[Tick],
    x_label: str,
    y_label: str,
    scale: str = "",
) -> str:
    labels = f'<em class="x-label">{x_label}</em><em class="y-label">{y_label}</em>'
    return (
        f'<div class="plot {kind}"><div class="inside">{inside}</div>'
        f"{ticks('y', y)}{ticks('x', x)}{labels}{scale}</div>"
    )


def ticks(axis: str, marks: Sequence[Tick]) -> str:
    """Labels along an axis, `x` or `y`."""
    side = "left" if axis == "x" else "bottom"
    spans = "".join(f'<span style="{side}:{100 * place:.2f}%">{label}</span>' for place, label in marks)
    return f'<div class="ticks {axis}">{spans}</div>'


def _png(places: npt.NDArray[Any], colours: Colours) -> bytes:
    """Values from 0 to 1, row 0 at the bottom, as a PNG with a palette."""
    image = Image.fromarray(np.round(places[::-1] * 255).astype(np.uint8))
    image.putpalette(colours.tobytes())
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=3)
    return file.getvalue()


def _image(png: bytes, title: str, kind: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img class="{kind}" alt="{escape(title)}" src="data:image/png;base64,{data}">'

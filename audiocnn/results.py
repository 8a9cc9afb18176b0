"""Results -> the JSON that people and programs read."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from audiocnn.classifier import Result
from audiocnn.model.engine import Engine
from audiocnn.model.frontend import map_axes

FloatArray = npt.NDArray[np.float32]

MAX_WAVEFORM_VALUES = 8000


def render(result: Result, engine: Engine) -> dict[str, Any]:
    """The answer to one clip; optional parts as its options ask."""
    options = result.options
    answer: dict[str, Any] = {
        "predictions": [{"class": name, "confidence": round(p, 6)} for name, p in result.top()],
        "is_unknown": result.is_unknown,
        "is_silent": result.is_silent,
        "warnings": result.clip.warnings,
        "duration": round(result.clip.seconds, 3),
        "model": {"name": engine.config.name, "version": engine.config.version, "sha256": engine.sha256[:12]},
    }
    if options.explain:
        return answer | {"explanations": _explanations(result)}
    if options.reduce_payload:
        return {"predictions": answer["predictions"]}
    if options.windows or len(result.spans) > 1:
        answer["windows"] = _windows(result)
    if options.feature_maps != "none":
        draw = _json_map if options.feature_maps == "json" else _png_map
        answer["visualization"] = {name: draw(result.shown.outputs[name]) for name in options.layers}
    if options.evidence:
        name = options.class_name or result.config.class_names[int(result.probs.argmax())]
        answer["evidence"] = _evidence(result, name)
    if options.spectrogram:
        answer["input_spectrogram"] = _placed_map(result, result.shown.log_mel)
    if options.waveform:
        answer["waveform"] = {
            "values": _thin(result.clip.waveform),
            "sample_rate": result.clip.sample_rate,
            "duration": answer["duration"],
        }
    return answer


def _windows(result: Result) -> list[dict[str, Any]]:
    rows = []
    for (start, end), probs in zip(result.spans, result.window_probs, strict=True):
        top = int(probs.argmax())
        rows.append(
            {
                "start": round(start, 3),
                "end": round(end, 3),
                "class": result.config.class_names[top],
                "confidence": round(float(probs[top]), 6),
            }
        )
    return rows


def _explanations(result: Result) -> list[dict[str, Any]]:
    """Evidence of the class that was named, or of all that are predicted, surest first."""
    probs = dict(zip(result.config.class_names, result.probs, strict=True))
    names = [result.options.class_name] if result.options.class_name else [name for name, _ in result.top()]
    return [{"confidence": round(float(probs[name]), 6), **_evidence(result, name)} for name in names if name]


def _evidence(result: Result, name: str) -> dict[str, Any]:
    """What every cell of the window adds to the class's score: their mean and a constant are its logit."""
    values = result.shown.outputs["evidence"][result.config.class_names.index(name)]
    window = {"start": round(result.shown.start, 3), "end": round(result.shown.end, 3)}
    return {"class": name, **window, **_placed_map(result, values)}


def _placed_map(result: Result, values: FloatArray) -> dict[str, Any]:
    """A map with the Hz of its rows and the seconds of its columns; past `end` a short clip repeats."""
    hz, seconds = map_axes(values.shape, result.config.frontend)
    return _json_map(values) | {"hz": hz, "seconds": [round(result.shown.start + s, 4) for s in seconds]}


def _json_map(values: FloatArray) -> dict[str, Any]:
    return {"shape": list(values.shape), "values": np.round(values.astype(np.float64), 4).tolist()}


def _png_map(values: FloatArray) -> dict[str, Any]:
    """8-bit grey PNG, base64: grey 0 is `range[0]`, 255 is `range[1]`, row 0 on top."""
    low, high = float(values.min()), float(values.max())
    grey = np.round((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, format="PNG")
    return {
        "shape": list(values.shape),
        "range": [round(low, 6), round(high, 6)],
        "png": base64.b64encode(file.getvalue()).decode(),
    }


def _thin(waveform: FloatArray) -> list[float]:
    """At most 8000 values: the waveform itself, or minimum and maximum of equal stretches in turn.

    Taking every n-th sample instead would alias, and lose the peaks that a picture is looked at for.
    """
    if len(waveform) > MAX_WAVEFORM_VALUES:
        edges = np.linspace(0, len(waveform), MAX_WAVEFORM_VALUES // 2 + 1).astype(int)[:-1]
        low, high = np.minimum.reduceat(waveform, edges), np.maximum.reduceat(waveform, edges)
        waveform = np.stack([low, high], axis=1).ravel()
    return [round(float(value), 5) for value in waveform]

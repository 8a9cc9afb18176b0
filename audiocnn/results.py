"""The answer to a clip, and its JSON."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from audiocnn.arrays import FloatArray
from audiocnn.audio import Clip
from audiocnn.config import Config
from audiocnn.detections import Detection
from audiocnn.greyscale import to_grey
from audiocnn.levels import level_dbfs
from audiocnn.model.mel import map_axes
from audiocnn.model.spectrogram import ClipSpectrogram
from audiocnn.options import Options

MAX_WAVEFORM_VALUES = 8000
SILENCE_PEAK = 2.5e-4  # -72 dBFS, 8 steps of 16-bit audio: a clip below it is silent


class Prediction(NamedTuple):
    """A class and its calibrated confidence, 0 to 1."""

    label: str
    confidence: float


@dataclass(frozen=True)
class RepresentativeWindow:
    """The window with the highest confidence for one class; feature maps and evidence are of it."""

    start: float  # seconds
    end: float
    # (n_mels, num_frames), as the network saw it; None if neither it nor maps were asked for
    log_mel: FloatArray | None = None  # see `Engine.shown_log_mel`
    # evidence (k, h, w) and feature maps (h, w) that were asked for
    outputs: dict[str, FloatArray] = field(default_factory=dict)

    def to_dict(self) -> dict[str, float]:
        """`start` and `end` in seconds."""
        return {"start": round(self.start, 3), "end": round(self.end, 3)}


@dataclass(frozen=True, eq=False)
class WindowProbs:
    """One window of a stream."""

    start: float  # seconds
    end: float
    probs: FloatArray  # (num_classes,), calibrated, sums to 1
    outputs: dict[str, FloatArray]  # further outputs of the network that were asked for


@dataclass(frozen=True)
class StreamEnd:
    """The end of a file of a stream, after its windows."""

    seconds: float  # decoded
    peak: float  # absolute, 0 to 1
    warnings: list[str]
    error: Exception | None  # what ended the file early: `AudioError`, `OSError` or a fault of this library

    @property
    def is_silent(self) -> bool:
        """Whether the whole file is digital silence or close to it."""
        return self.peak < SILENCE_PEAK


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The answer to one clip.

    >>> audiocnn.load().predict("rain.wav")
    Result(label='rain', confidence=0.992, seconds=5.0)
    """

    config: Config
    options: Options
    # (num_classes,); sums to 1 with the default options, or to less if the model has a background class
    probs: FloatArray
    window_probs: FloatArray  # (num_windows, num_classes)
    spans: list[tuple[float, float]]  # start and end of every window, seconds
    clip: Clip
    shown: RepresentativeWindow
    model: dict[str, str]  # name, version, sha256 (12 digits)
    spectrogram: ClipSpectrogram | None = None  # of the whole clip, if it was asked for
    window_embeddings: FloatArray | None = None  # (num_windows, d); None: the model has none
    precision: str = "float32"  # of the served file, which predicts; maps and evidence are always float32
    detections: list[Detection] = field(default_factory=list)  # by start, if asked for

    def __repr__(self) -> str:
        label, confidence = self.label, round(self.confidence, 3)
        return f"Result({label=}, {confidence=}, seconds={self.clip.seconds:.1f})"

    @property
    def is_silent(self) -> bool:
        """Whether the whole clip is digital silence or close to it."""
        if self._mean_square >= SILENCE_PEAK**2:  # the peak is no lower: one pass decides most clips
            return False
        return bool(np.abs(self.clip.waveform).max() < SILENCE_PEAK)

    @property
    def level_dbfs(self) -> float:
        """RMS level in dB of full scale, -120 at least."""
        waveform = self.clip.waveform
        count = len(waveform)
        return level_dbfs(float(waveform.sum(dtype=np.float64)), self._mean_square * count, count)

    @cached_property
    def _mean_square(self) -> float:
        return float(np.dot(self.clip.waveform, self.clip.waveform)) / len(self.clip.waveform)

    @property
    def is_unknown(self) -> bool:
        """Whether the model is too unsure to name the sound."""
        threshold = self.config.unknown_threshold
        return threshold is not None and float(self.probs.max()) < threshold

    @property
    def predictions(self) -> list[Prediction]:
        """The classes to report by the options, most confident first."""
        ranked = [Prediction(self.config.class_names[i], float(self.probs[i])) for i in self._order]
        chosen = [
            p for p in ranked if self.options.allows(p.label) and p.confidence >= self.options.min_confidence
        ]
        return chosen[: self.options.top_k]

    @property
    def embedding(self) -> FloatArray | None:
        """The feature vector `(d,)`, the mean over the windows; None: the model has none."""
        return None if self.window_embeddings is None else self.window_embeddings.mean(axis=0)

    @cached_property
    def _order(self) -> list[int]:
        return [int(i) for i in np.argsort(-self.probs, kind="stable")]

    @property
    def label(self) -> str:
        """The most confident class, whatever the options leave out."""
        return self.config.class_names[self._order[0]]

    @property
    def confidence(self) -> float:
        """Calibrated probability of `label`, 0 to 1."""
        return float(self.probs[self._order[0]])

    def to_dict(self) -> dict[str, Any]:
        """The JSON reply; optional parts as the options ask."""
        options = self.options
        answer: dict[str, Any] = {
            "predictions": [{"class": name, "confidence": round(p, 6)} for name, p in self.predictions],
            "is_unknown": self.is_unknown,
            "is_silent": self.is_silent,
            "warnings": self.clip.warnings,
            "duration": round(self.clip.seconds, 3),
            "model": self.model,
        }
        if options.model_info:
            answer["model_info"] = self.config.public_dict()
        if options.explain:
            return answer | {"explanations": _explanations(self)}
        if options.reduce_payload:
            return {"predictions": answer["predictions"]}
        if options.map_outputs(self.config):
            answer["precision"] = {"predictions": self.precision, "pictures": "float32"}
        if options.detections:
            answer["detections"] = [detection.to_dict() for detection in self.detections]
        if options.windows or len(self.spans) > 1:
            answer["windows"] = _windows(self)
        if options.embedding and (embedding := self.embedding) is not None:
            answer["embedding"] = _numbers(embedding)
        return answer | self._pictures()

    def _pictures(self) -> dict[str, Any]:
        """Of the JSON reply the maps, spectrograms and waveform that the options ask for."""
        options = self.options
        answer: dict[str, Any] = {}
        if options.feature_maps != "none":
            draw = _json_map if options.feature_maps == "json" else _png_map
            answer["visualization"] = {
                name: draw(self.shown.outputs[name]) for name in options.layer_names(self.config)
            }
        if options.evidence:
            name = options.class_name or self.config.class_names[int(self.probs.argmax())]
            answer["evidence"] = _evidence(self, name)
        if options.spectrogram:
            assert self.shown.log_mel is not None
            draw = _png_map if options.spectrogram == "png" else _json_map
            log_mel = self.shown.log_mel
            answer["input_spectrogram"] = draw(log_mel) | _axes(self, log_mel)
        if options.feature_maps != "none" or options.evidence or options.spectrogram:
            answer["representative_window"] = self.shown.to_dict()
        if self.spectrogram is not None:
            answer["clip_spectrogram"] = _clip_map(self, self.spectrogram)
        if options.waveform:
            answer["waveform"] = {
                "values": _thin(self.clip.waveform),
                "sample_rate": self.clip.sample_rate,
                "duration": round(self.clip.seconds, 3),
            }
        return answer


def _windows(result: Result) -> list[dict[str, Any]]:
    """Span and top class of every window; with `windows_top_k` above 1 its `predictions` too, and the
    embedding if it and `windows` are asked for."""
    rows, count = [], result.options.windows_top_k
    for (start, end), probs in zip(result.spans, result.window_probs, strict=True):
        order = np.argsort(-probs, kind="stable")[:count]
        ranked = [
            {"class": result.config.class_names[n], "confidence": round(float(probs[n]), 6)} for n in order
        ]
        row: dict[str, Any] = {"start": round(start, 3), "end": round(end, 3), **ranked[0]}
        rows.append(row | {"predictions": ranked} if count > 1 else row)
    if result.options.gives_window_embeddings and result.window_embeddings is not None:
        for row, embedding in zip(rows, result.window_embeddings, strict=True):
            row["embedding"] = _numbers(embedding)
    return rows


def _numbers(values: FloatArray) -> list[float]:
    numbers: list[float] = np.round(values.astype(np.float64), 6).tolist()
    return numbers


def _explanations(result: Result) -> list[dict[str, Any]]:
    """Evidence of the class that was named, or of all that are predicted, surest first."""
    probs = dict(zip(result.config.class_names, result.probs, strict=True))
    names = (
        [result.options.class_name] if result.options.class_name else [name for name, _ in result.predictions]
    )
    return [{"confidence": round(float(probs[name]), 6), **_evidence(result, name)} for name in names if name]


def _evidence(result: Result, name: str) -> dict[str, Any]:
    """What every cell of the window adds to the class's score: their mean and a constant are its logit."""
    values = result.shown.outputs["evidence"][result.config.class_names.index(name)]
    return {"class": name, **result.shown.to_dict(), **_json_map(values), **_axes(result, values)}


def _axes(result: Result, values: FloatArray) -> dict[str, Any]:
    """The Hz of a map's rows and the seconds of its columns; past `end` a short clip repeats."""
    hz, seconds = map_axes(values.shape, result.config.frontend)
    return {"hz": hz, "seconds": [round(result.shown.start + s, 4) for s in seconds]}


def _clip_map(result: Result, spectrogram: ClipSpectrogram) -> dict[str, Any]:
    """Values in dB, one decimal, with the Hz of the rows and the seconds of the columns."""
    values = spectrogram.decibels.astype(np.float64)
    hz, _ = map_axes((len(values), 1), result.config.frontend)
    columns = range(values.shape[1])
    seconds = [round(result.options.start + n * spectrogram.column_seconds, 4) for n in columns]
    return {"shape": list(values.shape), "values": np.round(values, 1).tolist(), "hz": hz, "seconds": seconds}


def _json_map(values: FloatArray) -> dict[str, Any]:
    return {"shape": list(values.shape), "values": np.round(values.astype(np.float64), 4).tolist()}


def _png_map(values: FloatArray) -> dict[str, Any]:
    """8-bit grey PNG, base64: grey 0 is `range[0]`, 255 is `range[1]`, row 0 on top."""
    grey, low, high = to_grey(values)
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

"""Waveform models: ONNX files from waveforms to logits or probabilities, also ones exported elsewhere.

Such a file has one input, `waveform (batch, num_samples)` float32 in [-1, 1], and an output `logits` or
`probs`, `(batch, num_classes)`; an output `embedding (batch, d)` is optional. What it cannot say itself is in
its metadata, if this project wrote it, or in a JSON file beside it, `model.json` for `model.onnx`:

    {"sample_rate": 16000, "clip_seconds": 5.0, "class_names": ["door", "bell"], "activation": "softmax"}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from audiocnn.arrays import FloatArray
from audiocnn.config import Config, FrontendConfig
from audiocnn.errors import ModelFileError

INPUT = "waveform"
REQUIRED = ("sample_rate", "clip_seconds", "class_names")
OPTIONAL = ("activation", "name", "version", "temperature", "unknown_threshold")
_SMALLEST = 1e-12  # probability whose logarithm is taken
_HOP_SECONDS = 0.02  # of the spectrogram that is drawn
_N_FFT_AT_48_KHZ = 2048


class Runnable(Protocol):
    """A loaded ONNX file; `shapes` are those of its inputs and outputs, None where any size will do."""

    shapes: dict[str, list[int | None]]

    def run(self, inputs: FloatArray, outputs: Sequence[str]) -> list[FloatArray]:
        """The named outputs."""
        ...


class WaveformGraph:
    """See `audiocnn.model.engine.Graph`: outputs `logits`, and `embedding` if the file has one."""

    takes_waveform = True
    uses_torch = False

    def __init__(self, file: Runnable, config: Config, metadata: dict[str, str]) -> None:
        """Raises `ModelFileError` if the shapes of the file do not fit its description."""
        self.metadata = metadata
        self._file, self._config = file, config
        self._source = "logits" if "logits" in file.shapes else "probs"
        self.output_names = ("logits", *(["embedding"] if "embedding" in file.shapes else []))
        if problems := mismatches(file.shapes, config):
            raise ModelFileError("\n".join(problems))

    def run(self, inputs: FloatArray, outputs: Sequence[str]) -> list[FloatArray]:
        """See `Graph`. A file with a batch size of 1 is run once for each window."""
        wanted = [self._source if name == "logits" else name for name in outputs]
        is_single = self._file.shapes[INPUT][0] == 1
        batches = np.split(inputs, len(inputs)) if is_single else [inputs]
        parts = [self._file.run(batch, wanted) for batch in batches]
        arrays = [np.concatenate(same) for same in zip(*parts, strict=True)]
        return [
            self._as_logits(array) if name == "probs" else array
            for name, array in zip(wanted, arrays, strict=True)
        ]

    def _as_logits(self, probs: FloatArray) -> FloatArray:
        """The logits that the configured activation and temperature turn back into these probabilities."""
        logits = np.log(np.maximum(probs, _SMALLEST))
        if self._config.activation == "sigmoid":
            logits = logits - np.log(np.maximum(1 - probs, _SMALLEST))
        elif self._config.has_background:  # whose logit is 0, and whose probability is the rest
            logits = logits - np.log(np.maximum(1 - probs.sum(axis=-1, keepdims=True), _SMALLEST))
        return np.asarray(logits * self._config.temperature, np.float32)


def mismatches(shapes: dict[str, list[int | None]], config: Config) -> list[str]:
    """What does not fit, a sentence each with what to do."""
    problems = [*interface_problems(shapes)]
    if problems:
        return problems
    samples, num_classes = config.frontend.window_samples, len(config.class_names)
    if shapes[INPUT][1] not in (None, samples):
        problems.append(
            f"the input takes {shapes[INPUT][1]} samples, but clip_seconds x sample_rate is {samples}: "
            "correct clip_seconds or sample_rate"
        )
    source = "logits" if "logits" in shapes else "probs"
    if shapes[source][-1] not in (None, num_classes):
        problems.append(
            f"the output {source} has {shapes[source][-1]} values, but class_names has {num_classes} names"
        )
    return problems


def interface_problems(shapes: dict[str, list[int | None]]) -> list[str]:
    """What is wrong with the names and ranks of inputs and outputs, a sentence each."""
    problems = []
    if len(shapes.get(INPUT, [])) != 2:
        problems.append(
            f"there is no input {INPUT!r} of shape (batch, num_samples), only {_listed(shapes)}: export with "
            "input_names=['waveform'], and put what makes a spectrogram into the model"
        )
    elif shapes[INPUT][0] not in (None, 1):
        problems.append(f"the batch size is fixed to {shapes[INPUT][0]}: make it dynamic, or 1")
    if not {"logits", "probs"} & shapes.keys():
        problems.append(
            f"there is no output 'logits' or 'probs' of shape (batch, num_classes), only {_listed(shapes)}: "
            "export with output_names=['logits']"
        )
    return problems


def _listed(shapes: dict[str, list[int | None]]) -> str:
    texts = {name: ", ".join("any" if n is None else str(n) for n in shape) for name, shape in shapes.items()}
    return "; ".join(f"{name} ({text})" for name, text in texts.items())


def description_path(model: Path) -> Path:
    """The JSON file beside an ONNX file."""
    return model.with_suffix(".json")


def read_description(model: Path) -> Config:
    """The configuration from the JSON beside an ONNX file.

    Raises `ModelFileError` that says what is missing.
    """
    path = description_path(model)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFileError(
            f"{model} has no description: write {path.name} beside it with {', '.join(REQUIRED)} and, if it "
            "is not softmax, activation"
        ) from error
    except ValueError as error:
        raise ModelFileError(f"{path} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelFileError(f"{path} must be an object with {', '.join(REQUIRED)}")
    if missing := [key for key in REQUIRED if key not in raw]:
        raise ModelFileError(f"{path} lacks {', '.join(missing)}")
    if unknown := sorted(set(raw) - {*REQUIRED, *OPTIONAL}):
        raise ModelFileError(f"{path} has unknown keys {', '.join(unknown)}; there are {', '.join(OPTIONAL)}")
    return _config(raw, path)


def _config(raw: dict[str, Any], path: Path) -> Config:
    own = {key: raw[key] for key in OPTIONAL if key in raw}
    try:
        frontend = display_frontend(raw["sample_rate"], raw["clip_seconds"])
        config = Config(class_names=raw["class_names"], frontend=frontend, model=None, **own)
        return Config.from_json(config.to_json())  # which checks every value
    except (ModelFileError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: {error}") from error


def display_frontend(sample_rate: int, clip_seconds: float) -> FrontendConfig:
    """The window of a waveform model, and a spectrogram of it for people: 20 ms a column."""
    if not isinstance(sample_rate, int) or sample_rate < 1000:
        raise ModelFileError(f"sample_rate is {sample_rate!r}; it must be a whole number of Hz from 1000")
    n_fft = _N_FFT_AT_48_KHZ
    while n_fft * 48_000 < _N_FFT_AT_48_KHZ * sample_rate:
        n_fft *= 2
    return FrontendConfig(
        sample_rate=sample_rate,
        clip_seconds=clip_seconds,
        n_fft=n_fft,
        win_length=n_fft,
        hop_length=round(_HOP_SECONDS * sample_rate),
        f_max=sample_rate / 2,
    )

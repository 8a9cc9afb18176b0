"""Backbones: frozen networks from windows of sound to features, by name or by file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from audiocnn.arrays import FloatArray
from audiocnn.backbone import aisfx
from audiocnn.backbone.network import SAMPLE_RATE
from audiocnn.backbone.weights import ATTRIBUTION, LICENCE
from audiocnn.config import FrontendConfig
from audiocnn.errors import ModelFileError
from audiocnn.model.engine import Engine, OnnxGraph
from audiocnn.model.loading import find_model, float32_of, load_engine

NAMES = ("aisfx", "released")
_BATCH = 4
_RELEASED_ATTRIBUTION = (
    "AudioCNN's released weights, trained on ESC-50 (K. J. Piczak, ESC: Dataset for Environmental Sound "
    "Classification, ACM Multimedia 2015)"
)


class Backbone:
    """A network that is used for its features. `path` is its ONNX file, with an output `embedding`.

    `licence_id` is the Hub's name of a licence that what is made with it inherits; empty: it inherits none.
    """

    def __init__(self, name: str = "aisfx", *, threads: int | None = None, cache: Path | None = None) -> None:
        """`name` is `aisfx`, `released`, or the path of an ONNX model of this project with an embedding.

        `cache` keeps what is downloaded (`weights.cache_folder()`). Raises `ModelFileError`.
        """
        self.name, self._engine, self._graph = name, None, None
        if name == "aisfx":
            self.path = aisfx.onnx_file(cache)
            self.frontend = FrontendConfig(sample_rate=SAMPLE_RATE)
            self.attribution, self.licence, self.licence_id = ATTRIBUTION, LICENCE, ""
            self._graph = OnnxGraph(self.path, "cpu", threads)
            return
        self._engine = load_engine(_released() if name == "released" else Path(name), threads=threads)
        if self._engine.path.suffix != ".onnx" or "embedding" not in self._engine.served_outputs:
            raise ModelFileError(f"{self._engine.path} is no ONNX file with an output embedding")
        self.path, self.frontend = self._engine.path, self._engine.config.frontend
        self.attribution = _RELEASED_ATTRIBUTION if name == "released" else str(self.path)
        self.licence = "CC BY-NC 3.0: non-commercial use" if name == "released" else "that of its weights"
        self.licence_id = "cc-by-nc-3.0" if name == "released" else ""

    def features(self, windows: FloatArray) -> FloatArray:
        """Windows `(n, window_samples)` -> features float32 `(n, d)`."""
        parts = [self._run(windows[first : first + _BATCH]) for first in range(0, len(windows), _BATCH)]
        return np.concatenate(parts)

    def _run(self, windows: FloatArray) -> FloatArray:
        if self._graph is not None:
            return self._graph.run(windows, ["embedding"])[0]
        assert isinstance(self._engine, Engine)
        return self._engine.run_windows(windows, ["embedding"])["embedding"]

    @property
    def takes_waveform(self) -> bool:
        """Whether its input is the waveform, not a log-mel."""
        return self._graph is not None or bool(self._engine and self._engine.takes_waveform)

    @property
    def fingerprint(self) -> str:
        """Of its stored front end; empty if it takes waveforms."""
        return self._engine.config.fingerprint if self._engine else ""

    def metadata(self) -> dict[str, str]:
        """What the file says about itself, such as its stored front end."""
        return dict(self._engine.metadata) if self._engine else {}


def _released() -> Path:
    """The released model in float32 if it is here, else in int8."""
    path = find_model()
    return float32 if (float32 := float32_of(path)).is_file() else path

"""The network `aisfx` as one ONNX file from waveforms to features, made once and kept in the user's cache."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from audiocnn.backbone.network import HOP_LENGTH, SAMPLE_RATE, BackboneFrontend, BackboneNetwork, pooled
from audiocnn.backbone.weights import WHEEL_SHA256, cache_folder, load_weights
from audiocnn.files import replacing
from audiocnn.model.conv_stft import conv_power, dft_basis
from audiocnn.model.onnx_file import save

_REVISION = 1  # raise it when the graph changes


class ConvFrontend(BackboneFrontend):
    """`BackboneFrontend` with a convolution in place of the FFT."""

    basis: Tensor  # (2 * bins, 1, n_fft)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("basis", dft_basis(self.window), persistent=False)

    def power(self, waveform: Tensor) -> Tensor:
        """See `BackboneFrontend.power`."""
        return conv_power(waveform, self.basis, HOP_LENGTH)


class WaveformFeatures(nn.Module):
    """Waveform `(b, n)` at 44.1 kHz in [-1, 1] -> features `(b, 5952)`, see `network.pooled`."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.frontend, self.network = ConvFrontend(), BackboneNetwork()
        self.network.load_state_dict(weights)

    def forward(self, waveform: Tensor) -> Tensor:
        """See the class."""
        return pooled(self.network(self.frontend(waveform)))


def onnx_path(cache: Path | None = None) -> Path:
    """Where `onnx_file` keeps the file."""
    return (cache or cache_folder()) / f"aisfx-{WHEEL_SHA256[:12]}-{_REVISION}.onnx"


def onnx_file(cache: Path | None = None) -> Path:
    """The file, `waveform (b, n)` -> `embedding (b, 5952)`; written the first time, which needs the weights.

    `cache` is the folder that keeps it (`weights.cache_folder()`). Raises `ModelFileError` as `load_weights`.
    """
    path = onnx_path(cache)
    if not path.is_file():
        export(load_weights(cache), path)
    return path


def export(weights: dict[str, Tensor], path: Path) -> None:
    """Write the ONNX file of these weights."""
    dim = torch.export.Dim
    with replacing(path) as part:
        save(
            WaveformFeatures(weights).eval(),
            {"waveform": torch.zeros(2, 5 * SAMPLE_RATE)},
            {"waveform": {0: dim("batch"), 1: dim("num_samples", min=SAMPLE_RATE // 2)}},
            ["embedding"],
            {},
            part,
        )

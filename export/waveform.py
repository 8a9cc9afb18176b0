"""Export a checkpoint to one ONNX file from the waveform to the probabilities.

`audiocnn-waveform.onnx`: `waveform (batch, num_samples)` float32 at `sample_rate` Hz in [-1, 1] -> `probs
(batch, num_classes)` and `embedding (batch, 8 * width)`. A waveform shorter than a window is repeated; of a
longer one the first window counts. The Fourier transform is a convolution with sines and cosines, which every
ONNX runtime has. It is slower than an FFT: the server computes the log-mel outside the graph.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from audiocnn import command
from audiocnn.config import Config
from audiocnn.files import replacing
from audiocnn.model import checkpoint
from audiocnn.model.conv_stft import conv_power, dft_basis
from audiocnn.model.engine import pack_metadata
from audiocnn.model.frontend import LogMel
from audiocnn.model.network import AudioCNN, WithEmbedding
from audiocnn.model.onnx_file import save
from export import common
from export.common import NAME

FILE = f"{NAME}-waveform.onnx"


class ConvLogMel(LogMel):
    """The front end with the same stored arrays, and a convolution in place of the FFT."""

    basis: Tensor  # (2 * bins, 1, n_fft)

    def __init__(self, log_mel: LogMel) -> None:
        super().__init__(log_mel.config)
        self.load_state_dict(log_mel.state_dict())
        margin = self.config.n_fft - self.config.win_length
        window = functional.pad(self.window.double(), (margin // 2, margin - margin // 2))
        self.register_buffer("basis", dft_basis(window / window.sum()), persistent=False)

    def power(self, waveform: Tensor) -> Tensor:
        """See `LogMel.power`."""
        return conv_power(waveform, self.basis, self.config.hop_length)


class WaveformModel(nn.Module):
    """Waveform `(b, num_samples)` -> calibrated probabilities `(b, k)` and embedding `(b, c)`."""

    def __init__(self, config: Config, log_mel: LogMel, model: AudioCNN) -> None:
        super().__init__()
        self.log_mel, self.model = ConvLogMel(log_mel), WithEmbedding(model)
        self.window, self.temperature = config.frontend.window_samples, config.temperature
        self.has_sigmoid = config.activation == "sigmoid"

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """See the class; the module says what happens to other lengths than a window."""
        length = torch.full((1,), waveform.shape[1])  # a tensor: the exporter has no remainder by an int
        first = waveform[:, torch.arange(self.window) % length]
        logits, embedding = self.model(self.log_mel(first))
        scaled = logits / self.temperature
        probs = torch.sigmoid(scaled) if self.has_sigmoid else torch.softmax(scaled, dim=1)
        return probs, embedding


def export(folder: Path, out: Path) -> Path:
    """Write the file; returns its path. `export.parity` compares it with PyTorch."""
    config, log_mel, model = checkpoint.load(folder)
    batch, num_samples = torch.export.Dim("batch"), torch.export.Dim("num_samples", min=1)
    with replacing(out / FILE) as part:
        save(
            WaveformModel(config, log_mel, model).eval(),
            {"waveform": torch.zeros(2, config.frontend.window_samples - 1)},
            {"waveform": {0: batch, 1: num_samples}},
            ["probs", "embedding"],
            pack_metadata(config, log_mel.arrays()),
            part,
            optimize=False,
        )
    return out / FILE


@command.entry_point(common.folders("checkpoint", "out"), "--checkpoint checkpoints/esc50 --out model_store")
def main(args: argparse.Namespace) -> None:
    """Export the checkpoint of the command line."""
    print(common.described(export(args.checkpoint, args.out)))


if __name__ == "__main__":
    sys.exit(main())

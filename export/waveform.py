"""Checkpoint -> one file from the waveform to the probabilities: `python -m export.waveform`.

`audiocnn-waveform.onnx`: `waveform (batch, num_samples)` float32 at `sample_rate` -> `probs (batch,
num_classes)` and `embedding (batch, 8 * width)`. Shorter clips are repeated until they fill one window,
and of longer ones the first window counts. The Fourier transform is a convolution with sines and
cosines, which any ONNX runtime has and which is slower than an FFT: our server computes the log-mel
outside the graph.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from audiocnn.config import Config
from audiocnn.errors import ModelFileError
from audiocnn.model import checkpoint
from audiocnn.model.engine import pack_metadata
from audiocnn.model.frontend import LogMel
from audiocnn.model.network import AudioCNN, WithEmbedding
from export.common import NAME
from export.onnx import save

FILE = f"{NAME}-waveform.onnx"


class ConvLogMel(LogMel):
    """The front end with the same stored arrays, its Fourier transform a convolution."""

    basis: Tensor

    def __init__(self, log_mel: LogMel) -> None:
        super().__init__(log_mel.config)
        self.load_state_dict(log_mel.state_dict())
        n_fft = self.config.n_fft
        margin = n_fft - self.config.win_length
        window = functional.pad(self.window.double(), (margin // 2, margin - margin // 2))
        turns = torch.outer(torch.arange(n_fft // 2 + 1), torch.arange(n_fft)) % n_fft  # exact
        angle = 2 * math.pi / n_fft * turns.double()
        basis = torch.cat([angle.cos(), angle.sin()]) * window / window.sum()
        self.register_buffer("basis", basis.float()[:, None], persistent=False)  # (2 * bins, 1, n_fft)

    def power(self, waveform: Tensor) -> Tensor:
        """See `LogMel.power`."""
        margin = self.config.n_fft // 2
        padded = functional.pad(waveform[:, None], (margin, margin))
        cosine, sine = functional.conv1d(padded, self.basis, stride=self.config.hop_length).chunk(2, dim=1)
        return cosine.square() + sine.square()


class WaveformModel(nn.Module):
    """Waveform -> calibrated probabilities and the embedding."""

    def __init__(self, config: Config, log_mel: LogMel, model: AudioCNN) -> None:
        super().__init__()
        self.log_mel, self.model = ConvLogMel(log_mel), WithEmbedding(model)
        self.window, self.temperature = config.frontend.window_samples, config.temperature

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """`(b, num_samples)` -> `(b, k)` and `(b, c)`; see the module for what is not one window long."""
        length = torch.full((1,), waveform.shape[1])  # a tensor: the exporter knows no remainder by a number
        first = waveform[:, torch.arange(self.window) % length]
        logits, embedding = self.model(self.log_mel(first))
        return torch.softmax(logits / self.temperature, dim=1), embedding


def export(folder: Path, out: Path) -> Path:
    """Write `audiocnn-waveform.onnx`; its parity is a gate of `export.parity`."""
    config, log_mel, model = checkpoint.load(folder)
    module = WaveformModel(config, log_mel, model).eval()
    example = torch.zeros(2, config.frontend.window_samples - 1)
    out.mkdir(parents=True, exist_ok=True)
    part = out / f"{NAME}-waveform.part.onnx"
    save(
        module,
        {"waveform": example},
        {"waveform": {0: torch.export.Dim("batch"), 1: torch.export.Dim("num_samples", min=1)}},
        ["probs", "embedding"],
        pack_metadata(config, log_mel),
        part,
        optimize=False,
    )
    os.replace(part, out / FILE)
    return out / FILE


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m export.waveform", description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/esc50"), help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("model_store"), help="(%(default)s)")
    args = parser.parse_args()
    try:
        path = export(args.checkpoint, args.out)
    except ModelFileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

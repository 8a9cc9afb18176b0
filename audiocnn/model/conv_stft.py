"""The short-time Fourier transform as a convolution: ONNX runtimes without an FFT can run it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def dft_basis(window: Tensor) -> Tensor:
    """Cosines, then sines, of a real DFT times a window `(n_fft,)`: float32 `(2 * bins, 1, n_fft)`."""
    n_fft = len(window)
    turns = torch.outer(torch.arange(n_fft // 2 + 1), torch.arange(n_fft)) % n_fft  # exact
    angle = 2 * math.pi / n_fft * turns.double()
    return (torch.cat([angle.cos(), angle.sin()]) * window.double()).float()[:, None]


def conv_power(waveform: Tensor, basis: Tensor, hop_length: int) -> Tensor:
    """Power spectrum `(b, bins, num_frames)` of waveforms `(b, n)`, centred, zeros beyond the ends."""
    margin = basis.shape[2] // 2
    padded = functional.pad(waveform[:, None], (margin, margin))
    cosine, sine = functional.conv1d(padded, basis, stride=hop_length).chunk(2, dim=1)
    return cosine.square() + sine.square()

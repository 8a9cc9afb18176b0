"""Views: deterministic changes of a clip, such as gain or speed; their features can be cached.

A view takes and returns waveforms float32 `(b, n)` at 44.1 kHz in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from audiocnn.backbone.network import SAMPLE_RATE

View = Callable[[Tensor], Tensor]


def _gain(decibels: float) -> View:
    """A gain in dB, then 16 bits."""
    factor = 10 ** (decibels / 20)
    return lambda waveform: (waveform * factor * 32767).round().clamp(-32768, 32767) / 32768


def _normalised(waveform: Tensor) -> Tensor:
    """The peak at full scale; silence stays silent."""
    return waveform / waveform.abs().amax(dim=1, keepdim=True).clamp_min(1e-4)


def _band_limit(hertz: float) -> View:
    """A low-pass filter in Hz."""

    def limit(waveform: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(waveform)
        spectrum[:, round(hertz * waveform.shape[1] / SAMPLE_RATE) :] = 0
        limited: Tensor = torch.fft.irfft(spectrum, n=waveform.shape[1])
        return limited

    return limit


def _speed(factor: float) -> View:
    """Another speed and pitch: faster above 1. The length changes."""
    return lambda waveform: functional.interpolate(
        waveform[:, None], size=round(waveform.shape[1] / factor), mode="linear"
    )[:, 0]


def _shift(share: float) -> View:
    """A circular shift by a fraction of the length."""
    return lambda waveform: waveform.roll(round(share * waveform.shape[1]), dims=1)


VIEWS: dict[str, View] = {
    "clean": lambda waveform: waveform,
    "slower": _speed(0.88),
    "faster": _speed(1.14),
    "peak": _normalised,
    "gain-20dB": _gain(-20),
    "8kHz": _band_limit(8_000),
    "shift": _shift(0.37),
    "4kHz": _band_limit(4_000),
}
DEFAULT_VIEWS = ("clean", "slower", "faster", "peak", "gain-20dB")  # measured best, docs/training.md

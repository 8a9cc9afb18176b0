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


def _noise(decibels: float) -> View:
    """White noise at a signal-to-noise ratio in dB, always the same."""

    def add(waveform: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(waveform.shape[1], generator=generator).to(waveform)
        level = waveform.square().mean(dim=1, keepdim=True).sqrt() * 10 ** (-decibels / 20)
        return (waveform + level * noise).clamp(-1, 1)

    return add


def _tile(seconds: float) -> View:
    """The loudest so many seconds, repeated to the full length."""

    def tile(waveform: Tensor) -> Tensor:
        size = min(round(seconds * SAMPLE_RATE), waveform.shape[1])
        energy = functional.pad(waveform.double().square().cumsum(dim=1), (1, 0))
        first = (energy[:, size:] - energy[:, :-size]).argmax(dim=1, keepdim=True)
        return waveform.gather(1, first + torch.arange(waveform.shape[1], device=waveform.device) % size)

    return tile


def _chain(*views: View) -> View:
    """One view after another."""

    def chain(waveform: Tensor) -> Tensor:
        for view in views:
            waveform = view(waveform)
        return waveform

    return chain


VIEWS: dict[str, View] = {
    "clean": lambda waveform: waveform,
    "slower": _speed(0.88),
    "faster": _speed(1.14),
    "peak": _normalised,
    "gain-20dB": _gain(-20),
    "8kHz": _band_limit(8_000),
    "shift": _shift(0.37),
    "4kHz": _band_limit(4_000),
    "far": _chain(_shift(0.37), _band_limit(8_000), _noise(20), _gain(-20)),
    "short": _chain(_tile(1.5), _normalised),
}
TEACH_VIEWS = (
    "clean",
    "gain-20dB",
    "far",
    "short",
)  # of `audiocnn teach`: the first, or as many as the time allows
DEFAULT_VIEWS = ("clean", "slower", "faster", "peak", "gain-20dB")  # measured best, docs/training.md

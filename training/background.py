"""Synthetic sounds of no class, with equal targets for all classes.

Noise, tones, clicks, chirps and shuffled grains are drawn for each batch. Speech (`espeak-ng`) and music
(`fluidsynth` with a General MIDI sound font) are rendered once per run if these programs are installed, see
`training.synthesisers`. Waveforms are float32 `(count, n)`; draws come from torch's global generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from training.augment import uniform, unit_noise

_HIGHEST_DB, _LOWEST_DB = 0.0, -40.0


class Background:
    """Draws sounds at `sample_rate` Hz; `rendered` are speech and music, int16 `(m, n)`, m = 0 for none."""

    def __init__(self, sample_rate: int, rendered: Tensor | None = None) -> None:
        self.sample_rate = sample_rate
        self.rendered = rendered if rendered is not None and len(rendered) else None

    def replace(self, waveform: Tensor, probability: float) -> tuple[Tensor, Tensor]:
        """Replace clips of `(b, n)` with this probability; also returns which were replaced: bool `(b,)`."""
        replaced = torch.rand(len(waveform), device=waveform.device) < probability
        rows = replaced.nonzero()[:, 0]
        if len(rows):
            waveform = waveform.index_copy(0, rows, torch.cat([self._draw(waveform) for _ in rows]))
        return waveform, replaced

    def _draw(self, waveform: Tensor) -> Tensor:
        """One sound `(1, n)` of a random kind, its peak at -40 to 0 dB full scale."""
        kinds: list[Callable[[Tensor, int], Tensor]] = [noise, tones, clicks, chirps, grains]
        if self.rendered is not None:
            kinds += [self._rendered] * 3  # speech and music are the most frequent sounds of no class
        kind = kinds[int(torch.randint(len(kinds), (1,)))]
        sound = kind(waveform, self.sample_rate)
        peak = sound.abs().amax(dim=1, keepdim=True).clamp_min(1e-6)
        return sound / peak * torch.pow(10.0, uniform(sound, _LOWEST_DB, _HIGHEST_DB) / 20)

    def _rendered(self, waveform: Tensor, sample_rate: int) -> Tensor:
        assert self.rendered is not None
        row = int(torch.randint(len(self.rendered), (1,)))
        shift = int(torch.randint(waveform.shape[1], (1,)))
        return (self.rendered[row : row + 1].to(waveform.device).float() / 32768).roll(shift, dims=1)


def noise(like: Tensor, sample_rate: int) -> Tensor:
    """Nearly white noise of random crest factor, see `augment.unit_noise`."""
    return unit_noise(like[:1])


def tones(like: Tensor, sample_rate: int) -> Tensor:
    """One to four sines from 60 Hz to 12 kHz, switched on and off regularly half of the time."""
    count = int(torch.randint(1, 5, (1,)))
    seconds = _seconds(like, sample_rate)
    hertz = torch.exp(torch.empty(count, 1, device=like.device).uniform_(math.log(60), math.log(12_000)))
    strength = torch.rand(count, 1, device=like.device) + 0.1
    sound = (strength * torch.sin(2 * math.pi * hertz * seconds)).sum(dim=0, keepdim=True)
    period = float(torch.empty(1).uniform_(0.1, 3.0))
    is_on = (seconds / period) % 1 < float(torch.empty(1).uniform_(0.2, 2.0))
    return sound * is_on


def chirps(like: Tensor, sample_rate: int) -> Tensor:
    """A sine that sweeps over up to five octaves periodically."""
    seconds = _seconds(like, sample_rate)
    low = math.exp(float(torch.empty(1).uniform_(math.log(100), math.log(3_000))))
    octaves = float(torch.empty(1).uniform_(-2.0, 5.0))
    period = float(torch.empty(1).uniform_(0.05, 5.0))
    hertz = (low * torch.exp2(octaves * ((seconds / period) % 1))).clamp_max(0.45 * sample_rate)
    return torch.sin(2 * math.pi * torch.cumsum(hertz.double(), dim=1) / sample_rate).float()


def clicks(like: Tensor, sample_rate: int) -> Tensor:
    """Bursts of up to 3 ms at random moments, 0.5 to 50 a second."""
    rate = math.exp(float(torch.empty(1).uniform_(math.log(0.5), math.log(50))))
    impulses = (torch.rand_like(like[:1]) < rate / sample_rate) * torch.rand_like(like[:1])
    decay = float(torch.empty(1).uniform_(0.0001, 0.001))
    length = round(0.003 * sample_rate)
    fade = torch.exp(-torch.arange(length, device=like.device) / (decay * sample_rate))
    burst = torch.randn(1, length, device=like.device) * fade
    product = torch.fft.rfft(impulses) * torch.fft.rfft(burst, n=like.shape[1])
    sound: Tensor = torch.fft.irfft(product, n=like.shape[1])
    return sound


def grains(waveform: Tensor, sample_rate: int) -> Tensor:
    """Pieces of 20 to 120 ms from all clips of the batch in random order."""
    batch, length = waveform.shape
    size = min(length, round(sample_rate * float(torch.empty(1).uniform_(0.02, 0.12))))
    count = math.ceil(length / size)
    clip = torch.randint(batch, (count, 1), device=waveform.device)
    first = torch.randint(length - size + 1, (count, 1), device=waveform.device)
    pieces = waveform[clip, first + torch.arange(size, device=waveform.device)]
    pieces = pieces / waveform.abs().amax(dim=1).clamp_min(1e-6)[clip]
    fade = torch.hann_window(size, periodic=False, device=waveform.device).sqrt()
    return (pieces * fade).flatten()[None, :length]


def _seconds(like: Tensor, sample_rate: int) -> Tensor:
    return torch.arange(like.shape[1], device=like.device)[None] / sample_rate

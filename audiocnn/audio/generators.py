"""Sounds of no class from arithmetic: noise, tones, hums, clicks, chirps and shuffled grains.

Waveforms are float32 `(count, n)`; draws come from torch's global generator, `like` gives length and device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def uniform(like: Tensor, low: float, high: float) -> Tensor:
    """A uniform random number per clip: `(b, 1)`."""
    return torch.empty(len(like), 1, device=like.device).uniform_(low, high)


def unit_noise(like: Tensor) -> Tensor:
    """Nearly white noise with an RMS of 1: `(b, n)`.

    Its power falls or rises by up to 1.5 dB an octave (steeper slopes are close to rain, wind and sea). The
    distribution of its samples varies from normal over uniform to hard clipped: the front end normalises
    peaks, so the crest factor decides how loud the noise becomes.
    """
    spectrum = torch.fft.rfft(torch.randn_like(like))
    octaves = torch.arange(1, spectrum.shape[1] + 1, device=like.device).log2()
    slope = uniform(like, -0.25, 0.25)  # log2 of the amplitude per octave: 6 dB each
    noise = torch.fft.irfft(spectrum * torch.exp2(octaves * slope), n=like.shape[1])
    noise = noise / noise.square().mean(dim=1, keepdim=True).sqrt()
    noise = torch.erf(noise * torch.pow(10.0, uniform(like, -1.0, 0.5)))  # uniform at a gain of 0.7
    rms: Tensor = noise.square().mean(dim=1, keepdim=True).sqrt()
    return noise / rms


def noise(like: Tensor, sample_rate: int) -> Tensor:
    """Nearly white noise of random crest factor, see `unit_noise`."""
    return unit_noise(like[:1])


def tones(like: Tensor, sample_rate: int) -> Tensor:
    """One to four sines from 60 Hz to 12 kHz, switched on and off regularly half of the time."""
    count = int(torch.randint(1, 5, (1,)))
    seconds = _seconds(like, sample_rate)
    hertz = torch.exp(torch.empty(count, 1, device=like.device).uniform_(math.log(60), math.log(12_000)))
    strength = torch.rand(count, 1, device=like.device) + 0.1
    sound = (strength * torch.sin(2 * math.pi * hertz * seconds)).sum(dim=0, keepdim=True)
    period = draw(0.1, 3.0)
    is_on = (seconds / period) % 1 < draw(0.2, 2.0)
    return sound * is_on


def hums(like: Tensor, sample_rate: int) -> Tensor:
    """A machine in another room: twelve harmonics of 20 to 400 Hz and low-passed noise, swelling slowly."""
    seconds = _seconds(like, sample_rate)
    number = torch.arange(1, 13, device=like.device)[:, None]
    hertz = _log_uniform(20, 400)
    strength = torch.rand(12, 1, device=like.device) / number ** draw(0.0, 2.0)
    phase = 2 * math.pi * torch.rand(12, 1, device=like.device)
    hum = (strength * torch.sin(2 * math.pi * hertz * number * seconds + phase)).sum(dim=0, keepdim=True)
    spectrum = torch.fft.rfft(torch.randn_like(like[:1]))
    frequency = torch.fft.rfftfreq(like.shape[1], 1 / sample_rate, device=like.device)
    low_pass = 1 / (1 + (frequency / _log_uniform(60, 3_000)) ** draw(1.0, 4.0))
    air = torch.fft.irfft(spectrum * low_pass, n=like.shape[1])
    share = draw(0.0, 1.0)
    sound: Tensor = share * hum / hum.std().clamp_min(1e-6) + (1 - share) * air / air.std().clamp_min(1e-6)
    return sound * (1 + draw(0.0, 0.5) * torch.sin(2 * math.pi * seconds / draw(0.2, 10.0)))


def chirps(like: Tensor, sample_rate: int) -> Tensor:
    """A sine that sweeps over up to five octaves periodically."""
    seconds = _seconds(like, sample_rate)
    low = _log_uniform(100, 3_000)
    octaves = draw(-2.0, 5.0)
    period = draw(0.05, 5.0)
    hertz = (low * torch.exp2(octaves * ((seconds / period) % 1))).clamp_max(0.45 * sample_rate)
    return torch.sin(2 * math.pi * torch.cumsum(hertz.double(), dim=1) / sample_rate).float()


def clicks(like: Tensor, sample_rate: int) -> Tensor:
    """Bursts of up to 3 ms at random moments, 0.5 to 50 a second."""
    rate = _log_uniform(0.5, 50)
    impulses = (torch.rand_like(like[:1]) < rate / sample_rate) * torch.rand_like(like[:1])
    decay = draw(0.0001, 0.001)
    length = round(0.003 * sample_rate)
    fade = torch.exp(-torch.arange(length, device=like.device) / (decay * sample_rate))
    burst = torch.randn(1, length, device=like.device) * fade
    product = torch.fft.rfft(impulses) * torch.fft.rfft(burst, n=like.shape[1])
    sound: Tensor = torch.fft.irfft(product, n=like.shape[1])
    return sound


def grains(waveform: Tensor, sample_rate: int) -> Tensor:
    """Pieces of 20 to 120 ms from all clips of the batch in random order."""
    batch, length = waveform.shape
    size = min(length, round(sample_rate * draw(0.02, 0.12)))
    count = math.ceil(length / size)
    clip = torch.randint(batch, (count, 1), device=waveform.device)
    first = torch.randint(length - size + 1, (count, 1), device=waveform.device)
    pieces = waveform[clip, first + torch.arange(size, device=waveform.device)]
    pieces = pieces / waveform.abs().amax(dim=1).clamp_min(1e-6)[clip]
    fade = torch.hann_window(size, periodic=False, device=waveform.device).sqrt()
    return (pieces * fade).flatten()[None, :length]


def draw(low: float, high: float) -> float:
    """A uniform random number."""
    return float(torch.empty(1).uniform_(low, high))


def _log_uniform(low: float, high: float) -> float:
    return math.exp(draw(math.log(low), math.log(high)))


def _seconds(like: Tensor, sample_rate: int) -> Tensor:
    return torch.arange(like.shape[1], device=like.device)[None] / sample_rate

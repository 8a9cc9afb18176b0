"""Degradations of recordings as augmentation, each applied to some clips of a batch.

The conditions that `training.robustness` measures are implemented separately. Draws from torch's global
generator, as `training.augment` does. Shapes: waveform `(b, n)` float32 in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from audiocnn.audio import windows
from audiocnn.audio.generators import draw, uniform
from audiocnn.config import FrontendConfig
from training.augment import energetic_moment

_STEPS = 32_768  # 16 bits


def _on_some(waveform: Tensor, probability: float, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `change` to each clip with this probability; it receives only the chosen clips."""
    rows = (torch.rand(len(waveform), device=waveform.device) < probability).nonzero()[:, 0]
    return waveform.index_copy(0, rows, change(waveform[rows])) if len(rows) else waveform


def tiled_crop(
    waveform: Tensor, config: FrontendConfig, probability: float, shortest: float = 0.4, longest: float = 3.0
) -> Tensor:
    """Crop to `shortest` to `longest` seconds and repeat the crop to fill the window, as `windows.cut` does.

    The crop contains a moment drawn in proportion to energy, so that it is seldom silent.
    """

    def tile(clip: Tensor, moment: int) -> Tensor:
        kept = min(round(config.sample_rate * draw(shortest, longest)), len(clip))
        first = min(max(0, moment - int(draw(0, kept))), len(clip) - kept)
        positions = windows.cut(np.arange(kept, dtype=np.float32), config)[0]  # exact: fewer than 2^24
        index = first + torch.from_numpy(positions).to(clip.device).long()
        return clip.gather(0, index)

    def change(clips: Tensor) -> Tensor:
        moments = energetic_moment(clips, config.sample_rate)[:, 0].tolist()
        return torch.stack([tile(clip, moment) for clip, moment in zip(clips, moments, strict=True)])

    return _on_some(waveform, probability, change)


def coloured_noise(
    waveform: Tensor, probability: float, low_db: float = -5.0, high_db: float = 35.0
) -> Tensor:
    """Add noise at a random signal-to-noise ratio in dB: white for half of the clips, for the others with a
    power that falls by up to 6 dB or rises by up to 3 dB an octave."""

    def change(clean: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(torch.randn_like(clean))
        octaves = torch.arange(1, spectrum.shape[1] + 1, device=clean.device).log2()
        slope = uniform(clean, -1.0, 0.5) * (torch.rand(len(clean), 1, device=clean.device) < 0.5)
        noise: Tensor = torch.fft.irfft(spectrum * torch.exp2(octaves * slope), n=clean.shape[1])
        level = _rms(clean) * torch.pow(10.0, -uniform(clean, low_db, high_db) / 20)
        return (clean + noise * level / _rms(noise).clamp_min(1e-9)).clamp(-1.0, 1.0)

    return _on_some(waveform, probability, change)


def clipping(waveform: Tensor, probability: float, most_db: float = 20.0) -> Tensor:
    """Amplify the peak to 0 to `most_db` dB above full scale and clip it there."""

    def change(clean: Tensor) -> Tensor:
        peak = clean.abs().amax(dim=1, keepdim=True).clamp_min(1 / _STEPS)
        return (clean / peak * torch.pow(10.0, uniform(clean, 0.0, most_db) / 20)).clamp(-1.0, 1.0)

    return _on_some(waveform, probability, change)


def band_limit(
    waveform: Tensor, sample_rate: int, probability: float, low: float = 3_400.0, high: float = 16_000.0
) -> Tensor:
    """Remove everything above a random frequency from `low` to `high` Hz, as codecs do."""

    def change(clean: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(clean)
        hertz = torch.exp(uniform(clean, math.log(low), math.log(high)))
        bins = torch.arange(spectrum.shape[1], device=clean.device) * (sample_rate / clean.shape[1])
        limited: Tensor = torch.fft.irfft(spectrum * (bins < hertz), n=clean.shape[1])
        return limited.clamp(-1.0, 1.0)

    return _on_some(waveform, probability, change)


def level(waveform: Tensor, probability: float, lowest_db: float = -40.0) -> Tensor:
    """Lower the level by up to `-lowest_db` dB, then quantise to 16 bits."""

    def change(clean: Tensor) -> Tensor:
        factor = torch.pow(10.0, uniform(clean, lowest_db, 0.0) / 20)
        return (clean * factor * _STEPS).round() / _STEPS

    return _on_some(waveform, probability, change)


def _rms(waveform: Tensor) -> Tensor:
    return waveform.square().mean(dim=1, keepdim=True).sqrt()

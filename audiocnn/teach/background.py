"""Background sounds made from arithmetic, for users who have not recorded their own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from audiocnn.arrays import FloatArray
from audiocnn.audio.generators import chirps, clicks, hums, noise, tones, uniform
from audiocnn.config import FrontendConfig

COUNT, SILENCE = 40, "silence"
KINDS: tuple[Callable[[Tensor, int], Tensor], ...] = (noise, tones, hums, clicks, chirps)


def kind_of(number: int) -> str:
    """The kind of the made sound with this number."""
    return KINDS[(number - 1) % len(KINDS)].__name__ if number else SILENCE


def made_background(config: FrontendConfig, count: int = COUNT) -> FloatArray:
    """Silence, noise, tones, hums, clicks and chirps: float32 `(count, window_samples)`, always the same.

    Their peaks are at -40 to 0 dB of full scale.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        like = torch.zeros(1, config.window_samples)
        sounds = [like] + [_draw(KINDS[n % len(KINDS)], like, config.sample_rate) for n in range(count - 1)]
    stacked: FloatArray = np.asarray(torch.cat(sounds).numpy())
    return stacked


def _draw(kind: Callable[[Tensor, int], Tensor], like: Tensor, sample_rate: int) -> Tensor:
    sound = kind(like, sample_rate)
    peak = sound.abs().amax(dim=1, keepdim=True).clamp_min(1e-6)
    return sound / peak * torch.pow(10.0, uniform(sound, -40.0, 0.0) / 20)

"""Augmentation of batches, on the training device; the front end has none.

Every function draws from torch's global generator, which `training.trainer` seeds from (seed, epoch, step,
rank): a step draws the same numbers again after a resume.

Shapes: waveform `(b, n)` float32 in [-1, 1]; target `(b, k)` probabilities; log_mel `(b, 1, m, t)`.
"""

from __future__ import annotations

import math

import torch
import torchaudio
from torch import Tensor
from torch.nn import functional

from audiocnn.audio.generators import uniform, unit_noise

_LEVEL_SECONDS = 0.1
_SILENCE_DB = -100.0


def _chosen(like: Tensor, probability: float) -> Tensor:
    """True with this probability per clip: bool `(b, 1)`."""
    return torch.rand(len(like), 1, device=like.device) < probability


# --- Single clips: the label stays ---


def random_crop(waveform: Tensor, sample_rate: int, shortest: float = 0.2) -> Tensor:
    """Crop every clip to `shortest` (a fraction) up to all of it: `(b, n)` -> `(b, m)`, one m per batch.

    Each crop contains a moment drawn in proportion to energy, so that it is seldom silent. m is a multiple of
    a tenth of n: a few lengths only, for which PyTorch selects kernels once.
    """
    length = waveform.shape[1]
    tenths = int(torch.randint(round(10 * shortest), 11, (1,)))
    kept = length * tenths // 10
    moment = energetic_moment(waveform, sample_rate)
    first = (moment - torch.rand_like(moment, dtype=torch.float32) * kept).long().clamp(0, length - kept)
    return waveform.gather(1, first + torch.arange(kept, device=waveform.device))


def energetic_moment(waveform: Tensor, sample_rate: int) -> Tensor:
    """A sample index per clip, drawn in proportion to the energy of its tenth of a second: int64 `(b, 1)`."""
    size = round(_LEVEL_SECONDS * sample_rate)
    power = functional.avg_pool1d(waveform.square()[:, None], size, stride=size)[:, 0]
    return torch.multinomial(power + 10 ** (_SILENCE_DB / 10), 1) * size


def circular_shift(waveform: Tensor) -> Tensor:
    """Rotate each clip by a uniform random number of samples."""
    batch, length = waveform.shape
    shifts = torch.randint(length, (batch, 1), device=waveform.device)[:, 0].tolist()
    return torch.stack([clip.roll(-shift) for clip, shift in zip(waveform, shifts, strict=True)])


def resample(waveform: Tensor, low: float = 0.8, high: float = 1.25) -> Tensor:
    """Change speed and pitch of the batch by one random factor; the length stays.

    A longer result is cropped at a random place, a shorter one padded with zeros on both sides. Interpolation
    is linear.
    """
    length = waveform.shape[1]
    factor = math.exp(float(torch.empty(1).uniform_(math.log(low), math.log(high))))
    stretched = functional.interpolate(waveform[:, None], size=round(length * factor), mode="linear")[:, 0]
    spare = stretched.shape[1] - length
    first = int(torch.randint(abs(spare) + 1, (1,)))
    if spare >= 0:
        return stretched[:, first : first + length]
    return functional.pad(stretched, (first, -spare - first))


def gain(waveform: Tensor, decibels: float) -> Tensor:
    """A random gain of up to `decibels` up or down, per clip; clipped at full scale."""
    factor = torch.pow(10.0, uniform(waveform, -decibels, decibels) / 20)
    return (waveform * factor).clamp(-1.0, 1.0)


def flip_polarity(waveform: Tensor) -> Tensor:
    """Invert half of the clips. It is inaudible in one clip, and changes mixes."""
    return torch.where(_chosen(waveform, 0.5), -waveform, waveform)


def add_noise(waveform: Tensor, probability: float, low_db: float = 5.0, high_db: float = 40.0) -> Tensor:
    """Add white noise to some of the clips, at a random signal-to-noise ratio in dB."""
    snr = uniform(waveform, low_db, high_db)
    level = waveform.square().mean(dim=1, keepdim=True).sqrt() * torch.pow(10.0, -snr / 20)
    noisy = (waveform + torch.randn_like(waveform) * level).clamp(-1.0, 1.0)
    return torch.where(_chosen(waveform, probability), noisy, waveform)


def no_class(target: Tensor, *, has_sigmoid: bool) -> Tensor:
    """Targets `(b, 1)` of a sound of no class: equal for all classes of a softmax, 0 for a sigmoid."""
    return target.mean(dim=1, keepdim=True) * (not has_sigmoid)


def background_noise(
    waveform: Tensor, target: Tensor, probability: float, *, has_sigmoid: bool = False
) -> tuple[Tensor, Tensor]:
    """Replace some clips by noise at -70 to 0 dB full scale (RMS), with the targets of `no_class`."""
    chosen = _chosen(waveform, probability)[:, 0].nonzero()[:, 0]
    if not len(chosen):
        return waveform, target
    noise = unit_noise(waveform[chosen]) * torch.pow(10.0, uniform(chosen, -70.0, 0.0) / 20)
    waveform, target = waveform.clone(), target.clone()
    waveform[chosen] = noise.clamp(-1.0, 1.0)
    target[chosen] = no_class(target[chosen], has_sigmoid=has_sigmoid).expand_as(target[chosen])
    return waveform, target


# --- Pairs of clips: the targets are mixed too ---


def loudness_db(waveform: Tensor, sample_rate: int) -> Tensor:
    """Level of the loudest tenth of a second in dB full scale, at least -100: `(b, 1)`."""
    size = round(_LEVEL_SECONDS * sample_rate)
    power = functional.avg_pool1d(waveform.square()[:, None], size, stride=size)[:, 0]
    return 10 * torch.log10(power.amax(dim=1, keepdim=True).clamp_min(10 ** (_SILENCE_DB / 10)))


def between_class(waveform: Tensor, target: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Mix each clip with another so that their loudness has the ratio r : 1 - r, r uniform.

    With levels G in dB, p = 1 / (1 + 10^((G1 - G2) / 20) (1 - r) / r) and
    x = (p x1 + (1 - p) x2) / sqrt(p^2 + (1 - p)^2); the targets are mixed by r (Tokozume et al.,
    "Learning from Between-class Examples for Deep Sound Recognition", ICLR 2018).
    """
    other = torch.randperm(len(waveform), device=waveform.device)
    ratio = uniform(waveform, 1e-3, 1 - 1e-3)
    level = loudness_db(waveform, sample_rate)
    p = 1 / (1 + torch.pow(10.0, (level - level[other]) / 20) * (1 - ratio) / ratio)
    mixed = (p * waveform + (1 - p) * waveform[other]) / (p.square() + (1 - p).square()).sqrt()
    return mixed.clamp(-1.0, 1.0), ratio * target + (1 - ratio) * target[other]


def mixup(waveform: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Mix each clip with another by a ratio from `Beta(alpha, alpha)`, regardless of their levels
    (Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018)."""
    batch = len(waveform)
    ratio = torch.distributions.Beta(alpha, alpha).sample((batch, 1)).to(waveform)
    other = torch.randperm(batch, device=waveform.device)
    return ratio * waveform + (1 - ratio) * waveform[other], ratio * target + (1 - ratio) * target[other]


def time_mix(waveform: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Continue each clip with another one from a random moment on; targets are mixed by duration."""
    length = waveform.shape[1]
    other = torch.randperm(len(waveform), device=waveform.device)
    ratio = uniform(waveform, 0.0, 1.0)
    is_own = torch.arange(length, device=waveform.device) < ratio * length
    return torch.where(is_own, waveform, waveform[other]), ratio * target + (1 - ratio) * target[other]


def freq_mix(log_mel: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Take the bands above a random one (below it, for half of the clips) from another clip.

    Targets are mixed by the number of bands.
    """
    bands = log_mel.shape[2]
    other = torch.randperm(len(log_mel), device=log_mel.device)
    ratio = uniform(log_mel, 0.0, 1.0)
    is_low = torch.arange(bands, device=log_mel.device) < ratio * bands  # (b, m)
    is_high = torch.arange(bands, device=log_mel.device) >= (1 - ratio) * bands
    is_own = torch.where(_chosen(log_mel, 0.5), is_low, is_high)[:, None, :, None]
    return torch.where(is_own, log_mel, log_mel[other]), ratio * target + (1 - ratio) * target[other]


# --- The spectrogram ---


def spec_augment(log_mel: Tensor, freq_mask: int, time_mask: int, count: int = 2) -> Tensor:
    """Mask bands and frames of each clip; returns a copy.

    `freq_mask` (bands) and `time_mask` (frames) are the largest widths of each of the `count` masks. Masked
    cells are 0: after the front end's normalisation that is the training mean (Park et al., "SpecAugment",
    Interspeech 2019).
    """
    for axis, size in ((2, freq_mask), (3, time_mask)):
        for _ in range(count):
            log_mel = torchaudio.functional.mask_along_axis_iid(log_mel, size, 0.0, axis)
    return log_mel

"""Augmentation: batched, on the training device, never inside the front end.

Every function draws from torch's global generator, which the training loop seeds from
(seed, epoch, step): the same step always draws the same numbers, also after a resume.

Shapes: waveform `(b, n)` float32 in [-1, 1]; target `(b, k)` probabilities; log_mel `(b, 1, m, t)`.
"""

from __future__ import annotations

import math

import torch
import torchaudio
from torch import Tensor
from torch.nn import functional

_LEVEL_SECONDS = 0.1
_SILENCE_DB = -100.0


def uniform(like: Tensor, low: float, high: float) -> Tensor:
    """One number a clip: `(b, 1)`."""
    return torch.empty(len(like), 1, device=like.device).uniform_(low, high)


def _chosen(like: Tensor, probability: float) -> Tensor:
    """Which clips of the batch: `(b, 1)` of bool."""
    return torch.rand(len(like), 1, device=like.device) < probability


# --- One clip: its label stays ---


def excerpt(waveform: Tensor, sample_rate: int, shortest: float = 0.2) -> Tensor:
    """A piece of every clip, `shortest` to all of it: `(b, n)` -> `(b, m)`, one random m for the batch.

    Each piece has in it a moment drawn in proportion to its energy, so that it is seldom the silence that
    the label does not mean. m is a whole tenth of n: few lengths, for which kernels are chosen once.
    """
    length = waveform.shape[1]
    tenths = int(torch.randint(round(10 * shortest), 11, (1,)))
    kept = length * tenths // 10
    moment = where_energy_is(waveform, sample_rate)
    first = (moment - torch.rand_like(moment, dtype=torch.float32) * kept).long().clamp(0, length - kept)
    return waveform.gather(1, first + torch.arange(kept, device=waveform.device))


def where_energy_is(waveform: Tensor, sample_rate: int) -> Tensor:
    """A sample of each clip, drawn in proportion to the energy of its tenth of a second: int64 `(b, 1)`."""
    size = round(_LEVEL_SECONDS * sample_rate)
    power = functional.avg_pool1d(waveform.square()[:, None], size, stride=size)[:, 0]
    return torch.multinomial(power + 10 ** (_SILENCE_DB / 10), 1) * size


def circular_shift(waveform: Tensor) -> Tensor:
    """Rotate every waveform by its own uniform random amount."""
    batch, length = waveform.shape
    shifts = torch.randint(length, (batch, 1), device=waveform.device)[:, 0].tolist()
    return torch.stack([clip.roll(-shift) for clip, shift in zip(waveform, shifts, strict=True)])


def resample(waveform: Tensor, low: float = 0.8, high: float = 1.25) -> Tensor:
    """Play the whole batch faster or slower by one random factor, pitch and all; the length stays.

    What becomes longer is cropped at a random place, what becomes shorter is padded with zeros on both
    sides. Linear interpolation: its images lie above the octave that a factor of 1.25 can reach.
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
    """Louder or softer by up to `decibels`, each clip by its own; full scale clips, as a recorder would."""
    factor = torch.pow(10.0, uniform(waveform, -decibels, decibels) / 20)
    return (waveform * factor).clamp(-1.0, 1.0)


def flip_polarity(waveform: Tensor) -> Tensor:
    """Upside down, half of the clips: it cannot be heard, but it matters to what is mixed."""
    return torch.where(_chosen(waveform, 0.5), -waveform, waveform)


def add_noise(waveform: Tensor, probability: float, low_db: float = 5.0, high_db: float = 40.0) -> Tensor:
    """White noise at a random signal-to-noise ratio, for some of the clips."""
    snr = uniform(waveform, low_db, high_db)
    level = waveform.square().mean(dim=1, keepdim=True).sqrt() * torch.pow(10.0, -snr / 20)
    noisy = (waveform + torch.randn_like(waveform) * level).clamp(-1.0, 1.0)
    return torch.where(_chosen(waveform, probability), noisy, waveform)


def nothing(waveform: Tensor, target: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """Noise alone in place of some of the clips, with equal shares for all classes as target: a hiss is
    no sound to name. Its level is -70 to 0 dB re full scale (rms).
    """
    chosen = _chosen(waveform, probability)[:, 0].nonzero()[:, 0]
    if not len(chosen):
        return waveform, target
    noise = bare_noise(waveform[chosen]) * torch.pow(10.0, uniform(chosen, -70.0, 0.0) / 20)
    waveform, target = waveform.clone(), target.clone()
    waveform[chosen] = noise.clamp(-1.0, 1.0)
    target[chosen] = target[chosen].mean(dim=1, keepdim=True)
    return waveform, target


def bare_noise(like: Tensor) -> Tensor:
    """Noise with an rms of 1, `(b, n)`. Its power falls or rises with frequency by up to 1.5 dB an octave:
    nearly white. (What falls faster is rain, wind or the sea.)

    Its samples are distributed normally, evenly, or as if hard clipped: where the front end raises peaks to
    full scale, noise of low peaks is the louder noise.
    """
    spectrum = torch.fft.rfft(torch.randn_like(like))
    octaves = torch.arange(1, spectrum.shape[1] + 1, device=like.device).log2()
    slope = uniform(like, -0.25, 0.25)  # of the amplitude, in octaves an octave: 6 dB each
    noise = torch.fft.irfft(spectrum * torch.exp2(octaves * slope), n=like.shape[1])
    noise = noise / noise.square().mean(dim=1, keepdim=True).sqrt()
    noise = torch.erf(noise * torch.pow(10.0, uniform(like, -1.0, 0.5)))  # even at a drive of 0.7
    rms: Tensor = noise.square().mean(dim=1, keepdim=True).sqrt()
    return noise / rms


# --- Two clips: the labels are mixed with them ---


def loudness_db(waveform: Tensor, sample_rate: int) -> Tensor:
    """Level of the loudest tenth of a second in dB re full scale: `(b, 1)`, at least -100."""
    size = round(_LEVEL_SECONDS * sample_rate)
    power = functional.avg_pool1d(waveform.square()[:, None], size, stride=size)[:, 0]
    return 10 * torch.log10(power.amax(dim=1, keepdim=True).clamp_min(10 ** (_SILENCE_DB / 10)))


def between_class(waveform: Tensor, target: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Mix each clip with another so that they are *heard* in the ratio r : 1 - r, r uniform.

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
    """Mix each clip with another by a ratio of its own, `Beta(alpha, alpha)`, whatever their levels
    (Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018)."""
    batch = len(waveform)
    ratio = torch.distributions.Beta(alpha, alpha).sample((batch, 1)).to(waveform)
    other = torch.randperm(batch, device=waveform.device)
    return ratio * waveform + (1 - ratio) * waveform[other], ratio * target + (1 - ratio) * target[other]


def time_mix(waveform: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """From a random moment on, another clip is heard; the targets are mixed by the time that each has."""
    length = waveform.shape[1]
    other = torch.randperm(len(waveform), device=waveform.device)
    ratio = uniform(waveform, 0.0, 1.0)
    is_own = torch.arange(length, device=waveform.device) < ratio * length
    return torch.where(is_own, waveform, waveform[other]), ratio * target + (1 - ratio) * target[other]


def freq_mix(log_mel: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The bands above a random one are another clip's, or those below it for half of the clips; the
    targets are mixed by the bands that each has. On the log-mel: the same as a pair of filters, and free."""
    bands = log_mel.shape[2]
    other = torch.randperm(len(log_mel), device=log_mel.device)
    ratio = uniform(log_mel, 0.0, 1.0)
    is_low = torch.arange(bands, device=log_mel.device) < ratio * bands  # (b, m)
    is_high = torch.arange(bands, device=log_mel.device) >= (1 - ratio) * bands
    is_own = torch.where(_chosen(log_mel, 0.5), is_low, is_high)[:, None, :, None]
    return torch.where(is_own, log_mel, log_mel[other]), ratio * target + (1 - ratio) * target[other]


# --- The spectrogram ---


def spec_augment(log_mel: Tensor, freq_mask: int, time_mask: int, count: int = 2) -> Tensor:
    """A copy with masked bands and stretches, each clip by itself.

    Masked cells become 0, which after the front end's normalisation is the training mean
    (Park et al., "SpecAugment", Interspeech 2019). `freq_mask` (bands) and `time_mask` (frames) are the
    most that one of the `count` masks covers.
    """
    for axis, size in ((2, freq_mask), (3, time_mask)):
        for _ in range(count):
            log_mel = torchaudio.functional.mask_along_axis_iid(log_mel, size, 0.0, axis)
    return log_mel

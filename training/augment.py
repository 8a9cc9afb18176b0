"""Augmentation: batched, on the training device, never inside the front end.

Every function draws from torch's global generator, which the training loop seeds from
(seed, epoch, step): the same step always draws the same numbers, also after a resume.
"""

from __future__ import annotations

import torch
import torchaudio
from torch import Tensor, nn


def circular_shift(waveform: Tensor) -> Tensor:
    """Rotate every waveform `(batch, num_samples)` by its own uniform random amount."""
    batch, length = waveform.shape
    shift = torch.randint(length, (batch, 1), device=waveform.device)
    index = (torch.arange(length, device=waveform.device) + shift) % length
    return waveform.gather(1, index)


def mixup(waveform: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Mix each clip with another of the batch by a ratio of its own, `Beta(alpha, alpha)`.

    `waveform (batch, num_samples)`, `target (batch, num_classes)` as probabilities; both are mixed
    with the same ratio (Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018).
    """
    batch = len(waveform)
    ratio = torch.distributions.Beta(alpha, alpha).sample((batch, 1)).to(waveform)
    other = torch.randperm(batch, device=waveform.device)
    mixed = ratio * waveform + (1 - ratio) * waveform[other]
    return mixed, ratio * target + (1 - ratio) * target[other]


class SpecAugment(nn.Module):
    """Mask bands and stretches of a log-mel `(batch, 1, n_mels, num_frames)`, each clip by itself.

    Masked cells become 0, which after the front end's normalisation is the training mean
    (Park et al., "SpecAugment", Interspeech 2019).
    """

    def __init__(self, freq_mask: int, time_mask: int, count: int = 2) -> None:
        super().__init__()
        self.masks = nn.Sequential(
            *(torchaudio.transforms.FrequencyMasking(freq_mask, iid_masks=True) for _ in range(count)),
            *(torchaudio.transforms.TimeMasking(time_mask, iid_masks=True) for _ in range(count)),
        )

    def forward(self, log_mel: Tensor) -> Tensor:
        """The masked copy."""
        masked: Tensor = self.masks(log_mel)
        return masked

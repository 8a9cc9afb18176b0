"""The augmentation of a recipe on a batch: `training.augment` and `training.degrade` in their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from audiocnn.config import FrontendConfig
from training import augment, degrade
from training.background import Background
from training.recipe import Recipe

_FRONTEND_BATCH = 8  # clips on a CPU: their spectra fit into its cache, 3.4 instead of 8.3 ms a clip


class Frontend(Protocol):
    """`audiocnn.model.frontend.LogMel` or a replacement: `(b, n)` -> `(b, 1, m, t)`."""

    config: FrontendConfig

    def __call__(self, waveform: Tensor) -> Tensor:
        """See the class."""
        ...


class MixedBatch(NamedTuple):
    """Waveforms after mixing, before degradation and the log-mel."""

    waveform: Tensor  # float32 (b, n)
    target: Tensor  # float32 (b, k)
    is_background: Tensor  # bool (b,): a sound of no class, with equal targets for all classes
    mix: str  # the mix that was drawn, or ""


class Augmenter:
    """The augmentation of a recipe: waveforms and targets -> log-mels and mixed targets.

    Shapes: waveform float32 `(b, n)` in [-1, 1]; target float32 `(b, k)`; log-mel float32 `(b, 1, m, t)`.
    `may_mix` is False in the last epochs (`Recipe.mix_off`).
    """

    def __init__(
        self, recipe: Recipe, log_mel: Frontend, rendered: Tensor | None = None, *, has_sigmoid: bool = False
    ) -> None:
        """`rendered` are speech and music of no class, int16 `(m, n)`, see `training.background`.

        `has_sigmoid`: a clip may have several labels, or none.
        """
        self.recipe, self.log_mel, self.has_sigmoid = recipe, log_mel, has_sigmoid
        self.background = Background(log_mel.config.sample_rate, rendered)
        self.full_length = log_mel.config.window_samples

    def __call__(self, waveform: Tensor, target: Tensor, *, may_mix: bool) -> tuple[Tensor, Tensor]:
        """`(b, n)` and `(b, k)` -> `(b, 1, m, t)` and `(b, k)`.

        The columns of the target may be anything that can be mixed linearly: probabilities of the classes
        from the labels, then those of a teacher.
        """
        return self.log_mels(self.mix(waveform, target, may_mix=may_mix), may_mix=may_mix)

    @torch.no_grad()
    def mix(self, waveform: Tensor, target: Tensor, *, may_mix: bool) -> MixedBatch:
        """Augment single clips, mix pairs, add noise, and replace some clips by sounds of no class."""
        waveform = self._augment_single(waveform, may_mix=may_mix)
        name = self._draw_mix() if may_mix else ""
        waveform, target = self._mix_pairs(name, waveform, target)
        waveform, target = self._add_noise(waveform, target)
        is_background = torch.zeros(len(waveform), dtype=torch.bool, device=waveform.device)
        if self.recipe.background:
            waveform, is_background = self.background.replace(waveform, self.recipe.background)
            nothing = augment.no_class(target, has_sigmoid=self.has_sigmoid)
            target = torch.where(is_background[:, None], nothing, target)
        return MixedBatch(waveform, target, is_background, name)

    @torch.no_grad()
    def log_mels(self, batch: MixedBatch, *, may_mix: bool) -> tuple[Tensor, Tensor]:
        """Degrade the waveforms as a recording would, compute log-mels, mask them; with the targets."""
        recipe, target = self.recipe, batch.target
        waveform = self._degrade(batch.waveform, is_last=not may_mix)
        size = len(waveform) if waveform.is_cuda else _FRONTEND_BATCH
        log_mel = torch.cat([self.log_mel(part) for part in torch.split(waveform, size)])
        if batch.mix == "freq_mix":
            log_mel, target = augment.freq_mix(log_mel, target)
        time_mask = recipe.time_mask * waveform.shape[1] // self.full_length
        return augment.spec_augment(log_mel, recipe.freq_mask, time_mask), target

    def _augment_single(self, waveform: Tensor, *, may_mix: bool) -> Tensor:
        recipe, config = self.recipe, self.log_mel.config
        if may_mix and float(torch.rand(1)) < recipe.random_crop:
            waveform = augment.random_crop(waveform, config.sample_rate)
        if recipe.shift:
            waveform = augment.circular_shift(waveform)
        if float(torch.rand(1)) < recipe.resample:
            waveform = augment.resample(waveform)
        if recipe.polarity:
            waveform = augment.flip_polarity(waveform)
        return degrade.tiled_crop(waveform, config, recipe.tile) if may_mix and recipe.tile else waveform

    def _mix_pairs(self, name: str, waveform: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Apply a mix of waveforms; `freq_mix` is done on the log-mel."""
        sample_rate, alpha = self.log_mel.config.sample_rate, self.recipe.mixup_alpha
        mixes: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
            "between_class": lambda: augment.between_class(waveform, target, sample_rate),
            "mixup": lambda: augment.mixup(waveform, target, alpha),
            "time_mix": lambda: augment.time_mix(waveform, target),
        }
        return mixes[name]() if name in mixes else (waveform, target)

    def _add_noise(self, waveform: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        recipe = self.recipe
        if recipe.gain_db:
            waveform = augment.gain(waveform, recipe.gain_db)
        if recipe.noise:
            waveform = augment.add_noise(waveform, recipe.noise)
        if recipe.background_noise:
            return augment.background_noise(
                waveform, target, recipe.background_noise, has_sigmoid=self.has_sigmoid
            )
        return waveform, target

    def _degrade(self, waveform: Tensor, *, is_last: bool) -> Tensor:
        recipe, sample_rate = self.recipe, self.log_mel.config.sample_rate
        if recipe.coloured_noise and not is_last:
            waveform = degrade.coloured_noise(waveform, recipe.coloured_noise)
        if recipe.clipping and not is_last:
            waveform = degrade.clipping(waveform, recipe.clipping)
        if recipe.band_limit:
            waveform = degrade.band_limit(waveform, sample_rate, recipe.band_limit)
        if recipe.level:
            waveform = degrade.level(waveform, recipe.level)
        return waveform

    def _draw_mix(self) -> str:
        """The name of one mix, or "" for none."""
        draw = float(torch.rand(1))
        for name, probability in self.recipe.mixes().items():
            if draw < probability:
                return name
            draw -= probability
        return ""

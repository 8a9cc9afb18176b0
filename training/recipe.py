"""All that decides the outcome of a run besides the data and the hardware, and the named recipes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from audiocnn.config import FrontendConfig
from training import augment, degrade
from training.background import Background


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Optimiser, schedule and augmentation; 0 switches an augmentation off."""

    epochs: int = 150
    batch_size: int = 32
    max_lr: float = 2e-3
    warmup: float = 0.1  # share of the steps in which the learning rate rises
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    loss: str = "ce"  # ce: softmax and cross entropy; bce: a sigmoid per class, several may be right
    ema_decay: float = 0.995  # 0: the weights themselves
    grad_clip: float = 5.0
    # Mixes: at most one a batch, drawn with these probabilities; none in the last `mix_off` of the epochs.
    between_class: float = 0.0
    time_mix: float = 0.0
    freq_mix: float = 0.0
    mixup: float = 0.0
    mixup_alpha: float = 0.4
    mix_off: float = 0.0
    # One clip
    excerpt: float = 0.0  # probability, for the whole batch; none in the last `mix_off` either
    shift: float = 1.0  # circular
    resample: float = 0.0  # probability, for the whole batch
    gain_db: float = 0.0  # at most, up or down
    polarity: float = 0.0  # 1: on
    noise: float = 0.0  # probability, per clip
    nothing: float = 0.0  # probability, per clip: bare noise in its place, which is none of the classes
    # What a recording goes through, probabilities per clip. In the last `mix_off` only the last two.
    tile: float = 0.0  # 0.4 to 3 s of it, repeated to fill the window
    coloured_noise: float = 0.0
    clipping: float = 0.0
    band_limit: float = 0.0
    level: float = 0.0
    background: float = 0.0  # probability, per clip: a sound of no class in its place
    freq_mask: int = 24  # mel bands, at most, each of two masks
    time_mask: int = 40  # frames, at most, each of two masks
    # A teacher's soft labels, if there are any
    teacher_weight: float = 0.5  # share of its loss
    teacher_temperature: float = 2.0  # of teacher and network in this loss
    feature_weight: float = 0.0  # of the distance to an online teacher's features
    # Progressive resizing, shares of the epochs: first half the bands and frames, then half the bands
    resize_2x2: float = 0.0
    resize_2x1: float = 0.0
    seed: int = 0

    def pooling(self, epoch: int) -> tuple[int, int]:
        """How many bands and frames of the log-mel are averaged into one in this epoch (from 0)."""
        if epoch < self.resize_2x2 * self.epochs:
            return 2, 2
        return (2, 1) if epoch < (self.resize_2x2 + self.resize_2x1) * self.epochs else (1, 1)

    def mixes(self) -> dict[str, float]:
        """Probability of each mix."""
        return {name: getattr(self, name) for name in ("between_class", "time_mix", "freq_mix", "mixup")}


PLAIN = Recipe(mixup=1.0)
STRONG = Recipe(
    epochs=400,
    between_class=0.6,
    time_mix=0.15,
    freq_mix=0.15,
    mix_off=0.05,
    resample=0.5,
    gain_db=12.0,
    polarity=1.0,
    noise=0.2,
    nothing=0.03,
)
# With soft labels (`training.teacher`), and what the strong recipe never hears: files of lower sample rates,
# 40 dB less level, short excerpts, more noise, speech and music.
DISTILLED = Recipe(
    epochs=300,
    label_smoothing=0.0,
    between_class=0.5,
    time_mix=0.15,
    freq_mix=0.15,
    mix_off=0.1,
    resample=0.5,
    polarity=1.0,
    tile=0.15,
    coloured_noise=0.25,
    clipping=0.1,
    band_limit=0.3,
    level=0.3,
    background=0.1,
    resize_2x2=0.4,
    resize_2x1=0.3,
)
# With a teacher that answers every mix (`training.teacher.online`): on a GPU, where full size costs little.
TAUGHT = replace(
    DISTILLED,
    epochs=400,
    batch_size=64,
    max_lr=3e-3,
    time_mix=0.25,
    freq_mix=0.0,  # its answer would be to both clips' bands
    feature_weight=1.0,
    resize_2x2=0.0,
    resize_2x1=0.0,
)
# What the projects that ours grew from wrote down: no EMA, no shifts, mixup on 30 % of the batches.
SEEDS = Recipe(
    epochs=100,
    weight_decay=0.01,
    ema_decay=0.0,
    grad_clip=0.0,
    mixup=0.3,
    mixup_alpha=0.2,
    shift=0.0,
    freq_mask=30,
    time_mask=80,
)
RECIPES = {"strong": STRONG, "distilled": DISTILLED, "taught": TAUGHT, "plain": PLAIN, "seeds": SEEDS}

_SEEDS_FRONTEND = FrontendConfig(
    sample_rate=22_050, n_fft=1024, win_length=1024, hop_length=512, f_max=11_025.0
)
FRONTENDS = {
    "strong": FrontendConfig(max_gain_db=20.0),
    "distilled": FrontendConfig(max_gain_db=40.0),
    "taught": FrontendConfig(max_gain_db=40.0),
    "plain": FrontendConfig(),
    "seeds": _SEEDS_FRONTEND,
}


_FRONTEND_BATCH = 8  # on a CPU: whose spectra fit into its cache, 3.4 instead of 8.3 ms a clip


class Frontend(Protocol):
    """`audiocnn.model.frontend.LogMel`, or what takes its place: `(b, n)` -> `(b, 1, m, t)`."""

    config: FrontendConfig

    def __call__(self, waveform: Tensor) -> Tensor:
        """See the class."""
        ...


class Sounds(NamedTuple):
    """A batch on its way through `Augmenter`."""

    waveform: Tensor  # float32 (b, n)
    target: Tensor  # float32 (b, k)
    is_background: Tensor  # bool (b,): of no class, with equal shares as target
    mix: str  # the mix that was drawn, or ""


class Augmenter:
    """A recipe's augmentation: waveforms and targets in, log-mels and mixed targets out."""

    def __init__(self, recipe: Recipe, log_mel: Frontend, recorded: Tensor | None = None) -> None:
        """`recorded` are sounds of no class, see `training.background`."""
        self.recipe, self.log_mel = recipe, log_mel
        self.background = Background(log_mel.config.sample_rate, recorded)
        self.full_length = log_mel.config.window_samples

    def __call__(self, waveform: Tensor, target: Tensor, *, may_mix: bool) -> tuple[Tensor, Tensor]:
        """`(b, n)` and `(b, k)` -> `(b, 1, m, t)` and `(b, k)`.

        The columns of the target may be anything that may be mixed linearly: probabilities of the classes
        by the labels, then those by a teacher.
        """
        sounds = self.sounds(waveform, target, may_mix=may_mix)
        return self.recorded(sounds, may_mix=may_mix)

    @torch.no_grad()
    def sounds(self, waveform: Tensor, target: Tensor, *, may_mix: bool) -> Sounds:
        """What there is to be heard, before it is recorded: a mix of clips, or a sound of no class."""
        recipe = self.recipe
        sample_rate = self.log_mel.config.sample_rate
        if may_mix and float(torch.rand(1)) < recipe.excerpt:
            waveform = augment.excerpt(waveform, sample_rate)
        waveform = self._single(waveform)
        if may_mix and recipe.tile:
            waveform = degrade.tiled_excerpt(waveform, self.log_mel.config, recipe.tile)
        mix = self._draw_mix() if may_mix else ""
        on_waveforms: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
            "between_class": lambda: augment.between_class(waveform, target, sample_rate),
            "mixup": lambda: augment.mixup(waveform, target, recipe.mixup_alpha),
            "time_mix": lambda: augment.time_mix(waveform, target),
        }
        if mix in on_waveforms:
            waveform, target = on_waveforms[mix]()
        if recipe.gain_db:
            waveform = augment.gain(waveform, recipe.gain_db)
        if recipe.noise:
            waveform = augment.add_noise(waveform, recipe.noise)
        if recipe.nothing:
            waveform, target = augment.nothing(waveform, target, recipe.nothing)
        is_background = torch.zeros(len(waveform), dtype=torch.bool, device=waveform.device)
        if recipe.background:
            waveform, is_background = self.background.replace(waveform, recipe.background)
            shares = target.mean(dim=1, keepdim=True)
            target = torch.where(is_background[:, None], shares, target)
        return Sounds(waveform, target, is_background, mix)

    @torch.no_grad()
    def recorded(self, sounds: Sounds, *, may_mix: bool) -> tuple[Tensor, Tensor]:
        """Log-mels `(b, 1, m, t)` of sounds that went through a microphone, and their targets."""
        recipe, target = self.recipe, sounds.target
        waveform = self._degraded(sounds.waveform, is_last=not may_mix)
        size = len(waveform) if waveform.is_cuda else _FRONTEND_BATCH
        log_mel = torch.cat([self.log_mel(part) for part in torch.split(waveform, size)])
        if sounds.mix == "freq_mix":
            log_mel, target = augment.freq_mix(log_mel, target)
        time_mask = recipe.time_mask * waveform.shape[1] // self.full_length
        return augment.spec_augment(log_mel, recipe.freq_mask, time_mask), target

    def _single(self, waveform: Tensor) -> Tensor:
        recipe = self.recipe
        if recipe.shift:
            waveform = augment.circular_shift(waveform)
        if float(torch.rand(1)) < recipe.resample:
            waveform = augment.resample(waveform)
        if recipe.polarity:
            waveform = augment.flip_polarity(waveform)
        return waveform

    def _degraded(self, waveform: Tensor, *, is_last: bool) -> Tensor:
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

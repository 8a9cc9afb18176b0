"""Hyperparameters of a run, also those of the augmentation, and the named recipes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from audiocnn.command import ABOVE_ZERO
from audiocnn.config import FrontendConfig, ModelConfig

T = TypeVar("T")


def _option(default: T, text: str, *bounds: float, **arguments: Any) -> T:
    """A field with its help text, its bounds (0 and 1), and more arguments for `argparse`."""
    if not isinstance(default, str):
        arguments["bounds"] = bounds or (0, 1)
    value: T = field(default=default, metadata={"help": text, **arguments})
    return value


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Optimiser, schedule, loss and augmentation. 0 switches an augmentation off.

    Each field is an option of `training.train`; its metadata hold the help text. Probabilities and fractions
    are from 0 to 1.

    `loss="bce"` trains one sigmoid per class with binary cross-entropy. With one label a clip the checkpoint
    is served with a softmax over the logits, as one trained with `"ce"`. Tables with several labels a clip
    are always trained so, and served with the sigmoids (`Config.activation`).
    """

    epochs: int = _option(150, "passes over the training clips", 1)
    batch_size: int = _option(32, "clips per step, over all processes", 1)
    max_lr: float = _option(2e-3, "peak learning rate of AdamW with OneCycle", 0, 1)
    warmup: float = _option(0.1, "fraction of the steps in which the learning rate rises")
    weight_decay: float = _option(0.05, "weight decay; none for biases and normalisation")
    label_smoothing: float = _option(0.1, "label smoothing")
    loss: str = _option(
        "ce",
        "ce: cross-entropy; bce: binary cross-entropy per class, also for one label a clip; both are served "
        "as softmax",
        choices=("ce", "bce"),
    )
    ema_decay: float = _option(0.995, "decay of the moving average of the weights; 0: no average")
    grad_clip: float = _option(5.0, "largest norm of the gradient; 0: no limit", 0)
    # One mix per batch at most, drawn with these probabilities.
    between_class: float = _option(0.0, "probability of between-class mixing, per batch")
    time_mix: float = _option(0.0, "probability of joining two clips in time, per batch")
    freq_mix: float = _option(0.0, "probability of joining two clips in frequency, per batch")
    mixup: float = _option(0.0, "probability of mixup, per batch")
    mixup_alpha: float = _option(0.4, "alpha of mixup's beta distribution", ABOVE_ZERO)
    mix_off: float = _option(
        0.0, "fraction of the epochs, the last ones, without mixes, crops, coloured noise and clipping"
    )
    random_crop: float = _option(0.0, "probability of a random crop, per batch")
    shift: float = _option(1.0, "1: random circular shift")
    resample: float = _option(0.0, "probability of a speed from 0.8 to 1.25, per batch")
    gain_db: float = _option(0.0, "largest random gain in dB, up or down", 0, 60)
    polarity: float = _option(0.0, "1: random polarity")
    noise: float = _option(0.0, "probability of white noise, per clip")
    background_noise: float = _option(0.0, "probability of noise of no class in place of a clip")
    tile: float = _option(0.0, "probability of a crop of 0.4 to 3 s, repeated to fill the window, per clip")
    coloured_noise: float = _option(0.0, "probability of white or coloured noise, -5 to 35 dB SNR, per clip")
    clipping: float = _option(0.0, "probability of clipping, per clip")
    band_limit: float = _option(0.0, "probability of a low-pass filter from 3.4 to 16 kHz, per clip")
    level: float = _option(0.0, "probability of a level lower by up to 40 dB, per clip")
    background: float = _option(0.0, "probability of a synthetic sound of no class in place of a clip")
    freq_mask: int = _option(24, "widest of two frequency masks, in mel bands", 0)
    time_mask: int = _option(40, "widest of two time masks, in frames", 0)
    teacher_weight: float = _option(0.5, "weight of the teacher's loss", 0)
    teacher_temperature: float = _option(2.0, "temperature of the teacher's loss", ABOVE_ZERO)
    feature_weight: float = _option(0.0, "weight of the distance to an online teacher's features", 0)
    # Progressive resizing
    resize_2x2: float = _option(0.0, "fraction of the epochs, the first ones, at half the bands and frames")
    resize_2x1: float = _option(0.0, "fraction of the epochs, after those, at half the bands")
    seed: int = _option(0, "random seed", 0)

    def pooling(self, epoch: int) -> tuple[int, int]:
        """Bands and frames of the log-mel that are averaged into one in this epoch (counted from 0)."""
        if epoch < self.resize_2x2 * self.epochs:
            return 2, 2
        return (2, 1) if epoch < (self.resize_2x2 + self.resize_2x1) * self.epochs else (1, 1)

    def mixes(self) -> dict[str, float]:
        """Probability of each mix."""
        return {name: getattr(self, name) for name in ("between_class", "time_mix", "freq_mix", "mixup")}


MANY_CLIPS = 800  # from here on recipes are used as they are
_MIN_EPOCHS, _MIN_STEPS = 60, 400
_AVERAGED_SHARE = 0.05  # of the steps, over which the moving average of the weights reaches


def sized(recipe: Recipe, num_clips: int, kept: Collection[str] = ()) -> Recipe:
    """The recipe with batch size, epochs and moving average for so few clips; fields in `kept` stay."""
    if num_clips >= MANY_CLIPS:
        return recipe
    batch_size = recipe.batch_size
    if "batch_size" not in kept:
        batch_size = min(batch_size, max(4, num_clips // 4))
    steps = max(1, num_clips // batch_size)  # in an epoch
    epochs = recipe.epochs
    if "epochs" not in kept:
        least = max(_MIN_EPOCHS, epochs * num_clips // MANY_CLIPS, -(-_MIN_STEPS // steps))
        epochs = min(epochs, least)
    decay = recipe.ema_decay
    if "ema_decay" not in kept:
        decay = min(decay, 1 - 1 / max(1.0, _AVERAGED_SHARE * steps * epochs))
    return replace(recipe, batch_size=batch_size, epochs=epochs, ema_decay=decay)


def width_for(num_clips: int) -> int:
    """Channels of the first stage for so many clips: a large network only memorises a few."""
    if num_clips >= MANY_CLIPS:
        return ModelConfig().width
    return 32 if num_clips >= MANY_CLIPS // 2 else 16


# Fields and recipes by the names that they had before version 0.2.
OLD_FIELDS = {"excerpt": "random_crop", "nothing": "background_noise"}
OLD_RECIPES = {"seeds": "baseline"}


def current_fields(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe in a checkpoint's provenance, old fields under their current names."""
    return {OLD_FIELDS.get(name, name): value for name, value in recipe.items()}


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
    background_noise=0.03,
)
# With soft labels (`training.teacher`), and low sample rates, levels down to -40 dB, short crops, more noise,
# speech and music.
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
# With an online teacher (`training.teacher.online`), on a GPU: full size costs little there.
TAUGHT = replace(
    DISTILLED,
    epochs=400,
    batch_size=64,
    max_lr=3e-3,
    time_mix=0.25,
    freq_mix=0.0,  # is done on the log-mel; the teacher takes waveforms
    feature_weight=1.0,
    resize_2x2=0.0,
    resize_2x1=0.0,
)
# What small public projects of this kind describe: no EMA, no shifts, mixup on 30 % of the batches.
BASELINE = Recipe(
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
RECIPES = {"strong": STRONG, "distilled": DISTILLED, "taught": TAUGHT, "plain": PLAIN, "baseline": BASELINE}
FRONTENDS = {
    "strong": FrontendConfig(max_gain_db=20.0),
    "distilled": FrontendConfig(max_gain_db=40.0),
    "taught": FrontendConfig(max_gain_db=40.0),
    "plain": FrontendConfig(),
    "baseline": FrontendConfig(
        sample_rate=22_050, n_fft=1024, win_length=1024, hop_length=512, f_max=11_025.0
    ),
}


def parse_recipe(name: str) -> str:
    """The current name of a recipe; for argparse."""
    return OLD_RECIPES.get(name, name)

"""TensorBoard event files of a run: loss, accuracy, learning rate and feature maps."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from training.trainer import Row, Trainer

_LAYERS = ("conv1", "layer1", "layer2", "layer3", "layer4")


class TensorBoardWriter:
    """Writes event files into a folder, for `tensorboard --logdir DIR`."""

    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(str(folder))

    def write(self, trainer: Trainer, row: Row, *, images: bool) -> None:
        """Write the epoch's scalars and, with `images`, the feature maps of the first training clip."""
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, trainer.epoch)
        if images:
            for name, image in feature_map_images(trainer).items():
                self._writer.add_image(name, image, trainer.epoch, dataformats="HW")
        self._writer.flush()


@torch.inference_mode()
def feature_map_images(trainer: Trainer) -> dict[str, Tensor]:
    """Channel means `(height, width)` of the first training clip, low frequencies below, in [0, 1]."""
    log_mel = trainer.log_mel(trainer.waveforms[:1])
    maps = {"log_mel": log_mel, **dict(trainer.result.eval().feature_maps(log_mel))}
    return {f"maps/{name}": _scaled(maps[name][0]) for name in ("log_mel", *_LAYERS)}


def _scaled(feature_map: Tensor) -> Tensor:
    """`(channels, height, width)` -> `(height, width)` in [0, 1]."""
    image = feature_map.float().mean(dim=0).flip(0).cpu()
    low, high = image.aminmax()
    return (image - low) / (high - low).clamp_min(1e-9)

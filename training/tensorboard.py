"""What TensorBoard shows of a run: loss, accuracy, learning rate, and what the layers see."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from training.trainer import Row, Run

_LAYERS = ("conv1", "layer1", "layer2", "layer3", "layer4")


class Board:
    """Writes event files into a folder: `tensorboard --logdir DIR`."""

    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(str(folder))

    def write(self, run: Run, row: Row, *, pictures: bool) -> None:
        """The epoch's numbers, and pictures of the first clip's feature maps if wanted."""
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, run.epoch)
        if pictures:
            for name, picture in feature_pictures(run).items():
                self._writer.add_image(name, picture, run.epoch, dataformats="HW")
        self._writer.flush()


@torch.inference_mode()
def feature_pictures(run: Run) -> dict[str, Tensor]:
    """Channel means of the first training clip, low frequencies below, scaled to [0, 1]."""
    log_mel = run.log_mel(run.waveforms[:1])
    maps = {"log_mel": log_mel, **dict(run.result.eval().feature_maps(log_mel))}
    pictures = {}
    for name in ("log_mel", *_LAYERS):
        picture = maps[name][0].float().mean(dim=0).flip(0).cpu()
        low, high = picture.aminmax()
        pictures[f"maps/{name}"] = (picture - low) / (high - low).clamp_min(1e-9)
    return pictures

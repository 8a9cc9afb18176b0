"""Log-mel -> logits: the ResNet-style network, with names for everything that happens inside.

Legend of shapes: b batch, c channels, h mel rows, w time columns, k classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from audiocnn.config import SERVED_OUTPUTS, ModelConfig, feature_map_names


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the convolutions say, and what leaves the block: both `(b, c, h, w)`."""
        conv = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.training and self.drop_path:
            conv = conv * self._kept(conv)
        return conv, torch.relu(conv + self.shortcut(x))

    def _kept(self, x: Tensor) -> Tensor:
        """0 or 1 / (1 - p) for each clip, `(b, 1, 1, 1)` (Huang et al., "Deep Networks with Stochastic
        Depth", ECCV 2016)."""
        keep = 1 - self.drop_path
        return torch.empty(len(x), 1, 1, 1, device=x.device, dtype=x.dtype).bernoulli_(keep) / keep


class AudioCNN(nn.Module):
    """7x7 stem and max-pool, four stages of residual blocks, average pooling, dropout, one linear layer."""

    def __init__(self, config: ModelConfig, *, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv2d(1, config.width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(config.width)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        layers = []
        in_channels = config.width
        drop_paths = iter(torch.linspace(0, config.drop_path, sum(config.blocks)).tolist())
        for stage, (count, channels) in enumerate(zip(config.blocks, config.channels, strict=True)):
            strides = [1 if stage == 0 else 2] + [1] * (count - 1)
            blocks = []
            for stride in strides:
                blocks.append(ResidualBlock(in_channels, channels, stride, next(drop_paths)))
                in_channels = channels
            layers.append(nn.ModuleList(blocks))
        self.layers = nn.ModuleList(layers)
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(in_channels, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        """He initialisation for the convolutions; each block starts as its shortcut (zero last gamma)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.bn2.weight)

    def feature_maps(self, log_mel: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and activation `(b, c, h, w)` of every feature map, in the order of computation."""
        x = torch.relu(self.bn1(self.conv1(log_mel)))
        yield "conv1", x
        x = self.pool(x)
        for stage, layer in enumerate(self.layers, start=1):
            assert isinstance(layer, nn.ModuleList)
            for number, block in enumerate(layer):
                conv, x = block(x)
                yield f"layer{stage}.block{number}.conv", conv
                yield f"layer{stage}.block{number}.relu", x
            yield f"layer{stage}", x

    def head(self, layer4: Tensor) -> tuple[Tensor, Tensor]:
        """`(b, c, h, w)` of the last stage -> logits `(b, k)` and embedding `(b, c)`, its mean."""
        embedding = layer4.mean(dim=(2, 3))
        return self.fc(self.dropout(embedding)), embedding

    def evidence(self, layer4: Tensor) -> Tensor:
        """Where the score comes from: `(b, k, h, w)` with `evidence.mean((2, 3)) + bias == logits`.

        Average pooling and one linear layer commute, so the split is exact (Zhou et al., "Learning
        Deep Features for Discriminative Localization", CVPR 2016).
        """
        return torch.einsum("kc,bchw->bkhw", self.fc.weight, layer4)

    def forward(self, log_mel: Tensor) -> Tensor:
        """`(b, 1, n_mels, num_frames)` -> logits `(b, k)`."""
        x = log_mel
        for _, x in self.feature_maps(log_mel):  # noqa: B007  the last one is layer4
            pass
        return self.head(x)[0]


class WithEmbedding(nn.Module):
    """The network as it is exported: logits and the feature that they are a linear function of.

    >>> WithEmbedding(model)(log_mel)  # width 32: logits (b, k) and embedding (b, 256), 0 or more
    """

    output_names = SERVED_OUTPUTS

    def __init__(self, model: AudioCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """`(b, 1, n_mels, num_frames)` -> logits `(b, k)`, embedding `(b, 8 * width)`."""
        x = log_mel
        for _, x in self.model.feature_maps(log_mel):  # noqa: B007  the last one is layer4
            pass
        return self.model.head(x)


class FeatureMapModel(nn.Module):
    """The network with all that it can show: logits, embedding, evidence, and channel means of the maps."""

    def __init__(self, model: AudioCNN) -> None:
        super().__init__()
        self.model = model
        self.output_names = [*SERVED_OUTPUTS, "evidence", *feature_map_names(model.config)]

    def forward(self, log_mel: Tensor) -> tuple[Tensor, ...]:
        """In the order of `output_names`: `(b, k)`, `(b, c)`, `(b, k, h, w)`, then `(b, h, w)` each."""
        maps = dict(self.model.feature_maps(log_mel))
        layer4 = maps["layer4"]
        means = [activation.mean(dim=1) for activation in maps.values()]
        return (*self.model.head(layer4), self.model.evidence(layer4), *means)

"""The front end and network of `aisfx`, implemented from their description, and features of it.

Shapes: b batch, n samples, t frames, c channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

SAMPLE_RATE = 44_100
NUM_FEATURES = 5_952
HOP_LENGTH = 1024

_N_FFT = 2048
_NUM_BANDS = 96
_CHANNELS = (64, 128, 256, 512)
_BAND_GROUPS = 3  # of the last block's 12 rows: low, middle and high frequencies
_LOG_SCALE = 1e4
_LOG_MAXIMUM = 9.457799  # the largest value in the network's training data


def filter_bank() -> Tensor:
    """Triangles on the HTK mel scale from 0 to 22,050 Hz, each summing to 1: float32 `(96, 1025)`."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, _NUM_BANDS + 2) / 2595) - 1)[:, None]
    bins = np.linspace(0, SAMPLE_RATE / 2, _N_FFT // 2 + 1)
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    bank = np.maximum(0, np.minimum(rising, falling))
    return torch.from_numpy((bank / bank.sum(axis=1, keepdims=True)).astype(np.float32))


class BackboneFrontend(nn.Module):
    """Waveform `(b, n)` at 44.1 kHz in [-1, 1] -> `(b, 1, t, 96)`, 0 to about 1."""

    window: Tensor
    bank: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(_N_FFT, periodic=False), persistent=False)
        self.register_buffer("bank", filter_bank(), persistent=False)

    def power(self, waveform: Tensor) -> Tensor:
        """Power spectrum `(b, bins, t)`."""
        spectrum = torch.stft(
            waveform,
            _N_FFT,
            HOP_LENGTH,
            window=self.window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        return spectrum.real.square() + spectrum.imag.square()

    def forward(self, waveform: Tensor) -> Tensor:
        """See the class."""
        mel = torch.log10(1 + _LOG_SCALE * (self.bank @ self.power(waveform))) / _LOG_MAXIMUM
        return mel.transpose(1, 2)[:, None]


class BackboneBlock(nn.Module):
    """Two 3x3 convolutions without bias, each with BatchNorm and ReLU; with `has_pool` a 2x2 max-pool."""

    def __init__(self, in_channels: int, out_channels: int, *, has_pool: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.pool: nn.Module = nn.MaxPool2d(2) if has_pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`(b, c, t, band)` -> `(b, c', t', band')`."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.pool(torch.relu(self.bn2(self.conv2(x))))
        return x


class BackboneNetwork(nn.Module):
    """Four blocks of 64 to 512 channels: 4.68 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        pairs = zip((1, *_CHANNELS), _CHANNELS, strict=False)
        self.blocks = nn.ModuleList(
            BackboneBlock(before, after, has_pool=number < 3) for number, (before, after) in enumerate(pairs)
        )

    def forward(self, mel: Tensor) -> Iterator[Tensor]:
        """`(b, 1, t, 96)` -> the output of each block, after its pool."""
        x = mel
        for block in self.blocks:
            x = block(x)
            yield x


class BackboneFeatures(nn.Module):
    """Waveform `(b, n)` -> float32 `(b, 5952)`, 0 or more.

    For each block, averaged over frequency: mean, maximum and standard deviation over time. For the last
    block also mean and maximum over time of three groups of bands. All as log(1 + x).
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.frontend = BackboneFrontend()
        self.network = BackboneNetwork()
        self.network.load_state_dict(weights)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.eval()

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """See the class. On a GPU the network computes in bfloat16."""
        mel = self.frontend(waveform).contiguous(memory_format=torch.channels_last)
        with torch.autocast(mel.device.type, torch.bfloat16, enabled=mel.is_cuda):
            return pooled(self.network(mel))


def pooled(blocks: Iterable[Tensor]) -> Tensor:
    """The outputs of the blocks -> features `(b, 5952)`, see `BackboneFeatures`."""
    parts: list[Tensor] = []
    for block in blocks:
        over_time = block.float().mean(dim=3)
        parts += [over_time.mean(dim=2), over_time.amax(dim=2), over_time.std(dim=2)]
    for group in block.float().chunk(_BAND_GROUPS, dim=3):
        over_time = group.mean(dim=3)
        parts += [over_time.mean(dim=2), over_time.amax(dim=2)]
    return torch.log1p(torch.cat(parts, dim=1))

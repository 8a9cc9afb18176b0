"""Waveform -> log-mel spectrogram, as one module that training, export and serving share.

Formula, per frame of a Hann window `w` of `win_length` samples, centred (zeros beyond the ends):

    power   = |STFT|^2 / (sum w)^2        1/4 for a full-scale sine in the middle of a bin
    mel     = filter_bank @ power         triangles on the Slaney mel scale, peak 1
    log_mel = (ln(mel + log_eps) - mean[band]) / std[band]

Before that, a window may be made louder (`LogMel.peak_normalised`). Nothing depends on a neighbour in the
batch, and nothing is cut off relative to the loudest part (no `top_db`). The mel scale is that of Slaney's
Auditory Toolbox (1998), the default of librosa; the tests compare with `torchaudio`. The arrays are
stored in the checkpoint, not rebuilt when it is loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor, nn

from audiocnn.config import FrontendConfig
from audiocnn.errors import ModelFileError

_BANDS_PER_GROUP = 16
_LINEAR_HZ = 200.0 / 3  # Hz per mel below 1 kHz
_LOG_STEP = math.log(6.4) / 27.0  # ln(frequency ratio) per mel above it


def hz_to_mel(hz: float) -> float:
    """Slaney mel of a frequency in Hz: linear below 1 kHz, logarithmic above."""
    if hz < 1000.0:
        return hz / _LINEAR_HZ
    return 1000.0 / _LINEAR_HZ + math.log(hz / 1000.0) / _LOG_STEP


def mel_to_hz(mel: float) -> float:
    """Inverse of `hz_to_mel`."""
    if mel < 1000.0 / _LINEAR_HZ:
        return mel * _LINEAR_HZ
    return 1000.0 * math.exp(_LOG_STEP * (mel - 1000.0 / _LINEAR_HZ))


def mel_points(config: FrontendConfig) -> list[float]:
    """The `n_mels + 2` corners in Hz: band `i` rises from corner `i` to `i + 1` and falls to `i + 2`."""
    mels = np.linspace(hz_to_mel(config.f_min), hz_to_mel(config.f_max), config.n_mels + 2)
    return [mel_to_hz(float(mel)) for mel in mels]


def map_axes(shape: tuple[int, int], config: FrontendConfig) -> tuple[list[float], list[float]]:
    """Where the cells of a map lie: Hz of every row, and seconds into the window of every column.

    `(n_mels, num_frames)` is the log-mel itself. For what the network makes of it each halving keeps
    every second position (its kernels are odd and padded symmetrically), so cell `i` after a stride of
    `s` is centred on band and frame `i * s`, though it sees much around it.
    """
    stride = config.n_mels // shape[0]
    centres = mel_points(config)[1:-1]
    frame_seconds = config.hop_length / config.sample_rate
    hz = [round(centres[row * stride], 2) for row in range(shape[0])]
    return hz, [round(column * stride * frame_seconds, 4) for column in range(shape[1])]


def filter_bank(config: FrontendConfig) -> Tensor:
    """Triangular filters with peak 1: float32 `(n_mels, n_fft // 2 + 1)`.

    Raises `ModelFileError` if a band is narrower than a bin and would always be empty.
    """
    corners = np.array(mel_points(config))[:, None]
    bins = np.linspace(0.0, config.sample_rate / 2, config.n_fft // 2 + 1)
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    bank = np.maximum(0.0, np.minimum(rising, falling))
    if empty := int((bank.sum(axis=1) == 0).sum()):
        raise ModelFileError(
            f"{empty} of {config.n_mels} mel bands are empty at n_fft={config.n_fft}: raise n_fft, or "
            "lower n_mels or sample_rate"
        )
    return torch.from_numpy(bank.astype(np.float32))


class LogMel(nn.Module):
    """`(batch, window_samples)` float32 in [-1, 1] -> `(batch, 1, n_mels, num_frames)` float32."""

    window: Tensor
    bank: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: FrontendConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", torch.hann_window(config.win_length, periodic=True))
        self.register_buffer("bank", filter_bank(config))
        self.register_buffer("mean", torch.zeros(config.n_mels, 1))
        self.register_buffer("std", torch.ones(config.n_mels, 1))
        self._group_bands()
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
            lambda module, _: module._group_bands()
        )

    def power(self, waveform: Tensor) -> Tensor:
        """Power spectrum `(batch, n_fft // 2 + 1, num_frames)`, 1/4 for a full-scale sine."""
        spectrum = torch.stft(
            waveform,
            n_fft=self.config.n_fft,
            hop_length=self.config.hop_length,
            win_length=self.config.win_length,
            window=self.window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        return (spectrum.real.square() + spectrum.imag.square()) / self.window.sum().square()

    def power_mel(self, waveform: Tensor) -> Tensor:
        """Mel power before the logarithm: `(batch, n_mels, num_frames)`, 0 or more.

        The bank is multiplied in groups of neighbouring bands, each with the bins that it covers: of the
        whole bank 98 % are zeros, and the full product took half of the front end's time.
        """
        power = self.power(waveform)
        return torch.cat([self.bank[rows, bins] @ power[:, bins] for rows, bins in self._groups], dim=1)

    def _group_bands(self) -> None:
        """Which bins each group of bands covers, read off the bank that is stored."""
        self._groups: list[tuple[slice, slice]] = []
        for first in range(0, self.config.n_mels, _BANDS_PER_GROUP):
            rows = slice(first, first + _BANDS_PER_GROUP)
            covered = self.bank[rows].any(dim=0).nonzero().flatten().tolist()
            self._groups.append((rows, slice(covered[0], covered[-1] + 1)))

    def peak_normalised(self, waveform: Tensor) -> Tensor:
        """Each window with its peak at full scale, or as near to it as `max_gain_db` reaches: people
        stand nearer to a microphone or further away. Silence stays silence."""
        peak = waveform.abs().amax(dim=1, keepdim=True)
        most = 10 ** (self.config.max_gain_db / 20)
        return waveform * (1 / peak.clamp_min(1 / most))

    def forward(self, waveform: Tensor) -> Tensor:
        """See the class: the normalised log-mel."""
        if self.config.max_gain_db:
            waveform = self.peak_normalised(waveform)
        log_mel = torch.log(self.power_mel(waveform) + self.config.log_eps)
        return ((log_mel - self.mean) / self.std).unsqueeze(1)

    def fingerprint(self) -> str:
        """SHA-256 over the parameters and the stored arrays: equal front ends, equal fingerprints."""
        digest = hashlib.sha256(json.dumps(asdict(self.config), sort_keys=True).encode())
        for name, array in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(array.cpu().contiguous().numpy().astype("<f4").tobytes())
        return digest.hexdigest()

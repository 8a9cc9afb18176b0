"""Waveform -> log-mel spectrogram in PyTorch: for training, the exports, TorchScript and GPUs.

ONNX files on a CPU get the same from the same stored arrays without PyTorch (`numpy_frontend`).

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

import torch
from torch import Tensor, nn

from audiocnn.arrays import FloatArray
from audiocnn.config import FrontendConfig
from audiocnn.model import mel

_BANDS_PER_GROUP = 16


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
        self.register_buffer("bank", torch.from_numpy(mel.filter_bank(config)))
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

    def arrays(self) -> dict[str, FloatArray]:
        """The stored arrays: `window`, `bank`, `mean` and `std`, float32."""
        return {name: array.cpu().numpy() for name, array in self.state_dict().items()}

    def fingerprint(self) -> str:
        """See `mel.fingerprint`."""
        return mel.fingerprint(self.config, self.arrays())

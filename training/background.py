"""Synthetic sounds of no class, with equal targets for all classes.

Noise, tones, hums, clicks, chirps and shuffled grains are drawn for each batch. Speech (`espeak-ng`) and
music (`fluidsynth` with a General MIDI sound font) are rendered once per run if these programs are installed,
see `training.synthesisers`. Waveforms are float32 `(count, n)`; draws come from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from audiocnn.audio.generators import chirps, clicks, grains, hums, noise, tones, uniform

_HIGHEST_DB, _LOWEST_DB = 0.0, -40.0


class Background:
    """Draws sounds at `sample_rate` Hz; `rendered` are speech and music, int16 `(m, n)`, m = 0 for none."""

    def __init__(self, sample_rate: int, rendered: Tensor | None = None) -> None:
        self.sample_rate = sample_rate
        self.rendered = rendered if rendered is not None and len(rendered) else None

    def replace(self, waveform: Tensor, probability: float) -> tuple[Tensor, Tensor]:
        """Replace clips of `(b, n)` with this probability; also returns which were replaced: bool `(b,)`."""
        replaced = torch.rand(len(waveform), device=waveform.device) < probability
        rows = replaced.nonzero()[:, 0]
        if len(rows):
            waveform = waveform.index_copy(0, rows, torch.cat([self._draw(waveform) for _ in rows]))
        return waveform, replaced

    def _draw(self, waveform: Tensor) -> Tensor:
        """One sound `(1, n)` of a random kind, its peak at -40 to 0 dB full scale."""
        kinds: list[Callable[[Tensor, int], Tensor]] = [noise, tones, clicks, chirps, grains, hums, hums]
        if self.rendered is not None:
            kinds += [self._rendered] * 3  # speech and music are the most frequent sounds of no class
        kind = kinds[int(torch.randint(len(kinds), (1,)))]
        sound = kind(waveform, self.sample_rate)
        peak = sound.abs().amax(dim=1, keepdim=True).clamp_min(1e-6)
        return sound / peak * torch.pow(10.0, uniform(sound, _LOWEST_DB, _HIGHEST_DB) / 20)

    def _rendered(self, waveform: Tensor, sample_rate: int) -> Tensor:
        assert self.rendered is not None
        row = int(torch.randint(len(self.rendered), (1,)))
        shift = int(torch.randint(waveform.shape[1], (1,)))
        return (self.rendered[row : row + 1].to(waveform.device).float() / 32768).roll(shift, dims=1)

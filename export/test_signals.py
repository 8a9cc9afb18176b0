"""Signals on which exports are compared: real clips if there are any, synthetic sounds, and edge cases."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from audiocnn import audio
from audiocnn.arrays import FloatArray
from audiocnn.audio import synthetic, windows
from audiocnn.config import FrontendConfig
from audiocnn.datasets import read_dataset
from audiocnn.errors import DatasetError
from audiocnn.model.frontend import LogMel

_REAL_CLIPS = 32


def waveforms(config: FrontendConfig) -> list[FloatArray]:
    """Mono waveforms at `config.sample_rate`, float32 `(num_samples,)` in [-1, 1].

    One second of silence, five synthetic sounds, and 32 clips of ESC-50 over all classes, if it is in
    `data/ESC-50` or the folder of the variable `ESC50_DIR`.
    """
    sounds = [synthetic.wav(name) for name in synthetic.SOUNDS]
    try:
        rows = read_dataset(Path(os.environ.get("ESC50_DIR", "data/ESC-50"))).clips
        sounds += [row.path.read_bytes() for row in rows[:: max(1, len(rows) // _REAL_CLIPS)]]
    except DatasetError:
        pass  # exports work without the dataset
    silence = np.zeros(config.sample_rate, np.float32)
    return [silence, *(audio.decode(sound, sample_rate=config.sample_rate).waveform for sound in sounds)]


def edge_cases(config: FrontendConfig) -> list[FloatArray]:
    """A sound cut to 1 sample, and to one sample less than, exactly, and more than a hop and a window."""
    hop, window = config.hop_length, config.window_samples
    sound = audio.decode(synthetic.wav("rain"), sample_rate=config.sample_rate).waveform
    sound = np.resize(sound, window + 1)
    return [sound[:size] for size in (1, hop - 1, hop, hop + 1, window - 1, window, window + 1)]


@torch.inference_mode()
def log_mels(log_mel: LogMel, clips: list[FloatArray]) -> FloatArray:
    """Log-mels of the first window of each clip: float32 `(n, 1, n_mels, num_frames)`."""
    first = np.stack([windows.cut(waveform, log_mel.config)[0] for waveform in clips])
    result: FloatArray = log_mel(torch.from_numpy(first)).numpy()
    return result

"""What exports are compared on: real clips if there are any, synthetic sounds, and awkward lengths."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from audiocnn import audio
from audiocnn.audio import synthetic, windows
from audiocnn.config import FrontendConfig
from audiocnn.datasets import read_dataset
from audiocnn.errors import DatasetError
from audiocnn.model.frontend import LogMel

FloatArray = npt.NDArray[np.float32]

_REAL_CLIPS = 32


def waveforms(config: FrontendConfig) -> list[FloatArray]:
    """Mono waveforms at `config.sample_rate`: five synthetic sounds, silence, and real clips spread over
    the classes."""
    sounds = [synthetic.wav(name) for name in synthetic.SOUNDS]
    try:
        rows = read_dataset(Path(os.environ.get("ESC50_DIR", "data/ESC-50"))).clips
        sounds += [row.path.read_bytes() for row in rows[:: max(1, len(rows) // _REAL_CLIPS)]]
    except DatasetError:
        pass  # a machine without the clips exports as well
    silence = np.zeros(config.sample_rate, np.float32)
    return [silence, *(audio.decode(sound, sample_rate=config.sample_rate).waveform for sound in sounds)]


def awkward(config: FrontendConfig) -> list[FloatArray]:
    """Pieces of a sound whose lengths lie beside a frame's, a window's, and nothing."""
    hop, window = config.hop_length, config.window_samples
    sound = audio.decode(synthetic.wav("rain"), sample_rate=config.sample_rate).waveform
    sound = np.resize(sound, window + 1)
    return [sound[:size] for size in (1, hop - 1, hop, hop + 1, window - 1, window, window + 1)]


@torch.inference_mode()
def log_mels(log_mel: LogMel, clips: list[FloatArray]) -> FloatArray:
    """Log-mels of the first windows of the clips: `(n, 1, n_mels, num_frames)`."""
    first = np.stack([windows.cut(waveform, log_mel.config)[0] for waveform in clips])
    result: FloatArray = log_mel(torch.from_numpy(first)).numpy()
    return result

"""The mel spectrogram of a whole clip in dB, to look at; the network gets normalised windows instead."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from audiocnn.arrays import FloatArray
from audiocnn.model.engine import FeatureExtractor

MAX_COLUMNS = 2000
_BLOCK_FRAMES = 1000  # frames computed at a time: 20 s of the released model
_LOWEST_POWER = 1e-10  # -100 dB


@dataclass(frozen=True)
class ClipSpectrogram:
    """Mel power in dB; a full-scale sine has about -6."""

    decibels: FloatArray  # (n_mels, num_columns), -100 or more, lowest band first
    column_seconds: float  # from one column to the next


def clip_spectrogram(waveform: FloatArray, log_mel: FeatureExtractor) -> ClipSpectrogram:
    """The spectrogram of `waveform (num_samples,)`, of at most `MAX_COLUMNS` columns.

    A column is the mean power of as many neighbouring frames as that takes. The level is not normalised.
    """
    config = log_mel.config
    num_frames = 1 + len(waveform) // config.hop_length
    per_column = math.ceil(num_frames / MAX_COLUMNS)
    block = per_column * max(1, _BLOCK_FRAMES // per_column)
    columns = []
    for first in range(0, num_frames, block):
        power = _power(waveform, log_mel, first, min(block, num_frames - first))
        edges = np.arange(0, power.shape[1], per_column)
        counts = np.diff(np.append(edges, power.shape[1]))
        columns.append(np.add.reduceat(power, edges, axis=1) / counts)
    mean_power = np.concatenate(columns, axis=1)
    decibels = 10 * np.log10(np.maximum(mean_power, _LOWEST_POWER))
    return ClipSpectrogram(
        np.asarray(decibels, np.float32), per_column * config.hop_length / config.sample_rate
    )


def _power(waveform: FloatArray, log_mel: FeatureExtractor, first: int, count: int) -> FloatArray:
    """Mel power `(n_mels, count)` of the frames from `first` on, each with the samples around it."""
    hop = log_mel.config.hop_length
    margin = math.ceil(log_mel.config.n_fft / 2 / hop)  # frames that see beyond the ends of a block
    start = max(0, first - margin)
    samples = waveform[start * hop : (first + count - 1 + margin) * hop]
    power = log_mel.power_mel(samples)
    return power[:, first - start : first - start + count]

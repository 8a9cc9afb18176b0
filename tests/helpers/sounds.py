"""Waveforms and sound files."""

from __future__ import annotations

import io

import numpy as np
import soundfile

SAMPLE_RATE = 44_100


def sound_file(waveform: np.ndarray, *, sample_rate: int = SAMPLE_RATE, **options: str) -> bytes:
    """A sound file of `(num_samples,)` or `(num_samples, channels)`; WAV, 16 bit unless told."""
    file = io.BytesIO()
    soundfile.write(file, waveform, sample_rate, **({"format": "WAV", "subtype": "PCM_16"} | options))
    return file.getvalue()


def tone(seconds: float, *, hz: float = 1000.0, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """A sine at half of full scale: float32 `(num_samples,)`."""
    t = np.arange(round(seconds * sample_rate)) / sample_rate
    return (0.5 * np.sin(2 * np.pi * hz * t)).astype(np.float32)

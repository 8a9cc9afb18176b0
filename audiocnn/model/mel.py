"""The mel filter bank of the front end, and where the cells of its maps lie; the formula is in `frontend`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from audiocnn.arrays import FloatArray
from audiocnn.config import FrontendConfig
from audiocnn.errors import ModelFileError

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


def filter_bank(config: FrontendConfig) -> FloatArray:
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
    return np.asarray(bank, np.float32)


def fingerprint(config: FrontendConfig, arrays: Mapping[str, FloatArray]) -> str:
    """SHA-256 over the parameters and the stored arrays: equal front ends, equal fingerprints."""
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array, "<f4").tobytes())
    return digest.hexdigest()


def check_fingerprint(found: str, trained: str) -> None:
    """Raises `ModelFileError` if the weights were trained with another front end."""
    if found != trained:
        raise ModelFileError(
            f"the stored front end has fingerprint {found[:12]}, the weights were trained with "
            f"{trained[:12]}: the files do not belong together"
        )

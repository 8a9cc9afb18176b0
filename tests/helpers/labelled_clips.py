"""Clips with distinguishable answers, and real clips in one another."""

from __future__ import annotations

from typing import Any

import numpy as np

from audiocnn import audio
from audiocnn.audio import synthetic
from audiocnn.datasets import Dataset
from tests.helpers.sounds import SAMPLE_RATE


def numbered_clips(count: int) -> list[bytes]:
    """The synthetic sounds, each with a tail of its own, so that an answer can be told from another's."""
    sounds = [synthetic.wav(name) for name in synthetic.SOUNDS]
    return [sounds[number % len(sounds)] + bytes([number % 256]) * number for number in range(count)]


def classes(results: list[tuple[Any, Any]]) -> list[str]:
    for _, result in results:
        if isinstance(result, Exception):
            raise result
    return [result["predictions"][0]["class"] for _, result in results]


def siren_in_rain(esc50: Dataset, seconds: int, at: float) -> np.ndarray:
    """Rain with 2 s of siren: real clips."""

    def first(label: str) -> np.ndarray:
        clip = next(clip for clip in esc50.clips if clip.label == label)
        return audio.decode(clip.path.read_bytes(), sample_rate=SAMPLE_RATE).waveform[: 5 * SAMPLE_RATE]

    rain, siren = first("rain"), first("siren")[: 2 * SAMPLE_RATE]
    scene = np.tile(0.1 * rain / np.abs(rain).max(), seconds // 5)
    start = round(at * SAMPLE_RATE)
    scene[start : start + len(siren)] += 0.8 * siren / np.abs(siren).max()
    return scene.astype(np.float32)

"""Conditions for robustness measurements: noise, codecs, gain, sample rates, short excerpts.

A condition turns a waveform (float32 `(num_samples,)`, mono, in [-1, 1]) and its sample rate in Hz into the
bytes of a sound file, which is decoded like any upload. Conditions are deterministic: the seed of noise is
the waveform.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import soxr
from rich.console import Console
from rich.table import Table

from audiocnn.arrays import AnyFloatArray, FloatArray
from audiocnn.audio.audio_input import encode
from training.far_sounds import home_noise

Condition = Callable[[FloatArray, int], bytes]

# libsndfile takes a level from 0 to 1 instead of a bit rate. Measured on ESC-50: MP3 64.9 kbit/s constant (at
# lower sample rates the scale differs), Opus 24 kbit/s on average (less for silence).
_MP3 = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": 0.87}
_OPUS = {"format": "OGG", "subtype": "OPUS", "compression_level": 0.92}


def wav(waveform: FloatArray, sample_rate: int, *, subtype: str = "PCM_16") -> bytes:
    """A WAV file; samples outside [-1, 1] are clipped unless `subtype` is `FLOAT`."""
    return encode(waveform, sample_rate, format="WAV", subtype=subtype)


def gain(decibels: float) -> Condition:
    """A gain in dB, then 16 bits: clipped at full scale."""
    factor = np.float32(10 ** (decibels / 20))
    return lambda waveform, sample_rate: wav(waveform * factor, sample_rate)


def white(seed: int, length: int, sample_rate: int) -> AnyFloatArray:
    """White noise: float64 `(length,)`."""
    return np.random.default_rng(seed).standard_normal(length)


def machine(seed: int, length: int, sample_rate: int) -> AnyFloatArray:
    """A fan, mains hum and dull knocks: float32 `(length,)`."""
    return home_noise(random.Random(seed), length, sample_rate)  # noqa: S311  not for secrets


def noise(snr: float, sound: Callable[[int, int, int], AnyFloatArray] = white) -> Condition:
    """A sound `snr` dB below the mean power of the whole clip, scaled down where their sum would clip."""

    def add(waveform: FloatArray, sample_rate: int) -> bytes:
        added = sound(zlib.crc32(waveform.tobytes()), len(waveform), sample_rate)
        noisy = waveform + _rms(waveform) * 10 ** (-snr / 20) * added / _rms(added)
        return wav((noisy / max(1.0, np.abs(noisy).max())).astype(np.float32), sample_rate)

    return add


def _rms(waveform: AnyFloatArray) -> float:
    return float(np.sqrt(np.square(waveform, dtype=np.float64).mean()))


def codec(hertz: int, **options: Any) -> Condition:
    """A lossy file with this sample rate in Hz; `options` go to `soundfile.write`."""
    return lambda waveform, sample_rate: encode(_resample(waveform, sample_rate, hertz), hertz, **options)


def rate(hertz: int) -> Condition:
    """A file with another sample rate in Hz."""
    return lambda waveform, sample_rate: wav(_resample(waveform, sample_rate, hertz), hertz)


def excerpt(seconds: float) -> Condition:
    """The excerpt of that many seconds with the highest energy; a shorter clip stays as it is."""

    def cut(waveform: FloatArray, sample_rate: int) -> bytes:
        length = min(round(seconds * sample_rate), len(waveform))
        energy = np.concatenate([[0.0], np.cumsum(np.square(waveform, dtype=np.float64))])
        start = int((energy[length:] - energy[:-length]).argmax())
        return wav(waveform[start : start + length], sample_rate)

    return cut


def shift(share: float) -> Condition:
    """A circular shift by a fraction of the length, as float WAV: for test-time augmentation."""
    return lambda waveform, sample_rate: wav(
        np.roll(waveform, round(share * len(waveform))), sample_rate, subtype="FLOAT"
    )


CONDITIONS: dict[str, Condition] = {
    "gain -30 dB": gain(-30),
    "gain -15 dB": gain(-15),
    "gain +10 dB": gain(10),
    "hard clipping (gain +20 dB)": gain(20),
    "white noise, 20 dB SNR": noise(20),
    "white noise, 10 dB SNR": noise(10),
    "white noise, 0 dB SNR": noise(0),
    "fan and hum, 10 dB SNR": noise(10, machine),
    "fan and hum, 0 dB SNR": noise(0, machine),
    "MP3, 64 kbit/s": codec(44_100, **_MP3),
    "Opus, 24 kbit/s": codec(48_000, **_OPUS),
    "16 kHz file": rate(16_000),
    "8 kHz file": rate(8_000),
    "1 s excerpt (the loudest)": excerpt(1.0),
}


def measure(accuracy_under: Callable[[str, Condition], float], clean: float) -> dict[str, Any]:
    """`clean`, `conditions` (a list of `{condition, accuracy, difference}`), and the name of the `worst` one.

    `accuracy_under` measures the accuracy (0 to 1) under a condition; `clean` is the accuracy without one.
    """
    accuracies = {name: accuracy_under(name, condition) for name, condition in CONDITIONS.items()}
    rows = [
        {"condition": name, "accuracy": accuracy, "difference": accuracy - clean}
        for name, accuracy in accuracies.items()
    ]
    return {"clean": clean, "conditions": rows, "worst": min(accuracies, key=lambda name: accuracies[name])}


def print_table(result: dict[str, Any]) -> None:
    """Print what `measure` returned."""
    table = Table("condition", "accuracy", "difference", title="robustness")
    table.add_row("clean", f"{result['clean']:.2%}", "")
    for row in result["conditions"]:
        style = "bold red" if row["condition"] == result["worst"] else None
        table.add_row(
            row["condition"], f"{row['accuracy']:.2%}", f"{100 * row['difference']:+.2f}", style=style
        )
    Console().print(table)
    print(f"worst: {result['worst']}")


def _resample(waveform: FloatArray, sample_rate: int, wanted: int) -> FloatArray:
    if sample_rate == wanted:
        return waveform
    resampled = soxr.resample(waveform, sample_rate, wanted, quality="HQ")  # overshoots full scale at edges
    return np.clip(np.asarray(resampled, dtype=np.float32), -1.0, 1.0)

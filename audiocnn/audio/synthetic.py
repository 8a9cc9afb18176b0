"""Sounds made from arithmetic, for trying the server where no recording is at hand.

`python -m audiocnn.audio.synthetic DIR` writes them as WAV files; nothing in them was recorded or trained on.
Every function returns a waveform of 5 s: float32 `(num_samples,)` in [-1, 1].
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from audiocnn.arrays import AnyFloatArray, FloatArray
from audiocnn.audio.audio_input import encode

SAMPLE_RATE = 44_100
SECONDS = 5.0


def _time() -> AnyFloatArray:
    return np.arange(round(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE


def _finish(signal: AnyFloatArray, peak: float = 0.8) -> FloatArray:
    return np.asarray(signal / np.abs(signal).max() * peak, dtype=np.float32)


def _as_recorded(signal: AnyFloatArray, seconds: float, noise_db: float = -30.0) -> AnyFloatArray:
    """As recorded in a place with this reverberation time (T60), with pink noise at `noise_db` of the signal.

    The network was trained on recordings, which have both: bare tones are unknown to it.
    """
    rng = np.random.default_rng(5)
    n, size = len(signal), 2 * len(signal)
    hz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    tail = rng.standard_normal(n) * 10 ** (-3 * np.arange(n) / (seconds * SAMPLE_RATE))
    response = np.fft.rfft(tail, size) / (1 + (hz / 6000) ** 2)
    echoes = np.fft.irfft(np.fft.rfft(signal, size) * response, size)[:n]
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(size)) / np.sqrt(np.maximum(hz, 20)), size)[:n]
    parts = ((signal, 1.0), (echoes, 0.5), (noise, 10 ** (noise_db / 20)))
    return np.asarray(sum(level * part / part.std() for part, level in parts))


def _bells(*detuning: float) -> AnyFloatArray:
    """Two bells: inharmonic partials (hum, prime, tierce, quint, nominal, ...), each of several sines."""
    t = _time()
    partials = [(0.5, 0.5, 4.0), (1.0, 0.7, 3.0), (1.2, 0.6, 2.2), (1.5, 0.4, 1.6), (2.0, 1.0, 1.5)]
    partials += [(2.67, 0.5, 0.8), (3.0, 0.4, 0.7), (4.1, 0.35, 0.5), (5.4, 0.25, 0.35), (6.8, 0.2, 0.25)]
    decays = [level * np.exp(-t / decay) for _, level, decay in partials]
    signal = np.zeros_like(t)
    for prime, starts in ((440.0, (0.1, 2.1, 4.1)), (370.0, (1.1, 3.1))):
        tones = (sum(np.sin(2 * np.pi * prime * ratio * d * t) for d in detuning) for ratio, _, _ in partials)
        bell = sum(tone * decay for tone, decay in zip(tones, decays, strict=True))
        for first in (round(start * SAMPLE_RATE) for start in starts):
            signal[first:] += bell[: len(t) - first]
    return signal


def church_bells() -> FloatArray:
    """Two bells that ring out, and beat, for no bell is quite round."""
    return _finish(_as_recorded(_bells(1.0, 1.001), 1.5, -20))


def _wailing() -> AnyFloatArray:
    t = _time()
    pitch = 1000 + 400 * np.sin(2 * np.pi * 0.2 * t - np.pi / 2)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    before, tone, twice_cosine = np.zeros_like(t), np.sin(phase), 2 * np.cos(phase)
    signal = tone.copy()
    for harmonic in range(2, 9):  # sin(n x) = 2 cos(x) sin((n - 1) x) - sin((n - 2) x)
        before, tone = tone, twice_cosine * tone - before
        signal += tone / harmonic
    return signal


def siren() -> FloatArray:
    """A wailing siren in a street: a rich tone that sweeps slowly between 600 and 1,400 Hz."""
    return _finish(_as_recorded(_wailing(), 1.0), peak=0.6)


def _beeps() -> AnyFloatArray:
    t = _time()
    beep = np.sign(np.sin(2 * np.pi * 2048 * t)) * 0.5 + np.sin(2 * np.pi * 2048 * t)
    gate = ((t % 1.0) < 0.5) & ((t % 0.125) < 0.0625)
    smooth = np.convolve(gate.astype(float), np.ones(64) / 64, mode="same")
    return np.asarray(beep * smooth)


def clock_alarm() -> FloatArray:
    """An electronic alarm clock: groups of four 2 kHz beeps."""
    return _finish(_as_recorded(_beeps(), 0.3), peak=0.7)


def rain() -> FloatArray:
    """Steady rain: shaped noise with many drops of random sizes on different surfaces."""
    rng = np.random.default_rng(7)
    n = len(_time())
    hz = np.fft.rfftfreq(n, 1 / SAMPLE_RATE)
    shape = (hz / 1000 + 0.1) ** -0.25 / (1 + (hz / 9000) ** 2)
    noise, age = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) * shape, n), np.arange(400)
    drops = np.zeros(n)
    for pitch in (1_800, 2_600, 3_500, 5_000, 7_000):
        sizes = (rng.random(n) < 0.004) * rng.exponential(size=n)
        drop = np.exp(-age / 40) * np.sin(2 * np.pi * pitch * age / SAMPLE_RATE)
        drops += np.convolve(sizes, drop, mode="same")
    return _finish(noise / noise.std() + 0.5 * drops / drops.std(), peak=0.5)


def _ticks(rng: np.random.Generator, signal: AnyFloatArray) -> AnyFloatArray:
    """Add four clicks a second, tick and tock, to the signal.

    A click is three resonances that decay within 12 ms, and noise that decays within 50 ms.
    """
    age = np.arange(round(0.2 * SAMPLE_RATE)) / SAMPLE_RATE
    for number, start in enumerate(np.arange(0.1, 4.75, 0.25)):
        ratio, level = (0.75, 0.8) if number % 2 else (1.0, 1.0)
        resonances = ((1.0, 3_300.0), (0.7, 6_200.0), (0.4, 10_540.0))
        click = sum(weight * np.sin(2 * np.pi * hz * ratio * age) for weight, hz in resonances)
        click = np.exp(-age / 0.012) * click + 0.1 * np.exp(-age / 0.05) * rng.standard_normal(len(age))
        first = round(start * SAMPLE_RATE)
        signal[first : first + len(click)] += level * click
    return signal


def clock_tick() -> FloatArray:
    """A wall clock in a furnished room."""
    return _finish(
        _as_recorded(_ticks(np.random.default_rng(3), np.zeros_like(_time())), 0.15, -25), peak=0.5
    )


SOUNDS: dict[str, Callable[[], FloatArray]] = {
    sound.__name__: sound for sound in (church_bells, siren, clock_alarm, rain, clock_tick)
}


@cache
def wav(name: str) -> bytes:
    """The sound as a 16-bit WAV file."""
    return encode(SOUNDS[name](), SAMPLE_RATE, format="WAV", subtype="PCM_16")


@cache
def reference_wavs() -> tuple[bytes, ...]:
    """Five bare sounds on which the logits in `reference.json` were computed, as 16-bit WAV files.

    They never change: files of other releases are checked with them.
    """
    n = len(_time())
    tone, rng = _wailing(), np.random.default_rng(3)
    siren = tone / np.abs(tone).max() + 0.02 * np.random.default_rng(1).standard_normal(n)
    ticks = _ticks(rng, rng.standard_normal(n) * 3e-3)
    sounds = ((_bells(1.0), 0.8), (siren, 0.6), (_beeps(), 0.7), (_reference_rain(), 0.5), (ticks, 0.5))
    finished = (_finish(sound, peak) for sound, peak in sounds)
    return tuple(encode(sound, SAMPLE_RATE, format="WAV", subtype="PCM_16") for sound in finished)


def _reference_rain() -> AnyFloatArray:
    rng = np.random.default_rng(7)
    noise = rng.standard_normal(len(_time()))
    hz = np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE)
    shape = (hz / 1000 + 0.1) ** 0.1 / (1 + (hz / 9000) ** 2)
    signal = np.fft.irfft(np.fft.rfft(noise) * shape, len(noise))
    drops = (rng.random(len(noise)) < 0.002) * rng.standard_normal(len(noise))
    click = np.exp(-np.arange(200) / 25) * np.sin(2 * np.pi * 5000 * np.arange(200) / SAMPLE_RATE)
    return np.asarray(signal / signal.std() + 2 * np.convolve(drops, click, mode="same"))


def main() -> int:
    """Write all sounds into a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m audiocnn.audio.synthetic", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in SOUNDS:
        (folder / f"{name}.wav").write_bytes(wav(name))
        print(folder / f"{name}.wav")
    return 0


if __name__ == "__main__":
    sys.exit(main())

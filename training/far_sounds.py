"""Test sounds far from every class, from other programs than the training sounds of `training.synthesisers`.

Speech by `flite`, music by `timidity`, home noise (mains hum, a fan, dull knocks) by NumPy. A kind whose
program is not installed is left out.
"""

from __future__ import annotations

import functools
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from audiocnn import audio
from audiocnn.arrays import FloatArray
from audiocnn.audio import windows
from audiocnn.config import FrontendConfig
from training.synthesisers import midi

COUNT = 60  # sounds of each kind
KINDS = ("speech", "music", "home noise")
_PROGRAMS = {"speech": "flite", "music": "timidity"}
_VOICES = ("kal", "awb", "rms", "slt")
_SENTENCES = (
    "please close the window before you leave the house",
    "the meeting has been moved to a quarter past eleven",
    "could you tell me how to get to the station",
    "two tickets to the city centre and back",
    "dinner is on the table and the children are upstairs",
    "the forecast says that it will be warmer tomorrow",
    "turn left after the bridge and follow the river",
    "we have not heard from them since last September",
)


def available() -> list[str]:
    """Kinds whose programs are installed."""
    return [kind for kind in KINDS if kind not in _PROGRAMS or shutil.which(_PROGRAMS[kind])]


@functools.cache
def make(kind: str, config: FrontendConfig, count: int) -> FloatArray:
    """`count` different windows, float32 `(count, window_samples)` in [-1, 1]; deterministic."""
    rng = random.Random(f"far {kind}")  # noqa: S311  not for secrets
    if kind == "home noise":
        return np.stack([home_noise(rng, config.window_samples, config.sample_rate) for _ in range(count)])
    program = _speech if kind == "speech" else _music
    decoded = (audio.decode(program(rng), sample_rate=config.sample_rate).waveform for _ in range(count))
    return np.stack([windows.cut(waveform, config)[0] for waveform in decoded])


def _speech(rng: random.Random) -> bytes:
    text = ", ".join(rng.sample(_SENTENCES, 3))
    stretch = f"duration_stretch={rng.uniform(0.8, 1.3):.2f}"
    return _file("flite", "-voice", rng.choice(_VOICES), "--setf", stretch, "-t", text, "-o")


def _music(rng: random.Random) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        song = Path(folder, "song.mid")
        song.write_bytes(midi(rng))
        return _file("timidity", str(song), "-Ow", "-o")


def _file(*command: str) -> bytes:
    """The file that a program writes, with its path as the last argument."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sound.wav")
        subprocess.run([*command, str(path)], capture_output=True, check=True)
        return path.read_bytes()


def home_noise(rng: random.Random, length: int, sample_rate: int) -> FloatArray:
    """Mains hum with harmonics, fan noise and up to three dull knocks: float32 `(length,)`.

    Its peak is at -30 to 0 dB of full scale.
    """
    generator = np.random.default_rng(rng.getrandbits(32))
    seconds = np.arange(length) / sample_rate
    mains = rng.choice((50, 60))
    hum = sum(
        rng.random() / n * np.sin(2 * np.pi * mains * n * seconds + 6.28 * rng.random()) for n in range(1, 9)
    )
    spectrum = np.fft.rfft(generator.standard_normal(length))
    hertz = np.fft.rfftfreq(length, 1 / sample_rate)
    fan = np.fft.irfft(spectrum / (1 + (hertz / rng.uniform(100, 800)) ** 2), n=length)
    sound = rng.random() * hum + rng.random() * fan / fan.std()
    for _ in range(rng.randrange(4)):
        start = rng.randrange(length)
        tail = seconds[: length - start]
        sound[start:] += 3 * np.exp(-tail / 0.03) * np.sin(2 * np.pi * rng.uniform(60, 200) * tail)
    return np.asarray(sound / np.abs(sound).max() * 10 ** (rng.uniform(-30, 0) / 20), dtype=np.float32)

"""The sounds that requests are built from: recordings of ESC-50 where there are any, else synthetic ones."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import soundfile

from audiocnn import audio, inputs
from audiocnn.arrays import FloatArray
from audiocnn.audio import synthetic
from audiocnn.classifier import Classifier
from audiocnn.datasets import read_dataset
from audiocnn.errors import DatasetError
from audiocnn.results import Result

SAMPLE_RATE = synthetic.SAMPLE_RATE
DEFAULT_FOLDER = Path("data/ESC-50")
CLIP_SECONDS = 5
FORMATS = {
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "wav24": {"format": "WAV", "subtype": "PCM_24"},
    "float": {"format": "WAV", "subtype": "FLOAT"},
    "ulaw": {"format": "WAV", "subtype": "ULAW"},
    "adpcm": {"format": "WAV", "subtype": "IMA_ADPCM"},
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
    "aiff": {"format": "AIFF", "subtype": "PCM_16"},
}


def sound_files(folder: Path) -> list[Path]:
    """All sound files below a folder, sorted; none if there is no such folder."""
    if not folder.exists():
        return []
    return sorted(Path(path) for path, _ in inputs.find([str(folder)], inputs.Notes()))


def recordings(count: int) -> tuple[list[FloatArray], str]:
    """Up to `count` waveforms of about 5 s at `SAMPLE_RATE`, and a description of the source.

    Clips of ESC-50 (folder `ESC50_DIR`), else the synthetic sounds.
    """
    try:
        rows = read_dataset(Path(os.environ.get("ESC50_DIR", DEFAULT_FOLDER))).clips
    except DatasetError:
        files = [synthetic.wav(name) for name in synthetic.SOUNDS][:count]
        origin = f"{len(files)} synthetic sounds (no ESC-50 found)"
    else:
        files = [row.path.read_bytes() for row in rows[:: max(1, len(rows) // count)][:count]]
        origin = f"{len(files)} clips of ESC-50"
    return [audio.decode(data, sample_rate=SAMPLE_RATE).waveform for data in files], origin


def encode(waveform: FloatArray, kind: str = "wav", *, sample_rate: int = SAMPLE_RATE) -> bytes:
    """A sound file of one of `FORMATS`."""
    file = io.BytesIO()
    file_rate = 48_000 if kind == "opus" else sample_rate
    with soundfile.SoundFile(file, "w", file_rate, 1, **FORMATS[kind]) as sound:
        for start in range(0, len(waveform), sample_rate):  # libsndfile's Vorbis crashes on a minute at once
            sound.write(waveform[start : start + sample_rate])
    return file.getvalue()


def wav_files(count: int) -> tuple[list[bytes], str]:
    """Up to `count` recordings in the format of the ESC-50 release: WAV, mono, 44.1 kHz, 16 bit, 5 s."""
    waveforms, origin = recordings(count)
    return [encode(waveform[: CLIP_SECONDS * SAMPLE_RATE]) for waveform in waveforms], f"{origin}, 16-bit WAV"


@dataclass(frozen=True)
class Clips:
    """WAV files, the expected class of each, and a description of their source."""

    bodies: list[bytes]
    expected: list[str]
    origin: str


def agreed(bodies: list[bytes], origin: str, served: list[str], eager: list[str]) -> Clips:
    """The clips with the same class in the served model and in float32 PyTorch: not every system runs both.

    Raises `ValueError` if there is none.
    """
    kept = [(body, a) for body, a, b in zip(bodies, served, eager, strict=True) if a == b]
    if not kept:
        raise ValueError("the served file and the checkpoint agree on no clip: run `make export`")
    origin += f", {len(bodies) - len(kept)} left out" if len(kept) < len(bodies) else ""
    return Clips([body for body, _ in kept], [name for _, name in kept], origin)


def top_classes(classifier: Classifier, bodies: list[bytes]) -> list[str]:
    """The most probable class of each clip. Raises `ValueError` for a clip that gets an error."""
    names = []
    for result in classifier.predict_batch(bodies):
        if not isinstance(result, Result):
            raise ValueError(f"a clip cannot be classified: {result}")
        names.append(result.label)
    return names

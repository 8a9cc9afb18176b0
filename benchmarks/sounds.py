"""Sounds to build requests from: recordings of ESC-50 where they are at hand, else synthetic ones."""

from __future__ import annotations

import io
import os
from pathlib import Path

import soundfile

from audiocnn import audio
from audiocnn.arrays import FloatArray
from audiocnn.audio import synthetic
from audiocnn.datasets import read_dataset
from audiocnn.errors import DatasetError

RATE = synthetic.SAMPLE_RATE
DEFAULT_FOLDER = Path("data/ESC-50")
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


def recordings(count: int) -> tuple[list[FloatArray], str]:
    """Up to `count` waveforms of about 5 s at `RATE`, not silent, and a word on where they come from."""
    try:
        rows = read_dataset(Path(os.environ.get("ESC50_DIR", DEFAULT_FOLDER))).clips
    except DatasetError:
        made = [audio.decode(synthetic.wav(name), sample_rate=RATE).waveform for name in synthetic.SOUNDS]
        return made[:count], f"{len(made[:count])} synthetic sounds (no ESC-50 at hand)"
    chosen = rows[:: max(1, len(rows) // count)][:count]
    waveforms = [audio.decode(row.path.read_bytes(), sample_rate=RATE).waveform for row in chosen]
    return waveforms, f"{len(chosen)} clips of ESC-50"


def encode(waveform: FloatArray, kind: str = "wav", *, rate: int = RATE) -> bytes:
    """A sound file of one of `FORMATS`."""
    file = io.BytesIO()
    samplerate = 48_000 if kind == "opus" else rate
    with soundfile.SoundFile(file, "w", samplerate, 1, **FORMATS[kind]) as sound:
        for start in range(0, len(waveform), rate):  # libsndfile's Vorbis crashes on a minute at once
            sound.write(waveform[start : start + rate])
    return file.getvalue()

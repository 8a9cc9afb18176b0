"""The clips that the serving benchmark sends, and the answer that every server must give to each."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import soundfile

from audiocnn import audio
from audiocnn.audio import synthetic
from audiocnn.classifier import Classifier
from audiocnn.config import FrontendConfig
from audiocnn.datasets import read_dataset
from audiocnn.errors import DatasetError
from audiocnn.results import Result

DEFAULT_FOLDER = Path("data/ESC-50")


@dataclass(frozen=True)
class Clips:
    """WAV files, the top class of each, and a word on where they come from."""

    bodies: list[bytes]
    expected: list[str]
    origin: str


def load(count: int, served: Classifier, eager: Classifier) -> Clips:
    """Up to `count` clips of ESC-50 (`ESC50_DIR`), else the synthetic sounds.

    The expected class is that of the engine that is served. Clips of which PyTorch's float32 thinks
    otherwise are left out, for the servers that are compared do not all run the same precision.
    Raises `ValueError` if none is left.
    """
    bodies, origin = _bodies(count, served.config.frontend)
    ours, theirs = (_top_classes(classifier, bodies) for classifier in (served, eager))
    kept = [number for number, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a == b]
    if not kept:
        raise ValueError("the served file and the checkpoint agree on no clip: run `make export`")
    origin += f", {len(bodies) - len(kept)} left out" if len(kept) < len(bodies) else ""
    return Clips([bodies[n] for n in kept], [ours[n] for n in kept], origin)


def _bodies(count: int, config: FrontendConfig) -> tuple[list[bytes], str]:
    folder = Path(os.environ.get("ESC50_DIR", DEFAULT_FOLDER))
    try:
        rows = read_dataset(folder).clips
    except DatasetError:
        sounds = [synthetic.wav(name) for name in synthetic.SOUNDS]
        return sounds, f"{len(sounds)} synthetic sounds (no ESC-50 at hand)"
    chosen = rows[:: max(1, len(rows) // count)][:count]
    return [_wav(row.path, config) for row in chosen], f"{len(chosen)} clips of ESC-50, 16-bit WAV"


def _wav(path: Path, config: FrontendConfig) -> bytes:
    """A WAV file as it is; any other as ESC-50's release has it: mono, 44.1 kHz, 16 bit, 5 s."""
    data = path.read_bytes()
    if path.suffix == ".wav":
        return data
    waveform = audio.decode(data, sample_rate=config.sample_rate).waveform[: config.window_samples]
    file = io.BytesIO()
    soundfile.write(file, waveform, config.sample_rate, subtype="PCM_16", format="WAV")
    return file.getvalue()


def _top_classes(classifier: Classifier, bodies: list[bytes]) -> list[str]:
    names = []
    for result in classifier.predict_batch(bodies):
        if not isinstance(result, Result):
            raise ValueError(f"a clip cannot be answered: {result}")
        names.append(result.label)
    return names

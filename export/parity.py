"""Does an exported graph compute what PyTorch computes? Asked before a file gets its name."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch

from audiocnn import audio, samples, windows
from audiocnn.datasets import read_dataset
from audiocnn.engine import Graph
from audiocnn.errors import DatasetError, ModelFileError
from audiocnn.frontend import LogMel

FloatArray = npt.NDArray[np.float32]

TOLERANCE = 1e-4  # float32: largest difference over the larger of 1 and the largest value
_REAL_CLIPS = 32


def probe_clips() -> list[bytes]:
    """Sounds to compare on: real clips spread over the classes if there are any, and synthetic ones."""
    clips = [samples.wav(name) for name in samples.SOUNDS]
    clips.append(_wav(np.zeros(samples.SAMPLE_RATE, np.float32)))
    try:
        rows = read_dataset(Path(os.environ.get("ESC50_DIR", "data/ESC-50"))).clips
    except DatasetError:
        return clips
    return clips + [row.path.read_bytes() for row in rows[:: max(1, len(rows) // _REAL_CLIPS)]]


def _wav(waveform: FloatArray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, samples.SAMPLE_RATE, subtype="FLOAT", format="WAV")
    return file.getvalue()


@torch.inference_mode()
def probe_log_mels(log_mel: LogMel) -> FloatArray:
    """Log-mels of the first windows of `probe_clips`: `(n, 1, n_mels, num_frames)`."""
    config = log_mel.config
    waveforms = [audio.decode(c, sample_rate=config.sample_rate).waveform for c in probe_clips()]
    first = np.stack([windows.cut(waveform, config)[0] for waveform in waveforms])
    log_mels: FloatArray = log_mel(torch.from_numpy(first)).numpy()
    return log_mels


def largest_difference(graph: Graph, reference: Graph, log_mels: FloatArray, outputs: list[str]) -> float:
    """Over all outputs and clips, alone and in odd batches, relative to the larger of 1 and the
    largest value of that output in the reference."""
    worst = 0.0
    for batch in (log_mels[:1], log_mels[1:4], log_mels[4:]):
        for ours, theirs in zip(graph.run(batch, outputs), reference.run(batch, outputs), strict=True):
            assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
            worst = max(worst, float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max())))
    return worst


def check(graph: Graph, reference: Graph, log_mels: FloatArray, outputs: list[str], name: str) -> float:
    """The largest difference; `ModelFileError` if it is above the tolerance, or not a number."""
    worst = largest_difference(graph, reference, log_mels, outputs)
    if not worst <= TOLERANCE:
        raise ModelFileError(
            f"{name} differs from PyTorch by {worst:.2e}, more than {TOLERANCE:g}: not written"
        )
    return worst

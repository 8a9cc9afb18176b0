"""Labelled clips -> tensors, decoded once by the code that serves."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from audiocnn import audio, windows
from audiocnn.config import FrontendConfig
from audiocnn.datasets import LabelledClip
from audiocnn.errors import AudioError, DatasetError
from audiocnn.frontend import LogMel

FloatArray = npt.NDArray[np.float32]


def load_waveforms(clips: Sequence[LabelledClip], config: FrontendConfig, *, quiet: bool = False) -> Tensor:
    """The first window of every clip: float32 `(num_clips, window_samples)`.

    Raises `DatasetError` that names every missing or undecodable file.
    """
    problems: list[str] = []

    def load(clip: LabelledClip) -> FloatArray | None:
        try:
            decoded = audio.decode(clip.path.read_bytes(), sample_rate=config.sample_rate)
        except (OSError, AudioError) as error:
            problems.append(f"{clip.path}: {error}")
            return None
        first: FloatArray = windows.cut(decoded.waveform[: config.window_samples], config)[0]
        return first

    with ThreadPoolExecutor() as pool:
        loaded = list(
            tqdm(pool.map(load, clips), total=len(clips), desc="decode", unit="clip", disable=quiet)
        )
    if problems:
        raise DatasetError("files that cannot be used:\n" + "\n".join(sorted(problems)))
    return torch.from_numpy(np.stack([waveform for waveform in loaded if waveform is not None]))


def parse_folds(text: str) -> list[int]:
    """`1,2,3` -> [1, 2, 3]; for argparse."""
    return [int(fold) for fold in text.split(",")]


def targets(clips: Sequence[LabelledClip], class_names: Sequence[str]) -> Tensor:
    """Class indices: int64 `(num_clips,)`."""
    index = {name: number for number, name in enumerate(class_names)}
    return torch.tensor([index[clip.label] for clip in clips])


@torch.no_grad()
def fit_normalisation(log_mel: LogMel, waveforms: Tensor, *, batch_size: int = 32) -> None:
    """Set the front end's per-band mean and standard deviation to those of the waveforms, in place."""
    assert bool((log_mel.mean == 0).all() and (log_mel.std == 1).all()), "already fitted"
    count = 0
    total = torch.zeros(log_mel.config.n_mels, dtype=torch.float64)
    squares = torch.zeros_like(total)
    device = log_mel.mean.device
    for batch in torch.split(waveforms, batch_size):
        values = log_mel(batch.to(device)).double().cpu().squeeze(1)  # (batch, n_mels, num_frames)
        count += values.shape[0] * values.shape[2]
        total += values.sum(dim=(0, 2))
        squares += values.square().sum(dim=(0, 2))
    mean = total / count
    log_mel.mean.copy_(mean[:, None])
    log_mel.std.copy_((squares / count - mean.square()).sqrt().clamp_min(1e-3)[:, None])

"""Labelled clips as tensors, decoded by the code that serves."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from audiocnn import audio
from audiocnn.arrays import FloatArray
from audiocnn.audio import windows
from audiocnn.config import FrontendConfig
from audiocnn.datasets import Dataset, LabelledClip
from audiocnn.errors import AudioError, DatasetError
from audiocnn.files import replacing
from audiocnn.model.frontend import LogMel

DATA_HELP = "folder in the layout of ESC-50 or UrbanSound8K, or with one CSV (filename, fold, label)"


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """The option `--data`."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help=DATA_HELP)


def load_waveforms(
    clips: Sequence[LabelledClip], config: FrontendConfig, *, cache: Path | None = None, quiet: bool = False
) -> Tensor:
    """The first window of every clip: float32 `(num_clips, window_samples)` in [-1, 1].

    `cache` is a folder that keeps decoded clips for the next run over the same files. Raises `DatasetError`
    that lists every missing or undecodable file.
    """
    kept = cache / f"{_cache_key(clips, config)}.npy" if cache else None
    if kept and kept.is_file():
        return torch.from_numpy(np.load(kept))
    waveforms = _decode_all(clips, config, quiet=quiet)
    if kept:
        with replacing(kept) as part:
            np.save(part, waveforms)
    return torch.from_numpy(waveforms)


def _cache_key(clips: Sequence[LabelledClip], config: FrontendConfig) -> str:
    """A digest of paths, sizes, modification times, sample rate and window length."""
    digest = hashlib.sha256(f"{config.sample_rate} {config.window_samples}".encode())
    for clip in clips:
        status = clip.path.stat() if clip.path.is_file() else None
        digest.update(f"{clip.path} {status and (status.st_size, status.st_mtime_ns)}".encode())
    return digest.hexdigest()[:16]


def _decode_all(clips: Sequence[LabelledClip], config: FrontendConfig, *, quiet: bool) -> FloatArray:
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
    return np.stack([waveform for waveform in loaded if waveform is not None])


def without_classes(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The dataset without these classes and their clips. Raises `DatasetError` for an unknown class."""
    if missing := sorted(set(names) - set(dataset.class_names)):
        raise DatasetError(f"{dataset.name} has no class {', '.join(missing)}")
    kept = tuple(name for name in dataset.class_names if name not in names)
    clips = tuple(clip for clip in dataset.clips if not set(clip.labels) & set(names))
    return replace(dataset, clips=clips, class_names=kept)


def validation_split(
    clips: Sequence[LabelledClip], *, seed: int, share: float = 0.1
) -> tuple[list[LabelledClip], list[LabelledClip]]:
    """Training clips and validation clips: about `share` of the recordings of each class for validation.

    All clips of a recording are on the same side. A class with two or more recordings has one at least in
    the validation split.
    """
    generator = torch.Generator().manual_seed(seed)
    held_out: set[str] = set()
    for label in sorted({label for clip in clips for label in clip.labels}):
        sources = sorted({clip.source for clip in clips if label in clip.labels})
        count = round(len(sources) * share) or (len(sources) > 1)
        held_out |= {sources[i] for i in torch.randperm(len(sources), generator=generator)[:count]}
    return [c for c in clips if c.source not in held_out], [c for c in clips if c.source in held_out]


def targets(clips: Sequence[LabelledClip], class_names: Sequence[str], *, several: bool = False) -> Tensor:
    """Class indices int64 `(num_clips,)`; with `several` labels a clip 0 and 1, float32 `(num_clips, k)`."""
    index = {name: number for number, name in enumerate(class_names)}
    if not several:
        return torch.tensor([index[clip.label] for clip in clips])
    rows = torch.zeros(len(clips), len(class_names))
    for row, clip in zip(rows, clips, strict=True):
        row[[index[label] for label in clip.labels]] = 1.0
    return rows


@torch.no_grad()
def fit_normalisation(log_mel: LogMel, waveforms: Tensor, *, batch_size: int = 32) -> None:
    """Set the front end's per-band mean and standard deviation from waveforms `(num_clips, num_samples)`.

    Its buffers are changed in place; they must not have been fitted before.
    """
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

"""A user's recordings -> windows of sound with their class, checked before anything is computed."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audiocnn import audio
from audiocnn.arrays import FloatArray
from audiocnn.audio import windows
from audiocnn.config import FrontendConfig
from audiocnn.datasets import Dataset, LabelledClip, check_labels, is_sound, read_dataset
from audiocnn.errors import AudioError, DatasetError

BACKGROUND = "background"  # a class of this name is background: it is never reported
MIN_RECORDINGS = 3  # of a class
FEW_RECORDINGS = 8  # below it a class is named in a warning
MAX_WINDOWS = 6  # of one clip: the first, the last and others between


@dataclass(frozen=True)
class Example:
    """One file, decoded."""

    path: Path
    label: str
    recording: str  # clips cut from one recording are left out together
    sha256: str
    windows: FloatArray  # (num_windows, window_samples)


def read_examples(source: Path, background: Path | None = None) -> Dataset:
    """The clips of a folder per class or a table, and of a folder of background sounds.

    Raises `DatasetError` for what is no dataset, labels that differ by case, clips with several labels, and a
    missing file.
    """
    dataset = read_dataset(source)
    clips = [*dataset.clips, *(_background_clips(background) if background else ())]
    check_labels({clip.label for clip in clips})
    if several := sorted({str(clip.path) for clip in clips if len(clip.labels) > 1}):
        raise DatasetError(_listing("clips with several classes: `audiocnn teach` takes one a clip", several))
    if missing := sorted({str(clip.path) for clip in clips if not clip.path.is_file()}):
        raise DatasetError(_listing("files that do not exist", missing))
    return Dataset(dataset.name, tuple(clips), dataset.class_names)


def _background_clips(folder: Path) -> list[LabelledClip]:
    paths = [path for path in sorted(folder.rglob("*")) if is_sound(path.relative_to(folder))]
    if not paths:
        raise DatasetError(f"{folder} has no sound file: --background names a folder of recordings")
    return [LabelledClip(path, BACKGROUND, 0, f"background/{path.relative_to(folder)}") for path in paths]


def load_clips(rows: Sequence[LabelledClip], config: FrontendConfig) -> Iterator[Example | str]:
    """Each clip decoded and cut into windows, or a sentence that says why it cannot be used."""
    for row in rows:
        try:
            data = row.path.read_bytes()
            decoded = audio.decode(data, sample_rate=config.sample_rate)
        except (OSError, AudioError) as error:
            yield f"{row.path}: {error}"
            continue
        cut = windows.cut(decoded.waveform, config)
        chosen = np.unique(np.linspace(0, len(cut) - 1, MAX_WINDOWS).round().astype(int))
        yield Example(row.path, row.label, row.source, hashlib.sha256(data).hexdigest(), cut[chosen])


def check_contents(rows: Iterable[tuple[str, str, str]]) -> None:
    """Raise `DatasetError` if one content, `(name, label, sha256)`, has two labels or one label twice."""
    seen: dict[str, tuple[str, str]] = {}
    conflicts, repeated = [], []
    for name, label, digest in rows:
        if digest not in seen:
            seen[digest] = (name, label)
            continue
        other, other_label = seen[digest]
        if other_label != label:
            conflicts.append(f"{other} ({other_label}) and {name} ({label})")
        else:
            repeated.append(f"{other} and {name}")
    if conflicts:
        raise DatasetError(_listing("clips in two classes: keep each in one", conflicts))
    if repeated:
        raise DatasetError(_listing("clips that are there twice: keep one", repeated))


def check_recordings(labels: Sequence[str], recordings: Sequence[str]) -> list[str]:
    """Warnings about classes with few recordings; `labels` and `recordings` are those of the clips.

    Raises `DatasetError` for fewer than two classes, or a class with fewer than `MIN_RECORDINGS`.
    """
    sources: dict[str, set[str]] = defaultdict(set)
    for label, recording in zip(labels, recordings, strict=True):
        sources[label].add(recording)
    counts = {label: len(found) for label, found in sorted(sources.items()) if label != BACKGROUND}
    if len(counts) < 2:
        raise DatasetError(f"there are no two classes, only {', '.join(counts) or 'none'}")
    if few := [f"{label} has {count}" for label, count in counts.items() if count < MIN_RECORDINGS]:
        raise DatasetError(
            f"a class needs {MIN_RECORDINGS} recordings or more, so that each can be left out in turn: "
            f"{', '.join(few)}. Record more, or remove the class"
        )
    return [
        f"{label} has {count} recordings only: {FEW_RECORDINGS} or more give a reliable result"
        for label, count in counts.items()
        if count < FEW_RECORDINGS
    ]


def refuse(problems: Sequence[str]) -> None:
    """Raise `DatasetError` that lists files that cannot be used, if there are any."""
    if problems:
        raise DatasetError(_listing("files that cannot be used", problems))


def _listing(what: str, found: Sequence[str]) -> str:
    more = [f"and {len(found) - 20} more"] if len(found) > 20 else []
    return "\n  ".join([f"{len(found)} {what}:", *found[:20], *more])

"""Soft labels: the teacher's predictions for each training clip, by a head that was not fitted on it.

The file is safetensors: `log_probs` float32 `(num_clips, num_classes)`, and in its metadata one JSON with the
clips' file names, the class names and the provenance of the labels.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from audiocnn.arrays import FloatArray, IntArray
from audiocnn.datasets import LabelledClip
from audiocnn.errors import DatasetError, ModelFileError
from audiocnn.files import replacing
from training.teacher.head import fit_head

GROUPS = 8  # of recordings, for cross-fitting

Mask = npt.NDArray[np.bool_]
# Masks `(num_clips,)` of clips to fit on and clips to label -> log-probabilities of the latter,
# `(num_views, num_labelled, num_classes)`
Teach = Callable[[Mask, Mask], FloatArray]


@dataclass(frozen=True)
class SoftLabels:
    """Log-probabilities of clips, identified by file name."""

    log_probs: Tensor  # float32 (num_clips, num_classes)
    clips: tuple[str, ...]
    class_names: tuple[str, ...]
    provenance: dict[str, Any]  # dataset, train_folds, commit, teacher_sha256, ...

    def save(self, path: Path) -> None:
        """Write the file, atomically."""
        header = {"clips": self.clips, "class_names": self.class_names, "provenance": self.provenance}
        with replacing(path) as part:
            save_file({"log_probs": self.log_probs}, part, metadata={"soft_labels": json.dumps(header)})
            part.chmod(0o644)  # safetensors makes files that only their owner can read

    @classmethod
    def load(cls, path: Path) -> SoftLabels:
        """Read a file that `save` wrote. Raises `ModelFileError` for any other file."""
        try:
            with safe_open(path, "pt") as file:
                header = json.loads(file.metadata()["soft_labels"])
                log_probs = file.get_tensor("log_probs")
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise ModelFileError(f"{path} is no file of soft labels: {error}") from error
        return cls(log_probs, tuple(header["clips"]), tuple(header["class_names"]), header["provenance"])

    def of(self, clips: Sequence[LabelledClip], class_names: Sequence[str]) -> Tensor:
        """Log-probabilities float32 `(num_clips, num_classes)` of these clips.

        Raises `DatasetError` if the classes differ or a clip has no label.
        """
        if tuple(class_names) != self.class_names:
            raise DatasetError("the soft labels are for other classes: make them with the same --exclude")
        rows = {name: row for row, name in enumerate(self.clips)}
        if missing := sorted({clip.path.name for clip in clips} - set(rows)):
            raise DatasetError(
                f"{len(missing)} clips have no soft label, the first is {missing[0]}: "
                "make labels for the same folds"
            )
        return self.log_probs[[rows[clip.path.name] for clip in clips]]


def recording_groups(clips: Sequence[LabelledClip], count: int) -> IntArray:
    """A group number below `count` for each clip: `(num_clips,)`.

    Clips of one recording are in one group, and each class is spread over the groups.
    """
    group_of: dict[str, int] = {}
    for source in dict.fromkeys(clip.source for clip in sorted(clips, key=lambda c: (c.label, c.source))):
        group_of[source] = len(group_of) % count
    return np.array([group_of[clip.source] for clip in clips])


def cross_fitted(groups: IntArray, teach: Teach) -> FloatArray:
    """Log-probabilities `(num_clips, num_classes)`, averaged over views; those of each group come from a
    teacher fitted on the other groups."""
    held_out = [groups == group for group in np.unique(groups)]
    parts = [teach(~mask, mask) for mask in tqdm(held_out, desc="cross-fitting", unit="teacher")]
    result = np.empty((len(groups), parts[0].shape[-1]), np.float32)
    for mask, part in zip(held_out, parts, strict=True):
        result[mask] = mean_over_views(part)
    return result


def linear_teacher(features: FloatArray, target: IntArray, num_classes: int, **options: Any) -> Teach:
    """A linear head on features `(num_views, num_clips, d)`; `options` go to `fit_head`."""

    def teach(fitted: Mask, labelled: Mask) -> FloatArray:
        head = fit_head(*all_views(features[:, fitted], target[fitted]), num_classes, **options)
        return head.log_probs(features[:, labelled])

    return teach


def all_views(features: FloatArray, target: IntArray) -> tuple[FloatArray, IntArray]:
    """Every view of every clip as an example: `(num_views * num_clips, d)` and class indices."""
    return features.reshape(-1, features.shape[-1]), np.tile(target, len(features))


def mean_over_views(log_probs: FloatArray) -> FloatArray:
    """`(num_views, num_clips, num_classes)` -> normalised log-probabilities `(num_clips, num_classes)`."""
    mean = torch.from_numpy(log_probs).mean(dim=0)
    return np.asarray(mean.log_softmax(dim=-1).numpy())


def check_names(clips: Sequence[LabelledClip]) -> None:
    """Raise `DatasetError` if two clips have the same file name, which identifies a label."""
    counts = Counter(clip.path.name for clip in clips)
    if repeated := sorted(name for name, count in counts.items() if count > 1):
        raise DatasetError(
            f"more than one clip is called {repeated[0]}: soft labels are identified by file name"
        )

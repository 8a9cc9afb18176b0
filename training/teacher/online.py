"""A teacher that answers every mix while the network trains. It costs 4.2 GMAC a clip: for a GPU.

Its network is frozen. Its heads are cross-fitted as for `training.teacher.soft_labels`: a clip is answered by
the head that was not fitted on its recording, a mix by the heads of both in proportion.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from audiocnn.datasets import LabelledClip
from training.data import targets
from training.teacher.features import FeatureStore
from training.teacher.head import Head, fit_head
from training.teacher.network import NUM_FEATURES, TeacherFeatures
from training.teacher.soft_labels import all_views, recording_groups
from training.teacher.weights import ATTRIBUTION, WHEEL_SHA256, cache_folder, load_weights

VIEWS = ("clean", "slower", "faster", "peak", "gain-20dB")
GROUPS = 8
_HIGHEST = 5.0  # standard deviations that a feature may be from its mean, as a target


@dataclass(frozen=True)
class Heads:
    """Linear heads, one for each group of recordings, and the scale of the features."""

    weight: Tensor  # float32 (num_groups, num_classes, 5952)
    bias: Tensor  # float32 (num_groups, num_classes)
    mean: Tensor  # float32 (5952,)
    std: Tensor  # float32 (5952,)
    group: Tensor  # int64 (num_clips,): the head that was not fitted on the clip

    def save(self, path: Path) -> None:
        """Write them as safetensors; a reader never sees a part of a file."""
        part = path.with_suffix(f".{os.getpid()}.part")
        tensors = {name: value.cpu().contiguous() for name, value in vars(self).items()}
        save_file(tensors, part, metadata={"provenance": json.dumps(provenance())})
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path) -> Heads:
        """Read what `save` wrote."""
        with safe_open(path, "pt") as file:
            return cls(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def fit_heads(
    clips: Sequence[LabelledClip],
    class_names: Sequence[str],
    *,
    device: str = "cpu",
    cache: Path | None = None,
    l2: float = 2e-3,
) -> Heads:
    """Heads for these clips. Features are kept in `cache`, see `FeatureStore`."""
    cache = cache or cache_folder()
    features = FeatureStore(cache, device=device, cache=cache).features(clips, VIEWS)
    target = targets(clips, class_names).numpy()
    groups = recording_groups(clips, GROUPS)

    def fit(group: int) -> Head:
        others = groups != group
        examples = all_views(features[:, others], target[others])
        return fit_head(*examples, len(class_names), l2=l2, device=device)

    heads = [fit(group) for group in range(GROUPS)]
    flat = features.reshape(-1, NUM_FEATURES)
    std = np.maximum(flat.std(axis=0), 1e-3)
    weight = torch.stack([head.weight / head.std for head in heads])
    means = torch.stack([head.mean for head in heads])
    bias = torch.stack([head.bias for head in heads]) - torch.einsum("gkd,gd->gk", weight, means)
    scale = torch.from_numpy(flat.mean(axis=0)), torch.from_numpy(std)
    return Heads(weight.cpu(), bias.cpu(), *scale, torch.from_numpy(groups))


def provenance() -> dict[str, Any]:
    """Where its knowledge comes from."""
    return {
        "teacher": ATTRIBUTION,
        "teacher_sha256": WHEEL_SHA256,
        "views": list(VIEWS),
        "groups": GROUPS,
        "online": True,
    }


class OnlineTeacher(nn.Module):
    """Waveforms -> probabilities of the classes, and features to imitate."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, heads: Heads, weights: dict[str, Tensor] | None = None) -> None:
        """`weights` are those of the network (`load_weights()`)."""
        super().__init__()
        self.features = TeacherFeatures(load_weights() if weights is None else weights)
        self.num_groups, num_classes, _ = heads.weight.shape
        self.num_classes = num_classes
        for name in ("weight", "bias", "mean", "std"):
            self.register_buffer(name, getattr(heads, name))
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, waveform: Tensor, shares: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """`(b, n)` and each head's share `(b, num_groups)` -> probabilities `(b, k)` at this temperature,
        features `(b, 5952)` in standard deviations from their mean."""
        features = self.features(waveform)
        logits = features @ self.weight.flatten(0, 1).T + self.bias.flatten()
        probs = (logits.unflatten(1, (self.num_groups, -1)) / temperature).softmax(dim=2)
        scaled = ((features - self.mean) / self.std).clamp(-_HIGHEST, _HIGHEST)
        return torch.einsum("bgk,bg->bk", probs, shares), scaled

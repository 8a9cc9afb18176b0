"""An online teacher: it labels every mix while the network trains, at 4.2 GMAC per clip (for a GPU).

Its network is frozen. Its heads are cross-fitted as in `training.teacher.soft_labels`: a clip is labelled by
the head that was not fitted on its recording, a mix by the heads of both clips in proportion.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from audiocnn.backbone.network import NUM_FEATURES, BackboneFeatures
from audiocnn.backbone.weights import ATTRIBUTION, WHEEL_SHA256, cache_folder, load_weights
from audiocnn.datasets import LabelledClip
from audiocnn.files import replacing
from audiocnn.teach.views import DEFAULT_VIEWS
from training.data import targets
from training.teacher.features import FeatureStore
from training.teacher.head import Head, fit_head
from training.teacher.soft_labels import GROUPS, all_views, recording_groups

_MAX_DEVIATION = 5.0  # of a feature from its mean, in standard deviations; larger targets are clipped


@dataclass(frozen=True)
class Heads:
    """Linear heads, one per group of recordings, and the scale of the features."""

    weight: Tensor  # float32 (num_groups, num_classes, 5952)
    bias: Tensor  # float32 (num_groups, num_classes)
    mean: Tensor  # float32 (5952,)
    std: Tensor  # float32 (5952,)
    group: Tensor  # int64 (num_clips,): number of the head that was not fitted on the clip

    def save(self, path: Path) -> None:
        """Write them as safetensors, atomically."""
        tensors = {name: value.cpu().contiguous() for name, value in vars(self).items()}
        with replacing(path) as part:
            save_file(tensors, part, metadata={"provenance": json.dumps(provenance())})

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
) -> Heads:
    """Fit one head per group of recordings, on the clips of the other groups.

    Features are kept in `cache`, see `FeatureStore`.
    """
    cache = cache or cache_folder()
    features = FeatureStore(cache, device=device, cache=cache).features(clips, DEFAULT_VIEWS)
    target = targets(clips, class_names).numpy()
    groups = recording_groups(clips, GROUPS)

    def fit(group: int) -> Head:
        others = groups != group
        examples = all_views(features[:, others], target[others])
        return fit_head(*examples, len(class_names), device=device)

    heads = [fit(group) for group in range(GROUPS)]
    flat = features.reshape(-1, NUM_FEATURES)
    std = np.maximum(flat.std(axis=0), 1e-3)
    weight = torch.stack([head.weight / head.std for head in heads])
    means = torch.stack([head.mean for head in heads])
    bias = torch.stack([head.bias for head in heads]) - torch.einsum("gkd,gd->gk", weight, means)
    scale = torch.from_numpy(flat.mean(axis=0)), torch.from_numpy(std)
    return Heads(weight.cpu(), bias.cpu(), *scale, torch.from_numpy(groups))


def provenance() -> dict[str, Any]:
    """The teacher's part of the provenance of a checkpoint."""
    return {
        "teacher": ATTRIBUTION,
        "teacher_sha256": WHEEL_SHA256,
        "views": list(DEFAULT_VIEWS),
        "groups": GROUPS,
        "online": True,
    }


class OnlineTeacher(nn.Module):
    """Waveforms -> soft labels, and features as targets."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, heads: Heads, weights: dict[str, Tensor] | None = None) -> None:
        """`weights` are those of the network; None: `load_weights()`."""
        super().__init__()
        self.features = BackboneFeatures(load_weights() if weights is None else weights)
        self.num_groups, num_classes, _ = heads.weight.shape
        self.num_classes = num_classes
        for name in ("weight", "bias", "mean", "std"):
            self.register_buffer(name, getattr(heads, name))
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, waveform: Tensor, shares: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """`(b, n)` and the share of each head `(b, num_groups)` -> probabilities `(b, k)` at a temperature,
        and features `(b, 5952)`, standardised."""
        features = self.features(waveform)
        logits = features @ self.weight.flatten(0, 1).T + self.bias.flatten()
        probs = (logits.unflatten(1, (self.num_groups, -1)) / temperature).softmax(dim=2)
        scaled = ((features - self.mean) / self.std).clamp(-_MAX_DEVIATION, _MAX_DEVIATION)
        return torch.einsum("bgk,bg->bk", probs, shares), scaled

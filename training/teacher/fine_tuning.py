"""Fine-tuning of the teacher's last two blocks and head, on augmented and mixed waveforms.

4.2 GMAC per clip (forward): minutes on a GPU, hours on a CPU. BatchNorm statistics stay frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from audiocnn.arrays import FloatArray, IntArray
from audiocnn.backbone.network import SAMPLE_RATE, BackboneFrontend, BackboneNetwork, pooled
from audiocnn.config import FrontendConfig
from audiocnn.teach.views import VIEWS
from training.augmenter import Augmenter
from training.recipe import RECIPES
from training.teacher.head import Head
from training.teacher.soft_labels import Mask, Teach, all_views

FRONTEND = FrontendConfig(sample_rate=SAMPLE_RATE)
RECIPE = replace(RECIPES["distilled"], background=0.0, level=0.15)

_TRAINED_BLOCKS = 2
_HEAD_LR_FACTOR = 3.0


@dataclass(frozen=True)
class Tuning:
    """Settings of the fine-tuning."""

    weights: dict[str, Tensor]  # of the pretrained network
    epochs: int
    device: str = "cpu"
    max_lr: float = 1e-4
    batch_size: int = 32


class BandsFirst(BackboneFrontend):
    """The teacher's front end with the axes of `LogMel`: `(b, n)` -> `(b, 1, 96, t)`."""

    config = FRONTEND

    def forward(self, waveform: Tensor) -> Tensor:
        """See the class."""
        return super().forward(waveform).transpose(2, 3)


class TunedTeacher(nn.Module):
    """Mel `(b, 1, 96, t)` -> logits `(b, k)`, initialised with the pretrained network and a fitted head."""

    def __init__(self, weights: dict[str, Tensor], head: Head) -> None:
        super().__init__()
        self.network = BackboneNetwork()
        self.network.load_state_dict(weights)
        self.network.blocks[:-_TRAINED_BLOCKS].requires_grad_(False)
        self.linear = nn.Linear(len(head.mean), len(head.bias))
        weight = head.weight / head.std
        self.linear.load_state_dict({"weight": weight, "bias": head.bias - weight @ head.mean})
        self.eval()

    def forward(self, mel: Tensor) -> Tensor:
        """See the class."""
        x = mel.transpose(2, 3).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.linear(pooled(self.network(x)))
        return logits


def tune(tuning: Tuning, head: Head, waveforms: Tensor, target: Tensor) -> TunedTeacher:
    """Train on waveforms `(n, window_samples)` with class indices `(n,)`; draws from torch's generator."""
    model = TunedTeacher(tuning.weights, head).to(tuning.device)
    augmenter = Augmenter(RECIPE, BandsFirst().to(tuning.device))
    steps = max(1, len(waveforms) // tuning.batch_size)
    optimizer, schedule = _optimizer(model, tuning, tuning.epochs * steps)
    kind = tuning.device.partition(":")[0]
    for epoch in tqdm(range(tuning.epochs), desc="fine-tuning", unit="epoch", leave=False):
        for rows in torch.randperm(len(waveforms)).tensor_split(steps):
            probs = nn.functional.one_hot(target[rows], len(head.bias)).float().to(tuning.device)
            may_mix = epoch < tuning.epochs * (1 - RECIPE.mix_off)
            mel, probs = augmenter(waveforms[rows].to(tuning.device), probs, may_mix=may_mix)
            with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
                logits = model(mel)
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(logits.float(), probs).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
    return model


def _optimizer(
    model: TunedTeacher, tuning: Tuning, total_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
    """AdamW with OneCycle; the head has a larger learning rate than the blocks."""
    blocks = [p for p in model.network.parameters() if p.requires_grad]
    groups = [{"params": blocks}, {"params": list(model.linear.parameters())}]
    optimizer = torch.optim.AdamW(groups, lr=tuning.max_lr, weight_decay=0.01)
    rates = [tuning.max_lr, tuning.max_lr * _HEAD_LR_FACTOR]
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=total_steps)


@torch.inference_mode()
def log_probs(model: TunedTeacher, waveforms: Tensor, views: Sequence[str], device: str) -> FloatArray:
    """Log-probabilities float32 `(num_views, num_clips, num_classes)` of waveforms `(n, window_samples)`."""
    frontend = BandsFirst().to(device)
    parts = [
        [
            model(frontend(VIEWS[view](batch.to(device)))).log_softmax(dim=1).cpu()
            for batch in torch.split(waveforms, 8)
        ]
        for view in views
    ]
    return np.stack([torch.cat(batches).numpy() for batches in parts])


def fine_tuned_teacher(
    tuning: Tuning,
    fit: Callable[[FloatArray, IntArray], Head],
    waveforms: Tensor,
    features: FloatArray,
    target: IntArray,
    views: Sequence[str],
) -> Teach:
    """A teacher for `cross_fitted`: `fit` a head on features `(num_views, num_clips, d)`, then `tune`."""

    def teach(fitted: Mask, answered: Mask) -> FloatArray:
        torch.manual_seed(0)
        head = fit(*all_views(features[:, fitted], target[fitted]))
        model = tune(tuning, head, waveforms[fitted], torch.from_numpy(target[fitted]))
        return log_probs(model, waveforms[answered], views, tuning.device)

    return teach

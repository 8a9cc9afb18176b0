"""A training run: its state, one step, one epoch, and a resume with bit-identical results.

Every random draw derives from (seed, epoch, step, rank). With several processes (`torchrun`) each takes its
share of every batch and gradients are averaged: `Recipe.batch_size` is the size over all processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from audiocnn.backbone.network import NUM_FEATURES
from audiocnn.config import Config
from audiocnn.errors import DatasetError, ModelFileError
from audiocnn.files import replacing
from audiocnn.machine import cpu_flags
from audiocnn.model.frontend import LogMel
from audiocnn.model.network import AudioCNN, WithEmbedding
from training.augmenter import Augmenter
from training.distributed import DistributedContext
from training.loss import classification_loss
from training.recipe import Recipe
from training.teacher.online import Heads, OnlineTeacher

Row = dict[str, float]


class Student(nn.Module):
    """The network, and a linear layer that predicts a teacher's features from its embedding."""

    def __init__(self, model: AudioCNN, num_features: int) -> None:
        """`num_features` 0: without the linear layer."""
        super().__init__()
        self.model = WithEmbedding(model)
        self.projection = nn.Linear(model.fc.in_features, num_features) if num_features else None

    def forward(self, log_mel: Tensor) -> tuple[Tensor, Tensor | None]:
        """`(b, 1, m, t)` -> logits `(b, k)`, predicted features `(b, num_features)`."""
        logits, embedding = self.model(log_mel)
        return logits, self.projection(embedding) if self.projection else None


class Trainer:
    """Network, optimiser, schedule, data and augmentation of one run, with the state that a resume needs.

    >>> trainer = Trainer(recipe, config, log_mel, (waveforms, target), DistributedContext())
    >>> while trainer.epoch < recipe.epochs:
    ...     trainer.train_epoch()
    """

    def __init__(
        self,
        recipe: Recipe,
        config: Config,
        log_mel: LogMel,
        data: tuple[Tensor, Tensor],
        context: DistributedContext,
        *,
        soft_labels: Tensor | None = None,
        rendered_background: Tensor | None = None,
        heads: Heads | None = None,
        teacher_weights: dict[str, Tensor] | None = None,
    ) -> None:
        """Waveforms float32 `(num_clips, window_samples)` and class indices int64 `(num_clips,)` are `data`;
        with `activation` sigmoid the labels are 0 and 1, float32 `(num_clips, num_classes)`.

        `soft_labels` are log-probabilities float32 `(num_clips, num_classes)` of a teacher;
        `rendered_background` int16 `(m, window_samples)` sounds of no class; `heads` and `teacher_weights`
        (of its network) make an online teacher. Raises `DatasetError` for fewer clips than a batch.
        """
        self.recipe, self.config, self.context, self.log_mel = recipe, config, context, log_mel
        self.extras = _digest(soft_labels, rendered_background, heads.weight if heads else None)
        self.has_sigmoid = config.activation == "sigmoid"
        self.augmenter = Augmenter(recipe, log_mel, rendered_background, has_sigmoid=self.has_sigmoid)
        self.waveforms, self.target = (tensor.to(context.device) for tensor in data)
        self.soft_labels = None if soft_labels is None else soft_labels.to(context.device)
        self.use_bf16 = context.device_type == "cuda" or "avx512_bf16" in cpu_flags()
        self.steps_per_epoch = len(self.waveforms) // recipe.batch_size
        if self.steps_per_epoch == 0:
            raise DatasetError(
                f"{len(self.waveforms)} clips are fewer than one batch of {recipe.batch_size}: "
                "lower --batch-size"
            )
        self._set_teacher(heads, teacher_weights)
        self._set_network(NUM_FEATURES if heads and recipe.feature_weight else 0)
        self._set_optimizer()
        self.epoch = 0
        self.seconds = 0.0
        self.history: list[Row] = []

    def _set_teacher(self, heads: Heads | None, weights: dict[str, Tensor] | None) -> None:
        self.online_teacher = self.head_shares = None
        if heads:
            assert not self.recipe.freq_mix, "the teacher takes waveforms: it cannot answer a mix of log-mels"
            self.online_teacher = OnlineTeacher(heads, weights).to(self.context.device)
            shares = nn.functional.one_hot(heads.group, len(heads.weight)).float()
            self.head_shares = shares.to(self.context.device)

    def _set_network(self, num_features: int) -> None:
        torch.manual_seed(self.recipe.seed)
        model = AudioCNN(self.config.architecture, num_classes=len(self.config.class_names))
        self.model = model.to(self.context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.student = Student(self.model, num_features).to(self.context.device)
        self.network: nn.Module = self.student
        if self.context.world_size > 1:
            self.network = DistributedDataParallel(self.student)
        average = get_ema_multi_avg_fn(self.recipe.ema_decay)  # type: ignore[no-untyped-call]
        self.ema = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)

    def _set_optimizer(self) -> None:
        recipe = self.recipe
        groups = _parameter_groups(self.student, recipe.weight_decay)
        is_fused = self.context.device_type == "cuda"
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.max_lr, fused=is_fused)
        total_steps = recipe.epochs * self.steps_per_epoch
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, recipe.max_lr, total_steps=total_steps, pct_start=recipe.warmup
        )

    def initialise_from(self, model: AudioCNN, *, same_classes: bool) -> None:
        """Copy the weights of another network; the head only with `same_classes`."""
        weights = {n: t for n, t in model.state_dict().items() if same_classes or not n.startswith("fc.")}
        self.model.load_state_dict(weights, strict=same_classes)

    @property
    def result(self) -> AudioCNN:
        """The network to save: the moving average of the weights if there is one."""
        average: AudioCNN = self.ema.module  # type: ignore[assignment]
        return average if self.recipe.ema_decay else self.model

    def train_epoch(self, bar: tqdm[Any] | None = None) -> Row:
        """Train one epoch; returns its number, mean loss and last learning rate, and appends to `history`."""
        began = time.monotonic()
        self.network.train()
        torch.manual_seed(_seed(self.recipe.seed, self.epoch))
        order = torch.randperm(len(self.waveforms))[: self.steps_per_epoch * self.recipe.batch_size]
        losses = []
        for step, batch in enumerate(order.view(self.steps_per_epoch, -1)):
            torch.manual_seed(_seed(self.recipe.seed, self.epoch, step, self.context.rank))
            losses.append(self.step(batch[self.context.rank :: self.context.world_size]))
            if bar is not None:
                bar.update()
        self.epoch += 1
        self.seconds += time.monotonic() - began
        loss = float(torch.stack(losses).mean())
        row = {"epoch": self.epoch, "loss": loss, "lr": float(self.schedule.get_last_lr()[0])}
        self.history.append(row)
        return row

    def step(self, rows: Tensor) -> Tensor:
        """Augment the clips of these rows, int64 `(b,)`, and update the weights; returns the loss."""
        log_mel, probs, features = self._batch(rows.to(self.context.device))
        log_mel = nn.functional.avg_pool2d(log_mel, self.recipe.pooling(self.epoch))
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(log_mel, probs, features)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.recipe.grad_clip:
            nn.utils.clip_grad_norm_(self.student.parameters(), self.recipe.grad_clip)
        self.optimizer.step()
        self.schedule.step()
        self.ema.update_parameters(self.model)
        return loss.detach()

    def _batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-mels, target probabilities (see `loss`), and the features of an online teacher."""
        recipe, waveforms = self.recipe, self.waveforms[rows]
        may_mix = self.epoch < recipe.epochs * (1 - recipe.mix_off)
        hard = self.target[rows]
        if not self.has_sigmoid:
            hard = nn.functional.one_hot(hard, len(self.config.class_names)).float()
        if self.online_teacher is not None and self.head_shares is not None:
            shares = self.head_shares[rows]
            return self._online_batch(self.online_teacher, waveforms, hard, shares, may_mix=may_mix)
        if self.soft_labels is not None:
            soft = (self.soft_labels[rows] / recipe.teacher_temperature).softmax(dim=1)
            hard = torch.cat([hard, soft], dim=1)
        return *self.augmenter(waveforms, hard, may_mix=may_mix), None

    def _online_batch(
        self, teacher: OnlineTeacher, waveforms: Tensor, hard: Tensor, shares: Tensor, *, may_mix: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A batch whose soft labels and features an online teacher computes from the mixed waveforms."""
        num_classes = hard.shape[1]
        batch = self.augmenter.mix(waveforms, torch.cat([hard, shares], dim=1), may_mix=may_mix)
        hard, shares = batch.target[:, :num_classes], batch.target[:, num_classes:]
        soft, features = teacher(batch.waveform, shares, self.recipe.teacher_temperature)
        target = torch.cat([hard, soft], dim=1)
        target = torch.where(batch.is_background[:, None], 1 / num_classes, target)
        log_mel, target = self.augmenter.log_mels(batch._replace(target=target), may_mix=may_mix)
        return log_mel, target, features

    def loss(self, log_mel: Tensor, probs: Tensor, features: Tensor | None = None) -> Tensor:
        """The loss of a batch `(b, 1, m, t)` against target probabilities (`classification_loss` has their
        shape), and against a teacher's features `(b, num_features)` if given.

        The part of the features is their mean squared error through a linear layer that is not saved (Romero
        et al., "FitNets", ICLR 2015).
        """
        with torch.autocast(self.context.device_type, torch.bfloat16, enabled=self.use_bf16):
            logits, predicted = self.network(log_mel.contiguous(memory_format=torch.channels_last))
        loss = classification_loss(logits.float(), probs, self.recipe, has_sigmoid=self.has_sigmoid)
        if features is not None and predicted is not None:
            loss = loss + self.recipe.feature_weight * nn.functional.mse_loss(predicted.float(), features)
        return loss

    @torch.inference_mode()
    def accuracy(self, waveforms: Tensor, target: Tensor, batch_size: int = 50) -> float:
        """Accuracy (0 to 1) of the current weights, at the resolution of the last epoch.

        `waveforms` are float32 `(n, window_samples)`, `target` class indices int64 `(n,)`, or the labels of
        each clip `(n, k)`: then the top class counts if it is one of them.
        """
        top, label = self.logits(waveforms, batch_size).argmax(dim=1), target.cpu()
        is_right = label.gather(1, top[:, None])[:, 0] > 0 if label.ndim == 2 else label == top
        return int(is_right.sum()) / len(target)

    @torch.inference_mode()
    def logits(self, waveforms: Tensor, batch_size: int = 50) -> Tensor:
        """Logits `(n, k)` of the current weights, at the resolution of the last epoch, on the CPU."""
        model = self.result.eval()
        pooling = self.recipe.pooling(max(0, self.epoch - 1))
        parts = []
        for batch in torch.split(waveforms, batch_size):
            log_mel = self.log_mel(batch.to(self.context.device))
            parts.append(model(nn.functional.avg_pool2d(log_mel, pooling)).float().cpu())
        return torch.cat(parts)

    def identity(self) -> str:
        """JSON of what a resume must share with its run: recipe, configuration, front end (with its
        normalisation, and so the data), number of processes, soft labels and background sounds."""
        parts = [asdict(self.recipe), self.config.to_json(), self.log_mel.fingerprint()]
        return json.dumps([*parts, self.context.world_size, self.extras])

    def save_state(self, path: Path) -> None:
        """Write the state that the next epoch depends on, atomically and durably."""
        state = {
            "student": self.student.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "epoch": self.epoch,
            "seconds": self.seconds,
            "history": self.history,
            "identity": self.identity(),
        }
        with replacing(path) as part, part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())

    def load_state(self, path: Path) -> None:
        """Continue from `save_state`. Raises `ModelFileError` for a state of another recipe or other data."""
        state = torch.load(path, weights_only=True, map_location=self.context.device)
        if state["identity"] != self.identity():
            raise ModelFileError(
                f"{path} is of a run with other settings or data: repeat those, or choose another --out"
            )
        for part in ("student", "ema", "optimizer", "schedule"):
            getattr(self, part).load_state_dict(state[part])
        self.epoch, self.seconds, self.history = state["epoch"], state["seconds"], state["history"]


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight matrices with decay; biases and normalisation without."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _seed(*parts: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


def _digest(*tensors: Tensor | None) -> str:
    """SHA-256 of the tensors that are given."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(b"-" if tensor is None else tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

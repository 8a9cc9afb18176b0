"""One training run: the state, a step, an epoch, and a resume that ends with the same bits.

Every random draw derives from (seed, epoch, step, rank). With several processes (`torchrun`) each takes
its share of every batch; gradients are averaged, so the batch that counts is the recipe's.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from audiocnn.config import Config
from audiocnn.errors import DatasetError, ModelFileError
from audiocnn.model.frontend import LogMel
from audiocnn.model.network import AudioCNN, WithEmbedding
from training.recipe import Augmenter, Recipe
from training.teacher.network import NUM_FEATURES
from training.teacher.online import Heads, OnlineTeacher

Row = dict[str, float]


@dataclass(frozen=True)
class Place:
    """Which process of how many this is, and its device."""

    device: str = "cpu"
    rank: int = 0
    world: int = 1

    @property
    def kind(self) -> str:
        """ "cuda" or "cpu"."""
        return self.device.partition(":")[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            torch.distributed.barrier()


class Student(nn.Module):
    """The network, and a linear layer that guesses a teacher's features from its embedding."""

    def __init__(self, model: AudioCNN, num_features: int) -> None:
        """`num_features` 0: no guesses."""
        super().__init__()
        self.model = WithEmbedding(model)
        self.projection = nn.Linear(model.fc.in_features, num_features) if num_features else None

    def forward(self, log_mel: Tensor) -> tuple[Tensor, Tensor | None]:
        """`(b, 1, m, t)` -> logits `(b, k)`, guesses `(b, num_features)`."""
        logits, embedding = self.model(log_mel)
        return logits, self.projection(embedding) if self.projection else None


class Run:
    """What is learnt, and the state that a resume needs."""

    def __init__(
        self,
        recipe: Recipe,
        config: Config,
        log_mel: LogMel,
        data: tuple[Tensor, Tensor],
        place: Place,
        *,
        teacher: Tensor | None = None,
        recorded: Tensor | None = None,
        heads: Heads | None = None,
        teacher_weights: dict[str, Tensor] | None = None,
    ) -> None:
        """`teacher` are log-probabilities of the clips `(num_clips, num_classes)`; `recorded` int16
        `(m, n)` sounds of no class; `heads` and
        `teacher_weights` (of its network) are an online teacher."""
        self.recipe, self.config, self.place, self.log_mel = recipe, config, place, log_mel
        self.extras = _digest(teacher, recorded, heads.weight if heads else None)
        self.augmenter = Augmenter(recipe, log_mel, recorded)
        self.waveforms, self.target = (tensor.to(place.device) for tensor in data)
        self.teacher = None if teacher is None else teacher.to(place.device)
        self.online = self.group = None
        if heads:
            assert not recipe.freq_mix, "the teacher would answer to the wrong sound"
            self.online = OnlineTeacher(heads, teacher_weights).to(place.device)
            self.group = nn.functional.one_hot(heads.group, len(heads.weight)).float().to(place.device)
        self.use_bf16 = place.kind == "cuda" or "avx512_bf16" in cpu_description()
        self.steps_per_epoch = len(self.waveforms) // recipe.batch_size
        if self.steps_per_epoch == 0:
            raise DatasetError(
                f"{len(self.waveforms)} clips are fewer than one batch of {recipe.batch_size}: "
                "lower --batch-size"
            )
        torch.manual_seed(recipe.seed)
        model = AudioCNN(config.model, num_classes=len(config.class_names))
        self.model = model.to(place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.student = Student(self.model, NUM_FEATURES if heads and recipe.feature_weight else 0)
        self.network: nn.Module = self.student.to(place.device)
        if place.world > 1:
            self.network = DistributedDataParallel(self.student)
        average = get_ema_multi_avg_fn(recipe.ema_decay)  # type: ignore[no-untyped-call]
        self.ema = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
        groups = _parameter_groups(self.student, recipe.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.max_lr, fused=place.kind == "cuda")
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            recipe.max_lr,
            total_steps=recipe.epochs * self.steps_per_epoch,
            pct_start=recipe.warmup,
        )
        self.epoch = 0
        self.seconds = 0.0
        self.history: list[Row] = []

    def start_from(self, model: AudioCNN, *, same_classes: bool) -> None:
        """Take over the weights of another run; the head only if it names the same classes."""
        weights = {n: t for n, t in model.state_dict().items() if same_classes or not n.startswith("fc.")}
        self.model.load_state_dict(weights, strict=same_classes)

    @property
    def result(self) -> AudioCNN:
        """The weights that count: the moving average if there is one."""
        average: AudioCNN = self.ema.module  # type: ignore[assignment]
        return average if self.recipe.ema_decay else self.model

    def train_epoch(self, bar: tqdm[Any] | None = None) -> Row:
        """One pass over the clips; the epoch's mean loss, accuracy on what was not mixed, learning rate."""
        began = time.monotonic()
        self.network.train()
        torch.manual_seed(_seed(self.recipe.seed, self.epoch))
        order = torch.randperm(len(self.waveforms))[: self.steps_per_epoch * self.recipe.batch_size]
        losses = []
        for step, batch in enumerate(order.view(self.steps_per_epoch, -1)):
            torch.manual_seed(_seed(self.recipe.seed, self.epoch, step, self.place.rank))
            own = batch[self.place.rank :: self.place.world]
            losses.append(self.step(own))
            if bar is not None:
                bar.update()
        self.epoch += 1
        self.seconds += time.monotonic() - began
        loss = float(torch.stack(losses).mean())
        row = {"epoch": self.epoch, "loss": loss, "lr": float(self.schedule.get_last_lr()[0])}
        self.history.append(row)
        return row

    def step(self, rows: Tensor) -> Tensor:
        """Augment these clips, forward, backward, update; the loss of the batch."""
        inputs, probs, features = self._batch(rows.to(self.place.device))
        inputs = nn.functional.avg_pool2d(inputs, self.recipe.pooling(self.epoch))
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(inputs, probs, features)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.recipe.grad_clip:
            nn.utils.clip_grad_norm_(self.student.parameters(), self.recipe.grad_clip)
        self.optimizer.step()
        self.schedule.step()
        self.ema.update_parameters(self.model)
        return loss.detach()

    def _batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-mels, target probabilities (see `loss`), and the teacher's features if it is asked for every
        mix."""
        recipe, waveforms = self.recipe, self.waveforms[rows]
        may_mix = self.epoch < recipe.epochs * (1 - recipe.mix_off)
        num_classes = len(self.config.class_names)
        hard = nn.functional.one_hot(self.target[rows], num_classes).float()
        if self.online is None or self.group is None:
            if self.teacher is not None:
                soft = (self.teacher[rows] / recipe.teacher_temperature).softmax(dim=1)
                hard = torch.cat([hard, soft], dim=1)
            return *self.augmenter(waveforms, hard, may_mix=may_mix), None
        target = torch.cat([hard, self.group[rows]], dim=1)
        sounds = self.augmenter.sounds(waveforms, target, may_mix=may_mix)
        shares = sounds.target[:, num_classes:]
        soft, features = self.online(sounds.waveform, shares, recipe.teacher_temperature)
        both = torch.cat([sounds.target[:, :num_classes], soft], dim=1)
        both = torch.where(sounds.is_background[:, None], 1 / num_classes, both)
        inputs, both = self.augmenter.recorded(sounds._replace(target=both), may_mix=may_mix)
        return inputs, both, features

    def loss(self, log_mel: Tensor, probs: Tensor, features: Tensor | None = None) -> Tensor:
        """The loss of a batch `(b, 1, m, t)` against target probabilities `(b, k)`, or `(b, 2 k)` with those
        of the teacher behind, and perhaps against the teacher's features.

        The teacher's part is at its temperature T, times T^2 so that its gradients keep their size (Hinton
        et al., "Distilling the Knowledge in a Neural Network", 2015). Of the features the mean squared
        distance counts, through a linear layer that is thrown away afterwards (Romero et al., "FitNets",
        ICLR 2015).
        """
        with torch.autocast(self.place.kind, torch.bfloat16, enabled=self.use_bf16):
            logits, guess = self.network(log_mel.contiguous(memory_format=torch.channels_last))
        loss = self._loss_of_probs(logits.float(), probs)
        if features is not None and guess is not None:
            loss = loss + self.recipe.feature_weight * nn.functional.mse_loss(guess.float(), features)
        return loss

    def _loss_of_probs(self, logits: Tensor, probs: Tensor) -> Tensor:
        hard, soft = probs[:, : logits.shape[1]], probs[:, logits.shape[1] :]
        loss = self._loss_against(hard, logits, self.recipe.label_smoothing)
        if not soft.shape[1]:
            return loss
        weight, temperature = self.recipe.teacher_weight, self.recipe.teacher_temperature
        distilled = temperature**2 * self._loss_against(soft, logits / temperature, 0.0)
        return (1 - weight) * loss + weight * distilled

    def _loss_against(self, probs: Tensor, logits: Tensor, smoothing: float) -> Tensor:
        if self.recipe.loss == "ce":
            return nn.functional.cross_entropy(logits, probs, label_smoothing=smoothing)
        smooth = probs * (1 - smoothing) + smoothing / probs.shape[1]
        losses = nn.functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
        return losses.sum(dim=1).mean()

    @torch.inference_mode()
    def accuracy(self, waveforms: Tensor, target: Tensor, batch_size: int = 50) -> float:
        """Share of clips that the weights of now name rightly, at the size that they were last trained at."""
        model = self.result.eval()
        pooling = self.recipe.pooling(max(0, self.epoch - 1))
        hits = 0
        for batch, label in zip(
            torch.split(waveforms, batch_size), torch.split(target, batch_size), strict=True
        ):
            log_mel = self.log_mel(batch.to(self.place.device))
            logits = model(nn.functional.avg_pool2d(log_mel, pooling))
            hits += int((logits.argmax(dim=1).cpu() == label.cpu()).sum())
        return hits / len(target)

    def identity(self) -> str:
        """What must not change between a run and its resume: recipe, network, soft labels, background, and,
        through the front end's normalisation, the data."""
        parts = [asdict(self.recipe), self.config.to_json(), self.log_mel.fingerprint(), self.place.world]
        parts.append(self.extras)
        return json.dumps(parts)

    def save_state(self, path: Path) -> None:
        """Write everything that the next epoch depends on; a kill while writing loses nothing."""
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
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)

    def load_state(self, path: Path) -> None:
        """Go on from `save_state`; refuses a state of another recipe, network or data."""
        state = torch.load(path, weights_only=True, map_location=self.place.device)
        if state["identity"] != self.identity():
            raise ModelFileError(
                f"{path} is of a run with other settings or data: repeat those, or choose another --out"
            )
        for part in ("student", "ema", "optimizer", "schedule"):
            getattr(self, part).load_state_dict(state[part])
        self.epoch, self.seconds, self.history = state["epoch"], state["seconds"], state["history"]


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """No decay on biases and normalisation (their shrinking regularises nothing)."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _seed(*parts: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


def _digest(*tensors: Tensor | None) -> str:
    """SHA-256 of the tensors that are there."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(b"-" if tensor is None else tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def cpu_description() -> str:
    """What the system says of its processors; empty where it does not."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""

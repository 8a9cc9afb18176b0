"""Train AudioCNN from scratch: `python -m training.train --data DIR --train-folds 1,2,3 --out DIR`.

The weights that count are those of the last epoch (an exponential moving average of them): no fold is
looked at to pick an epoch. Run the same command again after a kill and it goes on where it was; the
result is the same, because every random draw derives from (seed, epoch, step).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from audiocnn import checkpoint
from audiocnn.config import Config, FrontendConfig, ModelConfig
from audiocnn.datasets import Dataset, read_dataset
from audiocnn.errors import DatasetError, ModelFileError
from audiocnn.frontend import LogMel
from audiocnn.model import AudioCNN
from training import augment
from training.data import fit_normalisation, load_waveforms, parse_folds, targets


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides the outcome of a run besides the data and the hardware."""

    epochs: int = 100
    batch_size: int = 32
    max_lr: float = 2e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    mixup_alpha: float = 0.4
    freq_mask: int = 24  # mel bands, at most, each of two masks
    time_mask: int = 40  # frames, at most, each of two masks
    ema_decay: float = 0.995
    grad_clip: float = 5.0
    seed: int = 0


class Run:
    """One training run: what is learnt, and the state that a resume needs."""

    def __init__(
        self, recipe: Recipe, config: Config, log_mel: LogMel, waveforms: Tensor, target: Tensor, device: str
    ) -> None:
        self.recipe, self.config, self.device = recipe, config, device
        self.log_mel = log_mel
        self.waveforms, self.target = waveforms, target
        self.spec_augment = augment.SpecAugment(recipe.freq_mask, recipe.time_mask)
        self.use_bf16 = device == "cuda" or "avx512_bf16" in _cpu_features()
        torch.manual_seed(recipe.seed)
        model = AudioCNN(config.model, num_classes=len(config.class_names))
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = AveragedModel(
            self.model,
            multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay),  # type: ignore[no-untyped-call]
            use_buffers=True,
        )
        self.steps_per_epoch = len(waveforms) // recipe.batch_size
        if self.steps_per_epoch == 0:
            raise DatasetError(f"{len(waveforms)} clips are fewer than one batch of {recipe.batch_size}")
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.model, recipe.weight_decay), lr=recipe.max_lr
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, recipe.max_lr, total_steps=recipe.epochs * self.steps_per_epoch, pct_start=0.1
        )
        self.epoch = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []

    def train_epoch(self) -> dict[str, float]:
        """One pass over the clips; returns the epoch's mean loss and last learning rate."""
        began = time.monotonic()
        self.model.train()
        torch.manual_seed(_seed(self.recipe.seed, self.epoch))
        order = torch.randperm(len(self.waveforms))[: self.steps_per_epoch * self.recipe.batch_size]
        losses = []
        batches = order.view(self.steps_per_epoch, -1)
        label = f"epoch {self.epoch + 1}/{self.recipe.epochs}"
        for step, index in enumerate(tqdm(batches, desc=label, unit="step", leave=False)):
            torch.manual_seed(_seed(self.recipe.seed, self.epoch, step))
            losses.append(self.step(self.waveforms[index], self.target[index]))
        self.epoch += 1
        self.seconds += time.monotonic() - began
        loss = float(torch.stack(losses).mean())
        row = {"epoch": self.epoch, "loss": loss, "lr": float(self.schedule.get_last_lr()[0])}
        self.history.append(row)
        return row

    def step(self, waveform: Tensor, target: Tensor) -> Tensor:
        """Augment, forward, backward, update; the loss of the batch."""
        inputs, soft_target = self.augmented(waveform.to(self.device), target.to(self.device))
        with torch.autocast(self.device, torch.bfloat16, enabled=self.use_bf16):
            logits = self.model(inputs.contiguous(memory_format=torch.channels_last))
        smoothing = self.recipe.label_smoothing
        loss = nn.functional.cross_entropy(logits.float(), soft_target, label_smoothing=smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.grad_clip)
        self.optimizer.step()
        self.schedule.step()
        self.ema.update_parameters(self.model)
        return loss.detach()

    @torch.no_grad()
    def augmented(self, waveform: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel `(batch, 1, n_mels, num_frames)` and target probabilities `(batch, num_classes)`."""
        probs = nn.functional.one_hot(target, len(self.config.class_names)).float()
        waveform = augment.circular_shift(waveform)
        waveform, probs = augment.mixup(waveform, probs, self.recipe.mixup_alpha)
        return self.spec_augment(self.log_mel(waveform)), probs

    def identity(self) -> str:
        """What must not change between a run and its resume: recipe, network, and, through the front
        end's normalisation, the data."""
        return json.dumps([asdict(self.recipe), self.config.to_json(), self.log_mel.fingerprint()])

    def save_state(self, path: Path) -> None:
        """Write everything that the next epoch depends on; a kill while writing loses nothing."""
        state = {
            "model": self.model.state_dict(),
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
        state = torch.load(path, weights_only=True, map_location=self.device)
        if state["identity"] != self.identity():
            raise ModelFileError(
                f"{path} is of a run with other settings: repeat those, or choose another --out"
            )
        for part in ("model", "ema", "optimizer", "schedule"):
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


def _cpu_features() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def hardware(device: str) -> str:
    """What the run ran on, in words for the metrics file."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    models = [line.split(":", 1)[1].strip() for line in _cpu_features().splitlines() if "model name" in line]
    return f"{models[0] if models else platform.processor()}, {torch.get_num_threads()} threads"


def train(
    dataset: Dataset,
    folds: Sequence[int],
    recipe: Recipe,
    frontend: FrontendConfig,
    model: ModelConfig,
    out: Path,
) -> Config:
    """Train (or go on training) into `out`; writes the checkpoint there and returns its config."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clips = dataset.folds(folds)
    print(f"{dataset.name}: {len(clips)} clips of folds {list(folds)}, {len(dataset.class_names)} classes")
    waveforms = load_waveforms(clips, frontend)
    log_mel = LogMel(frontend).to(device)
    fit_normalisation(log_mel, waveforms)
    provenance: dict[str, Any] = {
        "dataset": dataset.name,
        "train_folds": list(folds),
        "recipe": asdict(recipe),
    }
    config = Config(class_names=dataset.class_names, frontend=frontend, model=model, provenance=provenance)
    run = Run(recipe, config, log_mel, waveforms, targets(clips, dataset.class_names), device)
    state = out / "state.pt"
    out.mkdir(parents=True, exist_ok=True)
    if state.is_file():
        run.load_state(state)
        print(f"resumed after epoch {run.epoch}")
    while run.epoch < recipe.epochs:
        row = run.train_epoch()
        run.save_state(state)
        tqdm.write(f"epoch {run.epoch}/{recipe.epochs}  loss {row['loss']:.4f}  lr {row['lr']:.2e}")
    minutes = round(run.seconds / 60, 1)
    provenance |= {
        "torch": torch.__version__,
        "hardware": hardware(device),
        "precision": "bf16" if run.use_bf16 else "fp32",
        "minutes": minutes,
    }
    (out / "history.json").write_text(json.dumps(run.history, indent=1) + "\n")
    ema: AudioCNN = run.ema.module  # type: ignore[assignment]
    return checkpoint.save(out, config, log_mel, ema)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="ESC-50 or UrbanSound8K folder, or a CSV")
    parser.add_argument("--train-folds", type=parse_folds, required=True, help="folds to train on: 1,2,3")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument(
        "--width", type=int, default=ModelConfig.width, help="channels of the first stage (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: as many as torch chooses)")
    for name, value in asdict(Recipe()).items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(value), default=value, help="(%(default)s)")
    return parser.parse_args(arguments)


def main() -> int:
    """Entry point; a message without a traceback for what the user can mend."""
    args = parse_arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    recipe = Recipe(**{name: getattr(args, name) for name in asdict(Recipe())})
    try:
        train(
            read_dataset(args.data),
            args.train_folds,
            recipe,
            FrontendConfig(),
            ModelConfig(width=args.width),
            args.out,
        )
    except (DatasetError, ModelFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        return 130
    print(f"checkpoint written to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

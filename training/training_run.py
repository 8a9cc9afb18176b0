"""One training run: from a dataset and a recipe to a checkpoint; interrupted runs resume."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from audiocnn import calibration
from audiocnn.config import Config, FrontendConfig
from audiocnn.datasets import Dataset, LabelledClip
from audiocnn.errors import DatasetError
from audiocnn.files import replacing
from audiocnn.model import checkpoint
from audiocnn.model.frontend import LogMel
from audiocnn.probabilities import sigmoid, softmax
from training import multilabel, synthesisers
from training.data import fit_normalisation, load_waveforms, targets, validation_split
from training.distributed import DistributedContext, hardware
from training.recipe import Recipe
from training.teacher import online
from training.teacher.soft_labels import SoftLabels
from training.trainer import Trainer
from training.validate import PUBLISHED, check, print_class_counts

if TYPE_CHECKING:
    from training.tensorboard import TensorBoardWriter

Data = tuple[Tensor, Tensor]  # waveforms float32 (n, window_samples), class indices int64 (n,)

_STATE = "state.pt"
_FEW_CLIPS = 20
_SAVE_SECONDS = 30.0  # between two states, at least: an epoch may be shorter than writing one


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run needs besides data, recipe and configuration."""

    out: Path
    watch_folds: Sequence[int] = ()  # validation folds: measured for the curve, never used to choose
    watch_every: int = 10  # epochs between two measurements
    patience: int = 0  # stop early after so many epochs without a gain on a validation split; 0: never
    cache: Path | None = None  # keeps decoded clips between runs
    tensorboard: bool = True
    init: Path | None = None  # checkpoint to start from
    soft_labels: Path | None = None  # file that `training.teacher` wrote
    online_teacher: bool = False
    context: DistributedContext = field(default_factory=DistributedContext)


def train(
    dataset: Dataset, folds: Sequence[int], recipe: Recipe, config: Config, options: RunOptions
) -> Config:
    """Train on `folds`, or resume, in the folder `options.out`; writes the checkpoint and returns its config.

    With `init` front end and network are those of the initial checkpoint, and its head too if the classes are
    the same. `train_folds` in the provenance includes the folds of the initial checkpoint and of the teacher.
    Raises `DatasetError` for clips that cannot be trained on, `ModelFileError` for a checkpoint or state.
    """
    if options.init:
        initial, _, _ = checkpoint.load(options.init)
        config = replace(config, frontend=initial.frontend, model=initial.model)
    check(dataset, folds)
    if dataset.has_several_labels:
        if options.soft_labels or options.online_teacher:
            raise DatasetError("a teacher is for tables with one label a clip: train without it")
        config = replace(config, activation="sigmoid")
    if options.context.rank == 0:
        print_class_counts(dataset.folds(folds))
    clips, held_out = split(dataset, dataset.folds(folds), seed=recipe.seed, patience=options.patience)

    def load(wanted: list[LabelledClip]) -> Data | None:
        return _load(wanted, dataset, config.frontend, options) if wanted else None

    data = load(clips)
    assert data, "check() refuses folds without clips"
    options.out.mkdir(parents=True, exist_ok=True)
    extras, provenance = _extras(dataset, folds, clips, recipe, config.frontend, options)
    trainer = _new_trainer(recipe, replace(config, provenance=provenance), data, options, extras)
    _resume(trainer, options.out)
    watched = load(dataset.folds(options.watch_folds)) if options.watch_folds else None
    validation = load(held_out)
    _train_epochs(trainer, options, watched, validation if options.patience else None)
    return _finish(trainer, options.out, validation)


def split(
    dataset: Dataset, clips: list[LabelledClip], *, seed: int, patience: int = 0
) -> tuple[list[LabelledClip], list[LabelledClip]]:
    """Clips to train on, and clips for early stopping, temperature and threshold.

    A published dataset is trained on whole, unless training may stop early: its temperature and threshold
    come from a cross-validation (`training.calibrate`).
    """
    if dataset.name in PUBLISHED and not patience:
        return clips, []
    return validation_split(clips, seed=seed)


def _load(clips: list[LabelledClip], dataset: Dataset, frontend: FrontendConfig, options: RunOptions) -> Data:
    waveforms = load_waveforms(clips, frontend, cache=options.cache, quiet=options.context.rank > 0)
    return waveforms, targets(clips, dataset.class_names, several=dataset.has_several_labels)


def _extras(
    dataset: Dataset,
    folds: Sequence[int],
    clips: list[LabelledClip],
    recipe: Recipe,
    frontend: FrontendConfig,
    options: RunOptions,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Teacher and background sounds as arguments of `Trainer`, and the provenance of the run."""
    source = {"dataset": dataset.name, "train_folds": list(folds)}
    extras: dict[str, Any] = {}
    provenance: dict[str, Any] = source | {"recipe": asdict(recipe)}
    if options.soft_labels:
        labels = SoftLabels.load(options.soft_labels)
        extras["soft_labels"] = labels.of(clips, dataset.class_names)
        provenance["teacher"] = labels.provenance
        provenance["train_folds"] = sorted({*folds, *labels.provenance["train_folds"]})
    if options.online_teacher:
        extras["heads"] = online_heads(options, clips, dataset)
        provenance["teacher"] = online.provenance() | source
    if recipe.background:
        extras["rendered_background"], programs = rendered_background(options, frontend)
        provenance["background_programs"] = programs
    return extras, provenance


def rendered_background(options: RunOptions, config: FrontendConfig) -> tuple[Tensor, list[str]]:
    """Speech and music of no class, int16 `(m, window_samples)`, and the programs that rendered them.

    They are rendered once and kept in the folder of the run.
    """
    path = options.out / "background.safetensors"
    if options.context.rank == 0 and not path.is_file():
        programs = synthesisers.available()
        sounds = torch.from_numpy(synthesisers.render(config))
        with replacing(path) as part:
            save_file({"sounds": sounds}, part, metadata={"programs": json.dumps(programs)})
    options.context.barrier()
    with safe_open(path, "pt") as file:
        return file.get_tensor("sounds"), json.loads(file.metadata()["programs"])


def online_heads(options: RunOptions, clips: list[LabelledClip], dataset: Dataset) -> online.Heads:
    """The heads of an online teacher, fitted once and kept in the folder of the run."""
    path, context = options.out / "heads.safetensors", options.context
    if context.rank == 0 and not path.is_file():
        online.fit_heads(clips, dataset.class_names, device=context.device).save(path)
    context.barrier()
    return online.Heads.load(path)


def _new_trainer(
    recipe: Recipe, config: Config, data: Data, options: RunOptions, extras: dict[str, Any]
) -> Trainer:
    """From scratch, with the front end's normalisation fitted to the data, or from a checkpoint."""
    context = options.context
    if options.init is None:
        log_mel = LogMel(config.frontend).to(context.device)
        fit_normalisation(log_mel, data[0])
        return Trainer(recipe, config, log_mel, data, context, **extras)
    initial, log_mel, model = checkpoint.load(options.init)
    config = replace(config, provenance=config.provenance | _inherited(initial, config.provenance))
    trainer = Trainer(recipe, config, log_mel.to(context.device), data, context, **extras)
    trainer.initialise_from(model, same_classes=initial.class_names == config.class_names)
    return trainer


def _inherited(initial: Config, own: dict[str, Any]) -> dict[str, Any]:
    """The provenance that a run takes over from its initial checkpoint: the folds of both, and `init`."""
    is_same = initial.provenance.get("dataset") == own["dataset"]
    earlier = initial.provenance.get("train_folds", []) if is_same else []
    return {"init": initial.provenance, "train_folds": sorted({*earlier, *own["train_folds"]})}


def _resume(trainer: Trainer, out: Path) -> None:
    """Load the state of an interrupted run; remove what a killed process left."""
    if trainer.context.rank == 0:
        for leftover in out.glob(".state.*.part.pt"):
            leftover.unlink()
    if (out / _STATE).is_file():
        trainer.load_state(out / _STATE)
        print(f"resumed after epoch {trainer.epoch}")


def _train_epochs(
    trainer: Trainer, options: RunOptions, watched: Data | None, validation: Data | None
) -> None:
    """Train until the last epoch, or until the accuracy on the validation split stalls."""
    epochs, is_first = trainer.recipe.epochs, options.context.rank == 0
    writer = _tensorboard_writer(options)
    steps = trainer.steps_per_epoch
    saved = -float("inf")
    with tqdm(
        total=epochs * steps, initial=trainer.epoch * steps, unit="step", disable=not is_first, smoothing=0.05
    ) as bar:
        while trainer.epoch < epochs and not _has_stalled(trainer, options.patience):
            row = trainer.train_epoch(bar)
            is_due = trainer.epoch % options.watch_every == 0
            if watched and (is_due or trainer.epoch == epochs):
                row["watched_accuracy"] = trainer.accuracy(*watched)
            if validation:
                row["inner_accuracy"] = trainer.accuracy(*validation)
            if writer:
                writer.write(trainer, row, images=is_due)
            if is_first and (time.monotonic() - saved >= _SAVE_SECONDS or trainer.epoch == epochs):
                trainer.save_state(options.out / _STATE)
                saved = time.monotonic()
            if is_first:
                text = "  ".join(f"{key} {value:.4g}" for key, value in row.items() if key != "epoch")
                tqdm.write(f"epoch {trainer.epoch}/{epochs}  {text}")


def _tensorboard_writer(options: RunOptions) -> TensorBoardWriter | None:
    if not options.tensorboard or options.context.rank > 0:
        return None
    from training.tensorboard import TensorBoardWriter  # here: the import takes a second

    return TensorBoardWriter(options.out / "tensorboard")


def _has_stalled(trainer: Trainer, patience: int) -> bool:
    """Whether the best accuracy on the validation split is `patience` or more epochs old."""
    accuracies = [row.get("inner_accuracy", 0.0) for row in trainer.history]
    if not patience or not accuracies:
        return False
    return len(accuracies) - 1 - accuracies.index(max(accuracies)) >= patience


def _calibrated(config: Config, trainer: Trainer, held_out: Data) -> Config:
    """With temperature and threshold for unknown sounds, fitted on held-out clips.

    Few clips do not make the confidences higher, nor the threshold lower than midway from chance to 1.
    """
    logits, target = trainer.logits(held_out[0]).numpy(), held_out[1].numpy()
    several = config.activation == "sigmoid"
    temperature = (multilabel if several else calibration).fit_temperature(logits, target)
    if len(target) < _FEW_CLIPS:
        temperature = max(1.0, temperature)
    activation = sigmoid if several else softmax
    highest = activation(logits, temperature).max(axis=1)
    threshold = calibration.threshold_for(highest)
    if len(target) < _FEW_CLIPS:
        chance = 0.0 if several else 1 / logits.shape[1]
        threshold = max(threshold, (1 + chance) / 2)
    print(f"temperature {temperature:.2f} and threshold {threshold:.2f} from {len(target)} held-out clips")
    return replace(config, temperature=temperature, unknown_threshold=threshold)


def _finish(trainer: Trainer, out: Path, held_out: Data | None) -> Config:
    """Write history and checkpoint (the first process only); returns the config."""
    statistics = {
        "torch": torch.__version__,
        "hardware": hardware(trainer.context),
        "precision": "bf16" if trainer.use_bf16 else "fp32",
        "minutes": round(trainer.seconds / 60, 1),
        "epochs": trainer.epoch,
    }
    config = replace(trainer.config, provenance=trainer.config.provenance | statistics)
    if trainer.context.rank > 0:
        return config
    if held_out:
        config = _calibrated(config, trainer, held_out)
    (out / "history.json").write_text(json.dumps(trainer.history, indent=1) + "\n")
    return checkpoint.save(out, config, trainer.log_mel, trainer.result)

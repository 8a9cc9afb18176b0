"""Train AudioCNN from scratch: `python -m training.train --data DIR --train-folds 1,2,3 --out DIR`.

The weights that count are those of the last epoch: no fold is looked at to pick one. Run the same
command again after a kill and it goes on where it was, with the same result. Several GPUs or machines:
`torchrun --nproc-per-node N -m training.train ...`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from audiocnn.config import Config, FrontendConfig, ModelConfig
from audiocnn.datasets import Dataset, LabelledClip, read_dataset
from audiocnn.errors import DatasetError, ModelFileError
from audiocnn.model import checkpoint
from audiocnn.model.frontend import LogMel
from training import synthesisers
from training.data import (
    fit_normalisation,
    inner_split,
    load_waveforms,
    parse_folds,
    targets,
    without_classes,
)
from training.recipe import FRONTENDS, RECIPES, Recipe
from training.teacher import online
from training.teacher.soft_labels import SoftLabels
from training.trainer import Place, Run, cpu_description
from training.validate import check, print_class_counts

if TYPE_CHECKING:
    from training.tensorboard import Board

Data = tuple[Tensor, Tensor]

_SAVE_SECONDS = 30.0  # at least, between two states: an epoch may be shorter than writing one


def join() -> Place:
    """This process's place: alone, or one of those that `torchrun` started."""
    has_gpu = torch.cuda.is_available()
    if "WORLD_SIZE" not in os.environ:
        return Place("cuda" if has_gpu else "cpu")
    torch.distributed.init_process_group("nccl" if has_gpu else "gloo")
    device = f"cuda:{os.environ['LOCAL_RANK']}" if has_gpu else "cpu"
    return Place(device, torch.distributed.get_rank(), torch.distributed.get_world_size())


def hardware(place: Place) -> str:
    """What the run ran on, in words for the metrics file."""
    if place.kind == "cuda":
        return f"{place.world} x {torch.cuda.get_device_name()}"
    lines = (line for line in cpu_description().splitlines() if "model name" in line)
    name = next(lines, platform.processor()).rpartition(":")[2].strip()
    return f"{name}, {place.world} x {torch.get_num_threads()} threads"


def train(
    dataset: Dataset,
    folds: Sequence[int],
    recipe: Recipe,
    config: Config,
    out: Path,
    *,
    place: Place | None = None,
    watch_folds: Sequence[int] = (),
    watch_every: int = 10,
    patience: int = 0,
    cache: Path | None = None,
    tensorboard: bool = True,
    init: Path | None = None,
    teacher: Path | None = None,
    online_teacher: bool = False,
) -> Config:
    """Train (or go on training) into `out`; writes the checkpoint there and returns its config.

    `watch_folds` are measured every `watch_every` epochs for the curve: nothing is chosen by them.
    `patience` above 0 stops early, after so many epochs without a gain on a tenth of the training
    clips' recordings that is then not trained on. `init` is a checkpoint to start from: its front end and
    network are taken over, its head too if it has the same classes; the folds that it heard count as heard.
    `teacher` is a file of soft labels (`training.teacher`); the folds that its heads heard count too. With
    `online_teacher` the teacher answers every mix instead.
    """
    place = place or Place()
    if init:
        earlier, _, _ = checkpoint.load(init)
        config = replace(config, frontend=earlier.frontend, model=earlier.model)
    check(dataset, folds)
    clips = dataset.folds(folds)
    if place.rank == 0:
        print_class_counts(clips)
    inner: list[LabelledClip] = []
    if patience:
        clips, inner = inner_split(clips, seed=recipe.seed)

    def load(wanted: list[LabelledClip]) -> Data:
        waveforms = load_waveforms(wanted, config.frontend, cache=cache, quiet=place.rank > 0)
        return waveforms, targets(wanted, dataset.class_names)

    data = load(clips)
    out.mkdir(parents=True, exist_ok=True)
    provenance = {"dataset": dataset.name, "train_folds": list(folds), "recipe": asdict(recipe)}
    extras: dict[str, Any] = {}
    if teacher:
        labels = SoftLabels.load(teacher)
        extras["teacher"] = labels.of(clips, dataset.class_names)
        provenance["teacher"] = labels.provenance
        provenance["train_folds"] = sorted({*folds, *labels.provenance["train_folds"]})
    if online_teacher:
        extras["heads"] = online_heads(out, clips, dataset, place)
        provenance["teacher"] = online.provenance() | {"dataset": dataset.name, "train_folds": list(folds)}
    if recipe.background:
        extras["recorded"], programs = recorded_background(out, config.frontend, place)
        provenance["background_programs"] = programs
    run = _begin(recipe, replace(config, provenance=provenance), data, place, init, extras)
    if (out / "state.pt").is_file():
        run.load_state(out / "state.pt")
        print(f"resumed after epoch {run.epoch}")
    watched = load(dataset.folds(watch_folds)) if watch_folds else None
    board = None
    if tensorboard and place.rank == 0:
        from training.tensorboard import Board  # here: it takes a second to import, and campaigns do without

        board = Board(out / "tensorboard")
    _loop(run, out, board, watched, watch_every, load(inner) if inner else None, patience)
    if place.rank == 0:
        (out / "history.json").write_text(json.dumps(run.history, indent=1) + "\n")
        config = replace(run.config, provenance=run.config.provenance | _effort(run))
        config = checkpoint.save(out, config, run.log_mel, run.result)
    return config


def recorded_background(out: Path, config: FrontendConfig, place: Place) -> tuple[Tensor, list[str]]:
    """Speech and music of no class, int16 `(m, window_samples)`, and the programs that rendered them: once,
    then they are kept in `out`."""
    path = out / "background.safetensors"
    if place.rank == 0 and not path.is_file():
        part = path.with_suffix(".part")
        programs = synthesisers.available()
        sounds = torch.from_numpy(synthesisers.render(config))
        save_file({"sounds": sounds}, part, metadata={"programs": json.dumps(programs)})
        os.replace(part, path)
    place.wait()
    with safe_open(path, "pt") as file:
        return file.get_tensor("sounds"), json.loads(file.metadata()["programs"])


def online_heads(out: Path, clips: list[LabelledClip], dataset: Dataset, place: Place) -> online.Heads:
    """The heads of an online teacher: fitted once, then they are kept in `out`."""
    path = out / "heads.safetensors"
    if place.rank == 0 and not path.is_file():
        online.fit_heads(clips, dataset.class_names, device=place.device).save(path)
    place.wait()
    return online.Heads.load(path)


def _begin(
    recipe: Recipe,
    config: Config,
    data: Data,
    place: Place,
    init: Path | None,
    extras: dict[str, Any],
) -> Run:
    """A run from scratch, with its front end fitted to the data, or from the checkpoint `init`."""
    if init is None:
        log_mel = LogMel(config.frontend).to(place.device)
        fit_normalisation(log_mel, data[0])
        return Run(recipe, config, log_mel, data, place, **extras)
    earlier, log_mel, model = checkpoint.load(init)
    provenance = config.provenance | _inherited(earlier, config.provenance)
    config = replace(config, provenance=provenance)
    run = Run(recipe, config, log_mel.to(place.device), data, place, **extras)
    run.start_from(model, same_classes=earlier.class_names == config.class_names)
    return run


def _inherited(earlier: Config, own: dict[str, Any]) -> dict[str, Any]:
    """Provenance of a run that starts from another's weights: what that one heard, this one knows."""
    same = earlier.provenance.get("dataset") == own["dataset"]
    heard = set(earlier.provenance.get("train_folds", [])) if same else set()
    return {"init": earlier.provenance, "train_folds": sorted(heard | set(own["train_folds"]))}


def _effort(run: Run) -> dict[str, Any]:
    """What the run took, for the metrics file."""
    return {
        "torch": torch.__version__,
        "hardware": hardware(run.place),
        "precision": "bf16" if run.use_bf16 else "fp32",
        "minutes": round(run.seconds / 60, 1),
        "epochs": run.epoch,
    }


def _loop(
    run: Run,
    out: Path,
    board: Board | None,
    watched: Data | None,
    watch_every: int,
    inner: Data | None,
    patience: int,
) -> None:
    """Epochs until the last one, or until the inner split has had enough."""
    recipe, is_first = run.recipe, run.place.rank == 0
    done = run.epoch * run.steps_per_epoch
    total = recipe.epochs * run.steps_per_epoch
    saved = -float("inf")
    with tqdm(total=total, initial=done, unit="step", disable=not is_first, smoothing=0.05) as bar:
        while run.epoch < recipe.epochs and not _has_stalled(run, patience):
            row = run.train_epoch(bar)
            if watched and (run.epoch % watch_every == 0 or run.epoch == recipe.epochs):
                row["watched_accuracy"] = run.accuracy(*watched)
            if inner:
                row["inner_accuracy"] = run.accuracy(*inner)
            if board:
                board.write(run, row, pictures=run.epoch % watch_every == 0)
            if is_first and (time.monotonic() - saved >= _SAVE_SECONDS or run.epoch == recipe.epochs):
                run.save_state(out / "state.pt")
                saved = time.monotonic()
            if is_first:
                text = "  ".join(f"{key} {value:.4g}" for key, value in row.items() if key != "epoch")
                tqdm.write(f"epoch {run.epoch}/{recipe.epochs}  {text}")


def _has_stalled(run: Run, patience: int) -> bool:
    """Whether the best inner accuracy is `patience` epochs old or older."""
    seen = [row.get("inner_accuracy", 0.0) for row in run.history]
    return bool(patience and seen and len(seen) - 1 - seen.index(max(seen)) >= patience)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line: the recipe's own values are the defaults of the flags that change them."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="ESC-50 or UrbanSound8K folder, or a CSV")
    parser.add_argument("--train-folds", type=parse_folds, required=True, help="folds to train on: 1,2,3")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--recipe", choices=RECIPES, default="strong", help="(%(default)s)")
    parser.add_argument("--width", type=int, help="channels of the first stage (64)")
    parser.add_argument("--drop-path", type=float, default=0.0, help="skip blocks in training (%(default)s)")
    parser.add_argument("--f-max", type=float, help="highest frequency of the front end in Hz")
    parser.add_argument("--init", type=Path, metavar="CHECKPOINT", help="start from these weights (scratch)")
    parser.add_argument(
        "--teacher", type=Path, metavar="FILE", help="soft labels that training.teacher wrote"
    )
    parser.add_argument("--online-teacher", action="store_true", help="it answers every mix (GPU)")
    parser.add_argument("--exclude", metavar="CLASS,...", help="train as if these classes did not exist")
    parser.add_argument("--watch-folds", type=parse_folds, default=[], help="measure these for the curve")
    parser.add_argument("--watch-every", type=int, default=10, metavar="EPOCHS", help="(%(default)s)")
    parser.add_argument("--early-stopping", type=int, default=0, metavar="EPOCHS", help="patience (off)")
    parser.add_argument("--no-tensorboard", action="store_true", help="write no event files")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: as many as torch chooses)")
    parser.add_argument("--cache", type=Path, help="folder that keeps decoded clips between runs")
    recipe = parser.add_argument_group("recipe", "what --recipe sets, changed one by one")
    for name, value in asdict(Recipe()).items():
        recipe.add_argument("--" + name.replace("_", "-"), type=type(value))
    return parser.parse_args(arguments)


def settings(args: argparse.Namespace) -> tuple[Recipe, FrontendConfig, ModelConfig]:
    """The named recipe with the changes of the command line."""
    changes: dict[str, Any] = {n: v for n, v in vars(args).items() if n in asdict(Recipe()) and v is not None}
    recipe = replace(RECIPES[args.recipe], **changes)
    frontend, model = FRONTENDS[args.recipe], ModelConfig()
    if args.f_max:
        frontend = replace(frontend, f_max=args.f_max)
    return recipe, frontend, replace(model, width=args.width or model.width, drop_path=args.drop_path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; a message without a traceback for what the user can mend."""
    args = parse_arguments(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        recipe, frontend, model = settings(args)
        dataset = read_dataset(args.data)
        if args.exclude:
            dataset = without_classes(dataset, args.exclude.split(","))
        config = Config(class_names=dataset.class_names, frontend=frontend, model=model)
        train(
            dataset,
            args.train_folds,
            recipe,
            config,
            args.out,
            place=join(),
            watch_folds=args.watch_folds,
            watch_every=args.watch_every,
            patience=args.early_stopping,
            cache=args.cache,
            tensorboard=not args.no_tensorboard,
            init=args.init,
            teacher=args.teacher,
            online_teacher=args.online_teacher,
        )
    except (DatasetError, ModelFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        return 130
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    print(f"checkpoint written to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

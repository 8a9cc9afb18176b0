"""Train AudioCNN on the given folds and write a checkpoint.

The checkpoint has the weights of the last epoch: no fold is used to choose one. Run the same command again
after an interruption and it resumes after the last complete epoch, with the same result. For several GPUs or
machines: `torchrun --nproc-per-node N -m training.train ...`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch

from audiocnn import command
from audiocnn.command import count, natural, number, parse_folds, positive
from audiocnn.config import Config, FrontendConfig, ModelConfig
from audiocnn.datasets import read_dataset
from training.data import add_data_option, without_classes
from training.distributed import init_distributed
from training.recipe import FRONTENDS, MANY_CLIPS, OLD_FIELDS, RECIPES, Recipe, parse_recipe, sized, width_for
from training.training_run import RunOptions, split, train

_RECIPE_HELP = "hyperparameters and augmentation (%(default)s); `seeds` is an old name of `baseline`"
_TEACHER_HELP = "soft labels that training.teacher wrote (none)"
_SIZED = ("batch_size", "epochs", "ema_decay")
_FEWER = "; less for few clips"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; the defaults of the recipe's options are the values of `--recipe`."""
    example = "--data data/ESC-50 --train-folds 1,2,3 --watch-folds 4 --out runs/mine --recipe strong"
    parser = command.new_parser("training.train", __doc__, example)
    add_data_option(parser)
    add = parser.add_argument
    add("--train-folds", type=parse_folds, metavar="FOLDS", help="folds to train on, such as 1,2,3 (all)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the run and its checkpoint")
    add("--recipe", type=parse_recipe, choices=RECIPES, default="strong", help=_RECIPE_HELP)
    add(
        "--width",
        type=count,
        help=f"channels of the first stage ({ModelConfig().width}; fewer for few clips)",
    )
    add(
        "--drop-path",
        type=number(float, 0, 1),
        default=0.0,
        help="probability of skipping the last block (%(default)s)",
    )
    add("--f-max", type=positive, metavar="HZ", help="highest frequency of the front end (that of --recipe)")
    add("--init", type=Path, metavar="CHECKPOINT", help="start from these weights (none: random weights)")
    add("--teacher", dest="soft_labels", type=Path, metavar="FILE", help=_TEACHER_HELP)
    add("--online-teacher", action="store_true", help="a teacher labels every mix; needs a GPU (off)")
    add("--exclude", metavar="CLASS,...", help="leave these classes out (none)")
    add("--watch-folds", type=parse_folds, default=[], metavar="FOLDS", help="validation folds (none)")
    text = "evaluate on them every EPOCHS epochs (%(default)s)"
    add("--watch-every", type=count, default=10, metavar="EPOCHS", help=text)
    text = (
        "stop after so many epochs without a gain on a validation split, a tenth of the training recordings "
        "(0: off)"
    )
    add("--early-stopping", dest="patience", type=natural, default=0, metavar="EPOCHS", help=text)
    add("--no-tensorboard", dest="tensorboard", action="store_false", help="write no event files")
    add("--threads", type=natural, default=0, help="CPU threads (0: PyTorch's choice)")
    add("--cache", type=Path, metavar="DIR", help="folder that keeps decoded clips between runs (none)")
    _add_recipe_options(parser, arguments)
    return parser.parse_args(arguments)


def _add_recipe_options(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> None:
    """An option for each field of the recipe that the command line names."""
    named = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    named.add_argument("--recipe", type=parse_recipe, default="strong")
    name = named.parse_known_args(arguments)[0].recipe
    values = RECIPES.get(name, RECIPES["strong"])
    title = f"recipe (defaults: those of --recipe {name})"
    group = parser.add_argument_group(title, "Probabilities and fractions are from 0 to 1.")
    old = {new: old for old, new in OLD_FIELDS.items()}
    for setting in fields(Recipe):
        flags = [f"--{name.replace('_', '-')}" for name in (setting.name, old.get(setting.name)) if name]
        value = getattr(values, setting.name)
        metavar = {int: "N", float: "X"}.get(type(value))
        text = f"{setting.metadata['help']} ({value}{_FEWER * (setting.name in _SIZED)})"
        arguments_of = {"metavar": metavar, **setting.metadata, "help": text.replace("%", "%%")}
        if bounds := arguments_of.pop("bounds", None):
            arguments_of["type"] = number(type(value), *bounds)
        group.add_argument(*flags, dest=setting.name, **arguments_of)


def settings(args: argparse.Namespace, num_clips: int) -> tuple[Recipe, FrontendConfig, ModelConfig]:
    """Recipe, front end and network of the command line, for so many clips."""
    given = {s.name: getattr(args, s.name) for s in fields(Recipe) if getattr(args, s.name) is not None}
    recipe = sized(replace(RECIPES[args.recipe], **given), num_clips, kept=given)
    frontend, model = FRONTENDS[args.recipe], ModelConfig()
    if args.f_max:
        frontend = replace(frontend, f_max=args.f_max)
    width = args.width or width_for(num_clips)
    return recipe, frontend, replace(model, width=width, drop_path=args.drop_path)


def run_options(args: argparse.Namespace) -> RunOptions:
    """The options of the command line; joins the processes that `torchrun` started."""
    given = {each.name: getattr(args, each.name) for each in fields(RunOptions) if each.name != "context"}
    return RunOptions(**given, context=init_distributed())


def run(args: argparse.Namespace) -> None:
    """Train as the command line says. Raises as `train` does."""
    if args.threads:
        torch.set_num_threads(args.threads)
    dataset = read_dataset(args.data)
    if args.exclude:
        dataset = without_classes(dataset, args.exclude.split(","))
    folds = args.train_folds or sorted({clip.fold for clip in dataset.clips})
    num_clips = len(split(dataset, dataset.folds(folds), seed=args.seed or 0)[0])
    recipe, frontend, model = settings(args, num_clips)
    if num_clips < MANY_CLIPS:
        print(
            f"{num_clips} clips to train on: batches of {recipe.batch_size}, {recipe.epochs} epochs, width "
            f"{model.width}"
        )
    config = Config(class_names=dataset.class_names, frontend=frontend, model=model)
    try:
        train(dataset, folds, recipe, config, run_options(args))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    print(f"checkpoint written to {args.out}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse_arguments(arguments)
    return command.exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())

"""Compare recipes by cross-validation, `baseline` and `strong` by default.

All have the same folds, epochs and seeds. The result is the accuracy of the last epoch; the accuracy of the
best epoch on the test fold is printed beside it (`best_on_test`).
"""

from __future__ import annotations

import argparse
import sys

from audiocnn import command
from training.cross_validate import add_shared_options, run
from training.recipe import RECIPES, parse_recipe


def _options(parser: argparse.ArgumentParser) -> None:
    add_shared_options(parser)
    parser.add_argument(
        "--recipes",
        nargs="+",
        type=parse_recipe,
        choices=RECIPES,
        default=["baseline", "strong"],
        help="recipes of training.train (baseline strong)",
    )
    add = parser.add_argument
    add("--epochs", type=command.count, default=100, metavar="N", help="epochs of every run (%(default)s)")
    add(
        "--width",
        type=command.count,
        default=64,
        metavar="N",
        help="channels of the first stage (%(default)s)",
    )


@command.entry_point(_options, "--data data/ESC-50 --out runs/compare --folds 4 --recipes baseline strong")
def main(args: argparse.Namespace) -> None:
    """Cross-validate the recipes. The last line printed is JSON."""
    common = ["--epochs", str(args.epochs), "--width", str(args.width)]
    run({name: ["--recipe", name, *common] for name in args.recipes}, args)


if __name__ == "__main__":
    sys.exit(main())

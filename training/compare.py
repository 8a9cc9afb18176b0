"""The seeds' recipe beside ours, in one command: `python -m training.compare --data DIR --out DIR`.

Same folds, epochs and seeds. The accuracy that counts is that of the last epoch; beside it stands the
best epoch on the test fold, which is what the projects that ours grew from report, so that a reader
sees what choosing by the test fold is worth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from training.cross_validate import add_arguments, finish
from training.recipe import RECIPES


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the last line printed is JSON."""
    parser = argparse.ArgumentParser(prog="python -m training.compare", description=__doc__.split("\n\n")[0])
    add_arguments(parser)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["seeds", "strong"], help="(both)")
    parser.add_argument("--epochs", type=int, default=100, help="of every run (%(default)s)")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage (%(default)s)")
    args = parser.parse_args(arguments)
    common = ["--epochs", str(args.epochs), "--width", str(args.width)]
    return finish({name: ["--recipe", name, *common] for name in args.recipes}, args)


if __name__ == "__main__":
    sys.exit(main())

"""What the commands `python -m training...`, `export...` and `benchmarks...` share: help and exit codes."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from audiocnn.errors import DatasetError, ModelFileError

FoldModel = tuple[Path, list[int]]  # a run, and folds that it was not trained on
Run = Callable[[argparse.Namespace], int | None]
N = TypeVar("N", int, float)
ABOVE_ZERO = sys.float_info.min


def new_parser(module: str, doc: str | None, *examples: str) -> argparse.ArgumentParser:
    """The parser of `python -m MODULE`, described by its docstring.

    `examples` are the arguments of command lines, printed below the options.
    """
    lines = "\n".join(f"  python -m {module} {example}" for example in examples)
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=doc,
        epilog=f"Example:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def entry_point(
    add_options: Callable[[argparse.ArgumentParser], object], example: str
) -> Callable[[Run], Callable[..., int]]:
    """Make `main(arguments=None)` of a module, which returns an exit code, from a function of its options."""

    def decorate(run: Run) -> Callable[..., int]:
        module = run.__globals__

        def main(arguments: Sequence[str] | None = None) -> int:
            name = module["__spec__"].name.removesuffix(".__main__")
            parser = new_parser(name, module["__doc__"], example)
            add_options(parser)
            args = parser.parse_args(arguments)
            return exit_code(lambda: run(args))

        return main

    return decorate


def number(kind: type[N], least: float, most: float = math.inf) -> Callable[[str], N]:
    """A type for argparse: numbers from `least` to `most`; infinity and NaN are none."""

    def parse(text: str) -> N:
        value = kind(text)
        if not (least <= value <= most and math.isfinite(value)):
            low = "more than 0" if least == ABOVE_ZERO else f"{least:g} or more"
            raise argparse.ArgumentTypeError(
                f"{text} is not {low}" + f" and at most {most:g}" * (most < math.inf)
            )
        return value

    parse.__name__ = kind.__name__  # argparse prints it: "invalid int value"
    return parse


count = number(int, 1)
natural = number(int, 0)
positive = number(float, ABOVE_ZERO)


def parse_folds(text: str) -> list[int]:
    """`1,2,3` -> [1, 2, 3]; for argparse."""
    try:
        return [int(fold) for fold in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of folds, as in 1,2,3") from None


def parse_fold_model(text: str) -> FoldModel:
    """`runs/fold1=1` or `runs/other=1,2` -> the folder and its folds; for argparse."""
    path, _, folds = text.rpartition("=")
    if not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not RUN=FOLDS, as in runs/a=1,2")
    return Path(path), parse_folds(folds)


def exit_code(run: Callable[[], int | None]) -> int:
    """What `run` returns (None: 0), 2 with a message for bad input or a bad model, 130 after Ctrl-C."""
    try:
        return run() or 0
    except (DatasetError, ModelFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command again", file=sys.stderr)
        return 130

"""Cross-validate variants of training: `python -m training.cross_validate --data DIR --out DIR`.

A variant is a name and flags of `training.train`: `--variant wide="--recipe strong --width 96"`. Runs go
in parallel and share the decoded clips; a campaign that is cut, or bounded by `--minutes`, goes on when
the same command is given again. `--release` adds a run on all folds for each variant, for shipping.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import scipy.stats

from audiocnn.datasets import read_dataset
from audiocnn.errors import DatasetError, ModelFileError
from training.data import parse_folds
from training.evaluate import evaluate
from training.job_runner import Job, cross_validation, run_all


def row(name: str, jobs: Sequence[Job], data: Path) -> dict[str, Any]:
    """A variant's numbers over its finished runs: accuracies as shares, minutes a run."""
    last, best, minutes = [], [], []
    for job in jobs:
        assert job.test_fold is not None
        last.append(evaluate(job.folder, data, [job.test_fold])["accuracy"])
        best.append(max([last[-1], *(epoch.get("watched_accuracy", 0.0) for epoch in job.history())]))
        minutes.append(json.loads((job.folder / "config.json").read_text())["provenance"]["minutes"])
    by_fold: dict[int, list[float]] = {}
    for job, accuracy in zip(jobs, last, strict=True):
        assert job.test_fold is not None
        by_fold.setdefault(job.test_fold, []).append(accuracy)
    return {
        "name": name,
        "runs": len(jobs),
        "last_epoch": statistics.mean(last),
        "spread": statistics.stdev(last) if len(last) > 1 else 0.0,
        "unseen_fold_95": interval([statistics.mean(values) for values in by_fold.values()]),
        "best_on_test": statistics.mean(best),
        "minutes": statistics.mean(minutes),
        "last_epochs": {job.folder.name: accuracy for job, accuracy in zip(jobs, last, strict=True)},
    }


def interval(folds: Sequence[float]) -> list[float] | None:
    """Where the accuracy on one more fold is to be expected with 95 %: the prediction interval of a
    normal distribution, mean +- t s sqrt(1 + 1/n); None from a single fold."""
    count = len(folds)
    if count < 2:
        return None
    t = float(scipy.stats.t.ppf(0.975, count - 1))
    half = t * statistics.stdev(folds) * (1 + 1 / count) ** 0.5
    mean = statistics.mean(folds)
    return [max(0.0, mean - half), min(1.0, mean + half)]


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """For people, then the same as one line of JSON."""
    print(
        f"{'variant':<14}{'runs':>5}{'last epoch':>12}{'spread':>8}{'unseen fold, 95 %':>20}"
        f"{'best on test':>14}{'minutes':>9}"
    )
    for r in rows:
        expected = "{:.1%} to {:.1%}".format(*r["unseen_fold_95"]) if r["unseen_fold_95"] else "-"
        print(
            f"{r['name']:<14}{r['runs']:>5}{r['last_epoch']:>12.2%}{r['spread']:>8.2%}{expected:>20}"
            f"{r['best_on_test']:>14.2%}{r['minutes']:>9.1f}"
        )
    print(json.dumps(rows))


def run(
    variants: dict[str, list[str]], args: argparse.Namespace, *, release: bool = False
) -> list[dict[str, Any]]:
    """Run what is missing of all variants; a row for each that has a finished run."""
    all_folds = sorted({clip.fold for clip in read_dataset(args.data).clips})
    jobs = []
    for name, flags in variants.items():
        flags = [*flags, "--cache", str(args.out / "cache")]
        if release:
            folder = args.out / f"{name}-release"
            jobs.append(Job(name, tuple(flags), tuple(all_folds), None, args.seeds[0], folder))
        jobs += cross_validation(name, flags, args.folds or all_folds, all_folds, args.seeds, args.out)
    done = run_all(
        jobs, args.data, parallel=args.parallel, minutes=args.minutes, watch_every=args.watch_every
    )
    if len(done) < len(jobs):
        print(f"{len(jobs) - len(done)} of {len(jobs)} runs are not done: run the same command again")
    measured = [job for job in done if job.test_fold is not None]
    names = list(dict.fromkeys(job.name for job in measured))
    return [row(name, [job for job in measured if job.name == name], args.data) for name in names]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `campaign` and `compare` share."""
    parser.add_argument("--data", type=Path, required=True, help="dataset with the folds to validate on")
    parser.add_argument("--out", type=Path, required=True, help="folder for all runs")
    parser.add_argument("--folds", type=parse_folds, default=[], help="test folds (all there are)")
    parser.add_argument("--seeds", type=parse_folds, default=[0], help="(0)")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time (%(default)s)")
    parser.add_argument("--minutes", type=float, help="stop after so long; the same command goes on")
    parser.add_argument("--watch-every", type=int, default=1, metavar="EPOCHS", help="(%(default)s)")


def finish(variants: dict[str, list[str]], args: argparse.Namespace, *, release: bool = False) -> int:
    """Run, print, and turn what the user can mend into a message."""
    try:
        print_table(run(variants, args, release=release))
    except (DatasetError, ModelFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m training.cross_validate", description=__doc__.split("\n\n")[0]
    )
    add_arguments(parser)
    parser.add_argument(
        "--variant",
        action="append",
        metavar="NAME=FLAGS",
        help='flags of training.train (strong="--recipe strong")',
    )
    parser.add_argument("--release", action="store_true", help="also train each variant on all folds, first")
    args = parser.parse_args(arguments)
    pairs = (text.partition("=") for text in args.variant or ["strong=--recipe strong"])
    return finish({name: shlex.split(flags) for name, _, flags in pairs}, args, release=args.release)


if __name__ == "__main__":
    sys.exit(main())

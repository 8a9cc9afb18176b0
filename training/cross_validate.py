"""Cross-validate variants of the training.

A variant is a name and options of `training.train`: `--variant wide="--recipe strong --width 96"`. Runs are
parallel processes that share the decoded clips. An interrupted cross-validation, or one limited by
`--minutes`, resumes when the same command runs again. `--release` adds a run on all folds for each variant.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy import special

from audiocnn import command
from audiocnn.command import parse_folds
from audiocnn.datasets import read_dataset
from training.data import add_data_option
from training.evaluate import evaluate
from training.job_runner import TrainingJob, add_limit_options, run_all


def summarise(name: str, jobs: Sequence[TrainingJob], data: Path) -> dict[str, Any]:
    """The results of a variant over its finished runs: accuracies from 0 to 1, minutes per run.

    `best_on_test` is the accuracy of the best epoch on the test fold. It is biased upwards and reported for
    comparison with projects that choose an epoch by it.
    """
    last, best, minutes = [], [], []
    by_fold: dict[int, list[float]] = {}
    for job in jobs:
        assert job.test_fold is not None
        last.append(evaluate(job.folder, data, [job.test_fold])["accuracy"])
        best.append(max([last[-1], *(epoch.get("watched_accuracy", 0.0) for epoch in job.history())]))
        minutes.append(json.loads((job.folder / "config.json").read_text())["provenance"]["minutes"])
        by_fold.setdefault(job.test_fold, []).append(last[-1])
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
    """The 95 % prediction interval for the accuracy on one more fold, from the accuracies on `folds`.

    For a normal distribution: mean +- t s sqrt(1 + 1/n), limited to [0, 1]; None for fewer than two folds.
    """
    count = len(folds)
    if count < 2:
        return None
    t = float(special.stdtrit(count - 1, 0.975))
    half = t * statistics.stdev(folds) * (1 + 1 / count) ** 0.5
    mean = statistics.mean(folds)
    return [max(0.0, mean - half), min(1.0, mean + half)]


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table, then one line of JSON."""
    table = Table("variant", "runs", "last epoch", "spread", "unseen fold, 95 %", "best on test", "minutes")
    for r in rows:
        expected = "{:.1%} to {:.1%}".format(*r["unseen_fold_95"]) if r["unseen_fold_95"] else "-"
        shares = (f"{r['last_epoch']:.2%}", f"{r['spread']:.2%}", expected, f"{r['best_on_test']:.2%}")
        table.add_row(r["name"], str(r["runs"]), *shares, f"{r['minutes']:.1f}")
    Console().print(table)
    print(json.dumps(rows))


def jobs_for(
    variants: dict[str, list[str]], args: argparse.Namespace, *, release: bool = False
) -> list[TrainingJob]:
    """The jobs of all variants; with `release` a run on all folds before those of each variant."""
    all_folds = sorted({clip.fold for clip in read_dataset(args.data).clips})
    jobs = []
    for name, options in variants.items():
        words = (*options, "--cache", str(args.out / "cache"))
        if release:
            folder = args.out / f"{name}-release"
            jobs.append(TrainingJob(name, words, tuple(all_folds), None, args.seeds[0], folder))
        for seed, fold in itertools.product(args.seeds, args.folds or all_folds):
            train_folds = tuple(other for other in all_folds if other != fold)
            folder = args.out / f"{name}-fold{fold}-seed{seed}"
            jobs.append(TrainingJob(name, words, train_folds, fold, seed, folder))
    return jobs


def run(variants: dict[str, list[str]], args: argparse.Namespace, *, release: bool = False) -> None:
    """Run the jobs that are not done and print the results. Raises `DatasetError` and `ModelFileError`."""
    jobs = jobs_for(variants, args, release=release)
    done = run_all(
        jobs, args.data, parallel=args.parallel, minutes=args.minutes, watch_every=args.watch_every
    )
    if len(done) < len(jobs):
        print(f"{len(jobs) - len(done)} of {len(jobs)} runs are not done: run the same command again")
    by_name: dict[str, list[TrainingJob]] = {}
    for job in done:
        if job.test_fold is not None:
            by_name.setdefault(job.name, []).append(job)
    print_table([summarise(name, jobs, args.data) for name, jobs in by_name.items()])


def add_shared_options(parser: argparse.ArgumentParser) -> None:
    """The options that `cross_validate` and `compare` share."""
    add = parser.add_argument
    add_data_option(parser)
    add("--out", type=Path, required=True, metavar="DIR", help="folder for all runs")
    add("--folds", type=parse_folds, default=[], help="test folds: 1,2 (all)")
    add("--seeds", type=parse_folds, default=[0], help="random seeds: 0,1,2 (0)")
    add_limit_options(parser)
    help_text = "evaluate on the test fold every EPOCHS epochs (%(default)s)"
    add("--watch-every", type=command.count, default=1, metavar="EPOCHS", help=help_text)


def _options(parser: argparse.ArgumentParser) -> None:
    add_shared_options(parser)
    parser.add_argument(
        "--variant",
        action="append",
        metavar="NAME=OPTIONS",
        help='options of training.train; once per variant (strong="--recipe strong")',
    )
    parser.add_argument("--release", action="store_true", help="also train each variant on all folds (off)")


@command.entry_point(
    _options, '--data data/ESC-50 --out runs --folds 3,4 --variant wide="--recipe strong --width 96"'
)
def main(args: argparse.Namespace) -> None:
    """Cross-validate the variants. The last line printed is JSON."""
    pairs = (text.partition("=") for text in args.variant or ["strong=--recipe strong"])
    run({name: shlex.split(options) for name, _, options in pairs}, args, release=args.release)


if __name__ == "__main__":
    sys.exit(main())

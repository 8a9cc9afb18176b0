"""Measure how well unknown sounds are detected.

Ten classes are left out of training, five times in turn, so that every class is unknown once. Each run is
tested on a fold that it was not trained on: clips of its classes (known), clips of the ten (near), and
synthetic speech, music and home noise (far). Reported are the AUROC of each score of `training.scores`, and
the share of unknown sounds rejected by a threshold that rejects 5 % of the known ones.
`--run CHECKPOINT=FOLD` measures the far sounds alone on a trained network.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from audiocnn import command
from audiocnn.arrays import AnyFloatArray, FloatArray
from audiocnn.calibration import auroc, threshold_for
from audiocnn.command import FoldModel, parse_fold_model, parse_folds
from audiocnn.datasets import Dataset, LabelledClip, read_dataset
from audiocnn.errors import DatasetError
from audiocnn.model import checkpoint
from audiocnn.model.engine import Engine
from training import far_sounds
from training.calibrate import REJECTED_SHARE, load_fold_model
from training.data import add_data_option, load_waveforms
from training.job_runner import TrainingJob, add_limit_options, run_all
from training.scores import SCORES, NetworkOutputs, Reference

ROTATIONS = 5
_BATCH = 32
_NEVER = 10**9  # epochs

ScoresByGroup = dict[str, dict[str, AnyFloatArray]]  # {score: {group: (n,)}}


def left_out(class_names: Sequence[str], rotation: int) -> list[str]:
    """Every fifth class, starting at `rotation`: some classes of every group."""
    return list(class_names[rotation::ROTATIONS])


def jobs_for(
    dataset: Dataset, options: Sequence[str], test_folds: Sequence[int], seed: int, out: Path
) -> list[TrainingJob]:
    """One job per rotation and test fold."""
    folds = sorted({clip.fold for clip in dataset.clips})
    jobs = []
    for test_fold in test_folds or folds:
        train_folds = tuple(fold for fold in folds if fold != test_fold)
        for rotation in range(ROTATIONS):
            excluded = ("--exclude", ",".join(left_out(dataset.class_names, rotation)))
            folder = out / f"without{rotation}-fold{test_fold}"
            job = TrainingJob(str(rotation), (*options, *excluded), train_folds, test_fold, seed, folder)
            jobs.append(job)
    return jobs


def finished(model: FoldModel, dataset: Dataset) -> list[TrainingJob]:
    """Jobs for a trained network. Raises `DatasetError` if it was trained on the folds."""
    folder, folds = model
    train_folds = tuple(load_fold_model(folder, dataset, folds).config.provenance["train_folds"])
    return [TrainingJob(folder.name, (), train_folds, fold, 0, folder) for fold in folds]


def network_outputs(engine: Engine, waveforms: FloatArray) -> NetworkOutputs:
    """Logits and embedding of windows `(n, window_samples)`."""
    parts = []
    for first in range(0, len(waveforms), _BATCH):
        inputs = np.stack([engine.prepare(window) for window in waveforms[first : first + _BATCH]])
        parts.append(engine.run(inputs, ("logits", "embedding")))
    logits, embedding = (np.concatenate([part[name] for part in parts]) for name in ("logits", "embedding"))
    return NetworkOutputs(logits, embedding)


def scores(job: TrainingJob, dataset: Dataset, cache: Path) -> ScoresByGroup:
    """`{score: {group: (n,)}}` for the groups `known`, `near` and each kind of `training.far_sounds`.

    The first window of each clip is scored. `near` is missing if the network has all classes.
    """
    assert job.test_fold is not None
    engine = Engine(job.folder)
    frontend, known = engine.config.frontend, set(engine.config.class_names)

    def outputs_of(clips: Sequence[LabelledClip]) -> NetworkOutputs:
        return network_outputs(engine, load_waveforms(clips, frontend, cache=cache, quiet=True).numpy())

    training = [clip for clip in dataset.folds(job.train_folds) if clip.label in known]
    _, _, model = checkpoint.load(job.folder)
    reference = Reference(model.fc.weight.detach().numpy(), outputs_of(training).embedding)
    tested = dataset.folds([job.test_fold])
    groups = {"known": outputs_of([clip for clip in tested if clip.label in known])}
    if near := [clip for clip in tested if clip.label not in known]:
        groups["near"] = outputs_of(near)
    for kind in far_sounds.available():
        groups[kind] = network_outputs(engine, far_sounds.make(kind, frontend, far_sounds.COUNT))
    return {
        name: {group: score(values, reference) for group, values in groups.items()}
        for name, score in SCORES.items()
    }


def summarise(runs: Sequence[ScoresByGroup]) -> dict[str, Any]:
    """AUROC of every score, `{score: {group: [one per run]}}`, and the results of the chosen score.

    The score is chosen by `near` of the first run and reported on the other runs (on the first, if it is the
    only one). `unknown_near` is its mean AUROC for `near`, `unknown_far` the mean over the kinds of far
    sounds, `refused` the share of each group below a threshold that rejects 5 % of the known clips. Scores of
    different runs are not pooled, since their scales differ.
    """
    table = _auroc_table(runs)
    chosen = max(table, key=lambda name: table[name].get("near", [0.0])[0])
    reported = range(1, len(runs)) if len(runs) > 1 else range(1)
    rates = [_rejected(runs[number][chosen]) for number in reported]
    means = {group: float(np.mean([values[n] for n in reported])) for group, values in table[chosen].items()}
    far = [value for group, value in means.items() if group != "near"]
    return {
        "auroc": table,
        "chosen": chosen,
        "unknown_near": means.get("near"),
        "unknown_far": float(np.mean(far)) if far else None,
        "refused": {group: float(np.mean([rate[group] for rate in rates])) for group in rates[0]},
    }


def _auroc_table(runs: Sequence[ScoresByGroup]) -> dict[str, dict[str, list[float]]]:
    return {
        name: {
            group: [auroc(run[name]["known"], run[name][group]) for run in runs]
            for group in groups
            if group != "known"
        }
        for name, groups in runs[0].items()
    }


def _rejected(groups: dict[str, AnyFloatArray]) -> dict[str, float]:
    """The share of every group below the threshold."""
    threshold = threshold_for(groups["known"], REJECTED_SHARE)
    return {group: float((values < threshold).mean()) for group, values in groups.items()}


def print_table(summary: dict[str, Any]) -> None:
    """Print the AUROC of every score, as means over the runs."""
    groups = list(summary["auroc"][summary["chosen"]])
    table = Table("score", *groups, title="AUROC against known sounds, mean over the runs")
    for name, row in summary["auroc"].items():
        style = "bold" if name == summary["chosen"] else None
        table.add_row(name, *(f"{np.mean(row[group]):.3f}" for group in groups), style=style)
    Console().print(table)
    rejected = ", ".join(f"{group} {share:.1%}" for group, share in summary["refused"].items())
    print(f"chosen: {summary['chosen']}; rejected: {rejected}")


def _options(parser: argparse.ArgumentParser) -> None:
    add_data_option(parser)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for all runs")
    help_text = "measure far sounds on a trained network and a fold that it was not trained on (train)"
    add("--run", type=parse_fold_model, metavar="CHECKPOINT=FOLD", help=help_text)
    add("--folds", type=parse_folds, default=[], help="test folds (all)")
    add("--flags", default="--recipe strong", help="options of training.train (%(default)s)")
    add("--seed", type=command.natural, default=0, metavar="N", help="random seed (%(default)s)")
    add_limit_options(parser)


@command.entry_point(
    _options, '--data data/ESC-50 --out runs/open-set --folds 4 --flags "--recipe strong --width 32"'
)
def main(args: argparse.Namespace) -> None:
    """Train what is not trained, measure and print. Raises `DatasetError` and `ModelFileError`."""
    dataset = read_dataset(args.data)
    if args.run:
        jobs = finished(args.run, dataset)
    else:
        jobs = jobs_for(dataset, shlex.split(args.flags), args.folds, args.seed, args.out)
    done = run_all(jobs, args.data, parallel=args.parallel, minutes=args.minutes, watch_every=_NEVER)
    if not done:
        raise DatasetError(f"none of {len(jobs)} runs is done: run the same command again")
    measured = [scores(job, dataset, args.out / "cache") for job in done]
    summary = summarise(measured) | {"runs": len(done), "of": len(jobs)}
    print_table(summary)
    print(json.dumps(summary))


if __name__ == "__main__":
    sys.exit(main())

"""Can the model say "I don't know"? `python -m training.open_set --data DIR --out DIR`.

Ten classes are left out of training, five times in turn, so that every class is once unknown. A run
answers a fold that it has not seen: clips of its own classes, and clips of the ten (near); and synthetic
speech, music and home noise (far). What is measured is how well each of `training.scores` tells them
apart, and how many unknown sounds a threshold refuses which refuses one known sound in twenty.
`--run CHECKPOINT=FOLD` measures the far sounds alone, on a network that is there.
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
import torch
from rich.console import Console
from rich.table import Table

from audiocnn.datasets import Dataset, LabelledClip, read_dataset
from audiocnn.errors import DatasetError, ModelFileError
from audiocnn.model import checkpoint
from audiocnn.model.engine import Engine
from training import far_sounds
from training.calibrate import Pair, parse_pair
from training.calibration import auroc, threshold_for
from training.data import load_waveforms, parse_folds
from training.evaluate import trained_on
from training.job_runner import Job, run_all
from training.scores import SCORES, Answers, FloatArray, Reference, Scores

ROTATIONS = 5
REFUSED_SHARE = 0.05
_BATCH = 32


def left_out(class_names: Sequence[str], rotation: int) -> list[str]:
    """Every fifth class, so that each rotation loses some of every group."""
    return list(class_names[rotation::ROTATIONS])


def jobs_for(
    dataset: Dataset, flags: Sequence[str], test_folds: Sequence[int], seed: int, out: Path
) -> list[Job]:
    """One job a rotation and test fold."""
    folds = sorted({clip.fold for clip in dataset.clips})
    jobs = []
    for test_fold in test_folds or folds:
        train_folds = tuple(fold for fold in folds if fold != test_fold)
        for rotation in range(ROTATIONS):
            excluded = ("--exclude", ",".join(left_out(dataset.class_names, rotation)))
            folder = out / f"without{rotation}-fold{test_fold}"
            jobs.append(Job(str(rotation), (*flags, *excluded), train_folds, test_fold, seed, folder))
    return jobs


def finished(pair: Pair, dataset: Dataset) -> list[Job]:
    """A job for a network that is there and has not seen the folds."""
    folder, folds = pair
    config, _, _ = checkpoint.load(folder)
    if seen := trained_on(config, dataset, folds):
        raise DatasetError(f"{folder} was trained on fold {seen}: to it these clips are not new")
    train_folds = tuple(config.provenance["train_folds"])
    return [Job(folder.name, (), train_folds, fold, 0, folder) for fold in folds]


def answers(engine: Engine, waveforms: FloatArray) -> Answers:
    """Logits and embedding of windows `(n, window_samples)`."""
    parts = []
    with torch.inference_mode():
        for batch in torch.split(torch.from_numpy(waveforms), _BATCH):
            log_mel = np.concatenate([engine.log_mel(window[None]).numpy() for window in batch])
            parts.append(engine.run(log_mel, ("logits", "embedding")))
    return Answers(*(np.concatenate([part[name] for part in parts]) for name in ("logits", "embedding")))


def scores(job: Job, dataset: Dataset, cache: Path) -> dict[str, dict[str, Scores]]:
    """`{score: {group: (n,)}}` for the test fold's known clips, its clips of other classes (`near`), and
    each kind of `training.far_sounds` that can be made here. Of a clip its first window counts."""
    assert job.test_fold is not None
    engine = Engine(job.folder)
    frontend, known = engine.config.frontend, set(engine.config.class_names)

    def load(clips: Sequence[LabelledClip]) -> Answers:
        return answers(engine, load_waveforms(clips, frontend, cache=cache, quiet=True).numpy())

    training = [clip for clip in dataset.folds(job.train_folds) if clip.label in known]
    _, _, model = checkpoint.load(job.folder)
    reference = Reference(model.fc.weight.detach().numpy(), load(training).embedding)
    tested = dataset.folds([job.test_fold])
    groups = {"known": load([clip for clip in tested if clip.label in known])}
    if strangers := [clip for clip in tested if clip.label not in known]:
        groups["near"] = load(strangers)
    for kind in far_sounds.available():
        groups[kind] = answers(engine, far_sounds.make(kind, frontend, far_sounds.COUNT))
    return {
        name: {group: score(values, reference) for group, values in groups.items()}
        for name, score in SCORES.items()
    }


def summarise(runs: Sequence[dict[str, dict[str, Scores]]]) -> dict[str, Any]:
    """AUROC of every score: `{score: {group: [one a run]}}`, and what the chosen one does.

    The score is chosen on `near` of the first run and reported on the others (on the first, if it is the
    only one). `unknown_near` is their mean, `unknown_far` that over the kinds of far sounds. Scores of
    different runs are not pooled: each has its own scale. Refused is what scores below the threshold that
    refuses one known clip in twenty.
    """
    table = {
        name: {
            group: [auroc(run[name]["known"], run[name][group]) for run in runs]
            for group in runs[0][name]
            if group != "known"
        }
        for name in runs[0]
    }
    chosen = max(table, key=lambda name: table[name].get("near", [0.0])[0])
    reported = range(1, len(runs)) if len(runs) > 1 else range(1)
    rates = [_refused(runs[number][chosen]) for number in reported]
    means = {group: float(np.mean([values[n] for n in reported])) for group, values in table[chosen].items()}
    far = [value for group, value in means.items() if group != "near"]
    return {
        "auroc": table,
        "chosen": chosen,
        "unknown_near": means.get("near"),
        "unknown_far": float(np.mean(far)) if far else None,
        "refused": {group: float(np.mean([rate[group] for rate in rates])) for group in rates[0]},
    }


def _refused(groups: dict[str, Scores]) -> dict[str, float]:
    """Share of every group below the threshold."""
    threshold = threshold_for(groups["known"], REFUSED_SHARE)
    return {group: float((values < threshold).mean()) for group, values in groups.items()}


def print_table(summary: dict[str, Any]) -> None:
    """The AUROC of every score, means over the runs, for people."""
    groups = list(summary["auroc"][summary["chosen"]])
    table = Table("score", *groups, title="AUROC against known sounds, mean over the runs")
    for name, row in summary["auroc"].items():
        style = "bold" if name == summary["chosen"] else None
        table.add_row(name, *(f"{np.mean(row[group]):.3f}" for group in groups), style=style)
    Console().print(table)
    refused = ", ".join(f"{group} {share:.1%}" for group, share in summary["refused"].items())
    print(f"chosen: {summary['chosen']}; refused: {refused}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the last line printed is JSON."""
    parser = argparse.ArgumentParser(prog="python -m training.open_set", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="ESC-50 folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for all runs")
    parser.add_argument(
        "--run", type=parse_pair, metavar="CHECKPOINT=FOLD", help="far sounds only, no training"
    )
    parser.add_argument("--folds", type=parse_folds, default=[], help="test folds (all there are)")
    parser.add_argument("--flags", default="--recipe strong", help="of training.train (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time (%(default)s)")
    parser.add_argument("--minutes", type=float, help="stop after so long; the same command goes on")
    args = parser.parse_args(arguments)
    try:
        dataset = read_dataset(args.data)
        jobs = (
            finished(args.run, dataset)
            if args.run
            else jobs_for(dataset, shlex.split(args.flags), args.folds, args.seed, args.out)
        )
        done = run_all(jobs, args.data, parallel=args.parallel, minutes=args.minutes, watch_every=10**9)
        if not done:
            raise DatasetError(f"none of {len(jobs)} runs is done: run the same command again")
        measured = [scores(job, dataset, args.out / "cache") for job in done]
        summary = summarise(measured) | {"runs": len(done), "of": len(jobs)}
    except (DatasetError, ModelFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_table(summary)
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())

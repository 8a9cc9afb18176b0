"""Can the model say "I don't know"? `python -m training.unknown --data DIR --out DIR`.

Ten classes are left out of training, five times in turn, so that every class is once unknown. A run
answers a fold that it has not seen: clips of its own classes, and clips of the ten. What is measured is
how well the confidence tells them apart, and how many unknown sounds a threshold refuses which refuses
one known sound in twenty.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from audiocnn.classifier import Classifier
from audiocnn.datasets import Dataset, read_dataset
from audiocnn.errors import DatasetError, ModelFileError
from training.calibration import auroc, threshold_for
from training.data import parse_folds, without_classes
from training.evaluate import predict
from training.runs import Job, run_all

ROTATIONS = 5
REFUSED_SHARE = 0.05

Scores = npt.NDArray[np.float32]


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


def scores(job: Job, dataset: Dataset) -> tuple[Scores, Scores]:
    """Confidence in the top class for the test fold's known and unknown clips: `(n,)` each."""
    assert job.test_fold is not None
    classifier = Classifier.load(job.folder)
    known = set(classifier.config.class_names)
    unknown_names = [name for name in dataset.class_names if name not in known]
    probs, _ = predict(classifier, without_classes(dataset, unknown_names), [job.test_fold])
    strangers = without_classes(dataset, sorted(known))
    renamed = replace(  # any label will do: only the confidence counts
        strangers,
        clips=tuple(replace(clip, label=classifier.config.class_names[0]) for clip in strangers.clips),
    )
    strange, _ = predict(classifier, renamed, [job.test_fold])
    return probs.max(axis=1), strange.max(axis=1)


def summarise(pairs: Sequence[tuple[Scores, Scores]]) -> dict[str, Any]:
    """`auroc` per rotation and over all (scores of different runs are not pooled: each has its own
    scale), and what the threshold of each does to its unknown sounds."""
    rates = []
    for known, unknown in pairs:
        threshold = threshold_for(known, REFUSED_SHARE)
        rates.append((float((known < threshold).mean()), float((unknown < threshold).mean())))
    per_run = [auroc(known, unknown) for known, unknown in pairs]
    return {
        "auroc": float(np.mean(per_run)),
        "auroc_per_run": per_run,
        "known_refused": float(np.mean([known for known, _ in rates])),
        "unknown_refused": float(np.mean([unknown for _, unknown in rates])),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the last line printed is JSON."""
    parser = argparse.ArgumentParser(prog="python -m training.unknown", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="ESC-50 folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for all runs")
    parser.add_argument("--folds", type=parse_folds, default=[], help="test folds (all there are)")
    parser.add_argument("--flags", default="--recipe strong", help="of training.train (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time (%(default)s)")
    parser.add_argument("--minutes", type=float, help="stop after so long; the same command goes on")
    args = parser.parse_args(arguments)
    try:
        dataset = read_dataset(args.data)
        jobs = jobs_for(dataset, shlex.split(args.flags), args.folds, args.seed, args.out)
        done = run_all(jobs, args.data, parallel=args.parallel, minutes=args.minutes, watch_every=10**9)
        if not done:
            raise DatasetError(f"none of {len(jobs)} runs is done: run the same command again")
        summary = summarise([scores(job, dataset) for job in done]) | {"runs": len(done), "of": len(jobs)}
    except (DatasetError, ModelFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{summary['runs']} of {summary['of']} runs, AUROC {summary['auroc']:.3f}")
    print(
        f"refused: {summary['known_refused']:.1%} of known, {summary['unknown_refused']:.1%} of unknown clips"
    )
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A finished run -> the weights that are shipped: `python -m training.release`.

Weights are stored in half precision, and measured as stored, by the code that serves.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from audiocnn import checkpoint
from audiocnn.errors import DatasetError, ModelFileError
from training import card
from training.data import parse_folds
from training.evaluate import evaluate, print_report


def release(run: Path, data: Path, folds: Sequence[int], out: Path, *, pool: Path | None = None) -> None:
    """Write `out/`: weights, `config.json`, `metrics.json`, `MODEL_CARD.md`. Prints the accuracy of both
    precisions.

    `pool` is the JSON of `training.pool` over the cross-validation of the same recipe: its temperature and
    threshold for unknown sounds go into the configuration. Raises `DatasetError` or `ModelFileError`.
    """
    config, log_mel, model = checkpoint.load(run)
    if pool:
        fitted = json.loads(pool.read_text(encoding="utf-8"))
        config = replace(
            config, temperature=fitted["temperature"], unknown_threshold=fitted["unknown_threshold"]
        )
    full = evaluate(run, data, folds)
    checkpoint.save(out, config, log_mel, model, half=True)
    report = evaluate(out, data, folds, robust=True)
    print_report(report)
    print(f"accuracy of the float32 weights before: {full['accuracy']:.2%}")
    report |= {"accuracy_float32": full["accuracy"], "training": config.provenance}
    (out / "metrics.json").write_text(json.dumps(report) + "\n", encoding="utf-8")
    (out / "MODEL_CARD.md").write_text(card.render(report, config), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m training.release", description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="folder that training.train wrote")
    parser.add_argument("--data", type=Path, required=True, help="dataset with the held-out folds")
    parser.add_argument("--folds", type=parse_folds, required=True, help="held-out folds to measure on")
    parser.add_argument("--pool", type=Path, help="JSON of training.pool: temperature and threshold")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/esc50"), help="(%(default)s)")
    args = parser.parse_args(arguments)
    try:
        release(args.run, args.data, args.folds, args.out, pool=args.pool)
    except (DatasetError, ModelFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

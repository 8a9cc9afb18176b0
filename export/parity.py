"""Compare all exported files with PyTorch and write the parity report.

The signals are real clips if there are any, synthetic sounds and edge cases; with `--data` the accuracy of
every file is measured too, on folds that were not trained on. The report, `parity.json`, has the hashes of
the files and goes into the archive. The command fails if a file fails its gate; int8 that costs too much
accuracy is not served.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from audiocnn import command
from audiocnn.arrays import FloatArray
from audiocnn.command import parse_fold_model, parse_folds
from audiocnn.config import WEIGHTS, feature_map_names
from audiocnn.datasets import LabelledClip, read_dataset
from audiocnn.errors import DatasetError, ModelFileError
from audiocnn.files import sha256, write_text
from audiocnn.model import checkpoint
from audiocnn.model.engine import Graph, open_graph
from audiocnn.model.loading import PARITY_REPORT
from audiocnn.model.network import WithEmbedding
from audiocnn.model.torch_graphs import EagerGraph
from export import common, program, quantize, test_signals, waveform
from export.accuracy import INT8, Predictor, count_correct, int8_cost, log_mel_predictor, waveform_predictor
from export.common import NAME, TOLERANCE

WAVEFORM_TOLERANCE = 1e-2  # of probabilities: the logarithm amplifies rounding in quiet bands
CLEAR_MARGIN = 1e-3  # between the two largest probabilities: above it the waveform file must agree
INT8_POINTS = 0.5  # percentage points of accuracy that int8 may cost


class Model:
    """A checkpoint and its exports, each as a function from waveform to probabilities."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder, self.store = folder, store
        self.config, self.log_mel, _ = checkpoint.load(folder)
        self.reference = EagerGraph(folder, "cpu")

    def graph(self, name: str) -> Graph:
        """The graph of a file in the store. Raises `ModelFileError` if it is of another checkpoint."""
        path = self.store / name
        if not path.is_file():
            raise ModelFileError(f"{path} is missing: run `make -B export`")
        graph = program.ExportedProgramGraph(path) if path.suffix == ".pt2" else open_graph(path)
        if graph.metadata != self.reference.metadata:
            raise ModelFileError(f"{path} is of another checkpoint than {self.folder}: export again")
        return graph

    def predictors(self) -> dict[str, Predictor]:
        """PyTorch first, then every file that exists, by name."""
        names = [name for name in (f"{NAME}.pt", f"{NAME}.onnx", INT8) if (self.store / name).is_file()]
        graphs = {"pytorch": self.reference} | {name: self.graph(name) for name in names}
        result = {name: log_mel_predictor(graph, self.log_mel, self.config) for name, graph in graphs.items()}
        result[waveform.FILE] = waveform_predictor(self.store / waveform.FILE, self.config)
        return result


def compare(model: Model) -> dict[str, Any]:
    """Every file against PyTorch on the test signals, a row for each.

    `largest_difference` is relative for float32 graphs (see `common.largest_difference`) and absolute, of
    probabilities, for the other files; these have `top1_agreement` (0 to 1) too.
    """
    config = model.config.frontend
    clips = test_signals.waveforms(config) + test_signals.edge_cases(config)
    rows = _compare_graphs(model, test_signals.log_mels(model.log_mel, clips))
    predictors = model.predictors()
    expected = np.stack([predictors["pytorch"](clip) for clip in clips])
    for name in (INT8, waveform.FILE):
        if name in predictors:
            rows[name] = _differences(np.stack([predictors[name](clip) for clip in clips]), expected)
    row = rows[waveform.FILE]
    row["passes"] = row["largest_difference"] <= WAVEFORM_TOLERANCE and row["clear_disagreements"] == 0
    return rows


def _compare_graphs(model: Model, log_mels: FloatArray) -> dict[str, Any]:
    served = list(WithEmbedding.output_names)
    every = [*served, "evidence", *feature_map_names(model.config.model)]
    rows: dict[str, Any] = {}
    for suffix in (".pt", ".pt2", ".onnx"):
        for name, outputs in ((NAME + suffix, served), (f"{NAME}-maps{suffix}", every)):
            worst = common.largest_difference(model.graph(name), model.reference, log_mels, outputs)
            rows[name] = {"largest_difference": worst, "passes": worst <= TOLERANCE}
    return rows


def _differences(probs: FloatArray, expected: FloatArray) -> dict[str, Any]:
    top = np.sort(expected, axis=1)
    differs = probs.argmax(axis=1) != expected.argmax(axis=1)
    return {
        "largest_difference": float(np.abs(probs - expected).max()),
        "top1_agreement": float(1 - differs.mean()),
        "clear_disagreements": int((differs & (top[:, -1] - top[:, -2] > CLEAR_MARGIN)).sum()),
    }


def build_report(model: Model, labelled: Sequence[LabelledClip]) -> dict[str, Any]:
    """The parity report: differences and hash of every file, the cost of int8, and the file to serve."""
    files = compare(model)
    for name in files:
        files[name]["sha256"] = sha256(model.store / name)
    report: dict[str, Any] = {"checkpoint": sha256(model.folder / WEIGHTS), "files": files}
    if INT8 in files:
        cost = quantize.read_calibration(model.folder).get("accuracy")
        report["int8_accuracy"] = cost
        files[INT8]["passes"] = bool(cost) and cost["points_lost"] <= INT8_POINTS  # type: ignore[index]
    report["serves"] = INT8 if files.get(INT8, {}).get("passes") else f"{NAME}.onnx"
    if labelled:
        correct = count_correct(model.predictors(), model.config, labelled)
        report["accuracy"] = {name: count / len(labelled) for name, count in correct.items()}
        report["num_clips"] = len(labelled)
    return report


def print_report(report: dict[str, Any]) -> None:
    """Print the report as a table."""
    table = Table(Column("file", no_wrap=True), "largest difference", "top class agrees", "accuracy", "gate")
    accuracy = report.get("accuracy", {})
    for name, row in report["files"].items():
        agrees = f"{row['top1_agreement']:.2%}" if "top1_agreement" in row else ""
        share = f"{accuracy[name]:.2%}" if name in accuracy else ""
        gate = "passes" if row["passes"] else "FAILS"
        table.add_row(name, f"{row['largest_difference']:.1e}", agrees, share, gate)
    Console().print(table)
    if cost := report.get("int8_accuracy"):
        print(
            f"int8 on {cost['num_clips']} out-of-fold clips: {cost['int8']:.2%}, float32 "
            f"{cost['float32']:.2%}: {cost['points_lost']:.2f} percentage points lost (at most {INT8_POINTS})"
        )
    elif INT8 in report["files"] and report["serves"] != INT8:
        print("the accuracy cost of int8 was not measured (--fold-model RUN=FOLDS): float32 is served")
    print(f"served: {report['serves']}")


def read_report(store: Path) -> dict[str, Any]:
    """The parity report of a store.

    Raises `ModelFileError` if there is none, a file has changed since, or a gate failed.
    """
    try:
        report: dict[str, Any] = json.loads((store / PARITY_REPORT).read_text(encoding="utf-8"))
        changed = [name for name, row in report["files"].items() if sha256(store / name) != row["sha256"]]
    except (OSError, ValueError, KeyError) as error:
        raise ModelFileError(
            f"{store} has no usable {PARITY_REPORT}: run `python -m export.parity`"
        ) from error
    if changed:
        raise ModelFileError(f"{', '.join(changed)}: changed since {PARITY_REPORT} was written; run it again")
    check_gates(report)
    return report


def check_gates(report: dict[str, Any]) -> None:
    """Raise `ModelFileError` naming the files that failed their gate; int8 may fail, and is not served."""
    failed = [name for name, row in report["files"].items() if not row["passes"] and name != INT8]
    if failed:
        raise ModelFileError(f"{', '.join(failed)}: not what PyTorch computes, see above; export again")


def _options(parser: argparse.ArgumentParser) -> None:
    common.add_folders(parser, "checkpoint", "store")
    parser.add_argument("--data", type=Path, metavar="DATASET", help="measure accuracy on it (not measured)")
    parser.add_argument(
        "--folds", type=parse_folds, help="folds of --data to measure on: 4 (all that were not trained on)"
    )
    parser.add_argument(
        "--fold-model",
        type=parse_fold_model,
        action="append",
        metavar="RUN=FOLDS",
        help="a cross-validation run and folds that it was not trained on: measure the accuracy cost of int8 "
        "and keep it in the checkpoint; once per run, needs --data (not measured)",
    )


@command.entry_point(_options, "--checkpoint runs/mine --data data/ESC-50 --fold-model runs/mine=4")
def main(args: argparse.Namespace) -> None:
    """Compare, write and print the report. Raises `ModelFileError` if a gate fails."""
    if args.fold_model and not args.data:
        raise DatasetError("--fold-model needs --data")
    if args.fold_model:
        quantize.record_accuracy(args.checkpoint, int8_cost(args.fold_model, args.data))
    model = Model(args.checkpoint, args.store)
    report = build_report(model, _labelled(model, args.data, args.folds))
    write_text(args.store / PARITY_REPORT, json.dumps(report, indent=1) + "\n")
    print_report(report)
    print(json.dumps(report))
    check_gates(report)


def _labelled(model: Model, data: Path | None, folds: list[int] | None) -> list[LabelledClip]:
    if data is None:
        return []
    dataset = read_dataset(data)
    seen = set(model.config.provenance.get("train_folds", []))
    wanted = folds or {clip.fold for clip in dataset.clips} - seen
    return dataset.folds(wanted) if wanted else []


if __name__ == "__main__":
    sys.exit(main())

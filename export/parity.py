"""Do all exported files compute what PyTorch computes? `python -m export.parity`.

Compares the checkpoint with every file in the model store, on real clips if there are any, synthetic
sounds, and awkward lengths; with `--data` also by their accuracy on folds that were not trained on. The
answer, with the hashes of the files, is `parity.json`: the certificate that goes into the archive. A
file whose gate fails makes the command fail; int8 that costs too much accuracy is not served.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from rich.console import Console
from rich.table import Column, Table
from tqdm import tqdm

from audiocnn import audio
from audiocnn.audio import windows
from audiocnn.classifier import softmax
from audiocnn.config import Config, feature_map_names
from audiocnn.datasets import LabelledClip, read_dataset
from audiocnn.errors import DatasetError, ModelFileError
from audiocnn.files import sha256
from audiocnn.model import checkpoint
from audiocnn.model.engine import INT8 as INT8_SUFFIX
from audiocnn.model.engine import EagerGraph, Graph, open_graph
from audiocnn.model.frontend import LogMel
from audiocnn.model.loading import CERTIFICATE
from audiocnn.model.network import WithEmbedding
from export import common, onnx, quantize, test_signals, waveform
from export.common import NAME, TOLERANCE

FloatArray = npt.NDArray[np.float32]
Answer = Callable[[FloatArray], FloatArray]  # waveform (n,) -> probs (num_classes,)


WAVEFORM_TOLERANCE = 1e-2  # of probabilities: the logarithm magnifies rounding in quiet bands
CLEAR_MARGIN = 1e-3  # between the two likeliest classes: above it the waveform file must agree
INT8_POINTS = 0.5  # of accuracy in percent: what int8 may cost
INT8 = f"{NAME}{INT8_SUFFIX}.onnx"


class Model:
    """The checkpoint, and each of its exports as a function from waveform to probabilities."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder, self.store = folder, store
        self.config, self.log_mel, _ = checkpoint.load(folder)
        self.reference = EagerGraph(folder, "cpu")

    def graph(self, name: str) -> Graph:
        """The graph in a file of the store; `ModelFileError` if it is of another model."""
        graph = open_graph(self.store / name)
        if graph.metadata != self.reference.metadata:
            raise ModelFileError(
                f"{self.store / name} is of another checkpoint than {self.folder}: export again"
            )
        return graph

    def answers(self) -> dict[str, Answer]:
        """PyTorch first, then every file that there is."""
        names = [name for name in (f"{NAME}.pt", f"{NAME}.onnx", INT8) if (self.store / name).is_file()]
        graphs = {"pytorch": self.reference} | {name: self.graph(name) for name in names}
        result = {name: _by_windows(graph, self.log_mel, self.config) for name, graph in graphs.items()}
        result[waveform.FILE] = _by_waveform(self.store / waveform.FILE, self.config)
        return result


def _by_windows(graph: Graph, log_mel: LogMel, config: Config) -> Answer:
    @torch.inference_mode()
    def answer(samples: FloatArray) -> FloatArray:
        log_mels = log_mel(torch.from_numpy(windows.cut(samples, config.frontend))).numpy()
        return windows.pool(softmax(graph.run(log_mels, ["logits"])[0] / config.temperature))

    return answer


def _by_waveform(path: Path, config: Config) -> Answer:
    """Through the file that takes waveforms: short clips as they are, longer ones window by window."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def answer(samples: FloatArray) -> FloatArray:
        is_one = len(samples) <= config.frontend.window_samples + 1
        batch = samples[None] if is_one else windows.cut(samples, config.frontend)
        return windows.pool(session.run(["probs"], {"waveform": batch})[0])

    return answer


def compare(model: Model) -> dict[str, Any]:
    """Every file against PyTorch: differences over the probes, agreement of the top class."""
    config = model.config.frontend
    clips = test_signals.waveforms(config) + test_signals.awkward(config)
    log_mels = test_signals.log_mels(model.log_mel, clips)
    served = list(WithEmbedding.output_names)
    every = [*served, "evidence", *feature_map_names(model.config.model)]
    rows: dict[str, Any] = {}
    for suffix in (".pt", ".onnx"):
        for name, outputs in ((NAME + suffix, served), (f"{NAME}-maps{suffix}", every)):
            worst = common.largest_difference(model.graph(name), model.reference, log_mels, outputs)
            rows[name] = {"largest_difference": worst, "passes": worst <= TOLERANCE}
    answers = model.answers()
    expected = np.stack([answers["pytorch"](clip) for clip in clips])
    for name in (INT8, waveform.FILE):
        if name in answers:
            rows[name] = _differences(np.stack([answers[name](clip) for clip in clips]), expected)
    wave = rows[waveform.FILE]
    wave["passes"] = wave["largest_difference"] <= WAVEFORM_TOLERANCE and wave["clear_disagreements"] == 0
    return rows


def _differences(probs: FloatArray, expected: FloatArray) -> dict[str, Any]:
    top = np.sort(expected, axis=1)
    differs = probs.argmax(axis=1) != expected.argmax(axis=1)
    return {
        "largest_difference": float(np.abs(probs - expected).max()),
        "top1_agreement": float(1 - differs.mean()),
        "clear_disagreements": int((differs & (top[:, -1] - top[:, -2] > CLEAR_MARGIN)).sum()),
    }


def accuracies(answers: dict[str, Answer], config: Config, clips: Sequence[LabelledClip]) -> dict[str, int]:
    """How many of the clips each of the answers names rightly."""
    right = dict.fromkeys(answers, 0)
    for clip in tqdm(clips, desc="measuring", unit="clip", leave=False, disable=None):
        decoded = audio.decode(clip.path.read_bytes(), sample_rate=config.frontend.sample_rate)
        for name, answer in answers.items():
            right[name] += config.class_names[int(answer(decoded.waveform).argmax())] == clip.label
    return right


def int8_cost(twins: Sequence[tuple[Path, Sequence[int]]], data: Path) -> dict[str, Any]:
    """What int8 costs, over the pooled answers of cross-validation runs to folds that they never saw.

    Every run is exported, calibrated on clips that it was trained on, and quantised, as a release is.
    Raises `DatasetError` for a run that was trained on a fold that it is to answer.
    """
    dataset = read_dataset(data)
    total = {"num_clips": 0, "float32": 0, "int8": 0}
    for run, folds in twins:
        config, log_mel, _ = checkpoint.load(run)
        if seen := set(folds) & set(config.provenance.get("train_folds", [])):
            raise DatasetError(f"{run} was trained on fold {sorted(seen)}: its answers there prove nothing")
        with tempfile.TemporaryDirectory() as temporary:
            store, copy = Path(temporary, "store"), Path(temporary, "run")
            copy.mkdir()
            for name in (checkpoint.CONFIG, checkpoint.WEIGHTS):
                (copy / name).symlink_to((run / name).resolve())
            common.export(copy, store, ".onnx", onnx.write, quiet=True)
            source = store / f"{NAME}.onnx"
            quantize.calibrate(copy, source, quantize.training_clips(copy, data))
            quantize.quantize(copy, source, store / INT8)
            graphs = {"float32": open_graph(source), "int8": open_graph(store / INT8)}
            answers = {name: _by_windows(graph, log_mel, config) for name, graph in graphs.items()}
            clips = dataset.folds(folds)
            for name, right in accuracies(answers, config, clips).items():
                total[name] += right
            total["num_clips"] += len(clips)
    count = total["num_clips"]
    return {
        "runs": [f"{run.name}={','.join(map(str, folds))}" for run, folds in twins],
        "num_clips": count,
        "float32": total["float32"] / count,
        "int8": total["int8"] / count,
        "points_lost": 100 * (total["float32"] - total["int8"]) / count,
    }


def certify(model: Model, labelled: Sequence[LabelledClip]) -> dict[str, Any]:
    """The certificate: what each file differs by, what it costs, and which of them is to be served."""
    files = compare(model)
    for name in files:
        files[name]["sha256"] = sha256(model.store / name)
    result: dict[str, Any] = {"checkpoint": sha256(model.folder / checkpoint.WEIGHTS), "files": files}
    if INT8 in files:
        cost = quantize.read_calibration(model.folder).get("accuracy")
        result["int8_accuracy"] = cost
        files[INT8]["passes"] = bool(cost) and cost["points_lost"] <= INT8_POINTS  # type: ignore[index]
    result["serves"] = INT8 if files.get(INT8, {}).get("passes") else f"{NAME}.onnx"
    if labelled:
        right = accuracies(model.answers(), model.config, labelled)
        result["accuracy"] = {name: hits / len(labelled) for name, hits in right.items()}
        result["num_clips"] = len(labelled)
    return result


def print_certificate(certificate: dict[str, Any]) -> None:
    """For people; the caller prints the JSON."""
    table = Table(Column("file", no_wrap=True), "largest difference", "top class agrees", "accuracy", "gate")
    accuracy = certificate.get("accuracy", {})
    for name, row in certificate["files"].items():
        agrees = f"{row['top1_agreement']:.2%}" if "top1_agreement" in row else ""
        share = f"{accuracy[name]:.2%}" if name in accuracy else ""
        gate = "passes" if row["passes"] else "FAILS"
        table.add_row(name, f"{row['largest_difference']:.1e}", agrees, share, gate)
    Console().print(table)
    if cost := certificate.get("int8_accuracy"):
        print(
            f"int8 over {cost['num_clips']} out-of-fold clips: {cost['int8']:.2%}, float32 "
            f"{cost['float32']:.2%}: {cost['points_lost']:.2f} points lost (at most {INT8_POINTS})"
        )
    elif INT8 in certificate["files"]:
        print("what int8 costs was not measured (--twin RUN=FOLDS): float32 is served")
    print(f"served: {certificate['serves']}")


def read_certificate(store: Path) -> dict[str, Any]:
    """The certificate of a store whose files are still those that it is about, and all passed.

    Raises `ModelFileError` otherwise.
    """
    try:
        certificate: dict[str, Any] = json.loads((store / CERTIFICATE).read_text(encoding="utf-8"))
        changed = [
            name for name, row in certificate["files"].items() if sha256(store / name) != row["sha256"]
        ]
    except (OSError, ValueError, KeyError) as error:
        raise ModelFileError(f"{store} has no usable {CERTIFICATE}: run `python -m export.parity`") from error
    if changed:
        raise ModelFileError(f"{', '.join(changed)}: not what {CERTIFICATE} is about; run it again")
    must_pass(certificate)
    return certificate


def must_pass(certificate: dict[str, Any]) -> None:
    """Raise `ModelFileError` naming the files whose gate fails; a costly int8 is no failure, only unused."""
    failed = [name for name, row in certificate["files"].items() if not row["passes"] and name != INT8]
    if failed:
        raise ModelFileError(f"{', '.join(failed)}: not what PyTorch computes, see above; export again")


def parse_twin(text: str) -> tuple[Path, list[int]]:
    """`runs/a=1,2` -> the folder and its folds; for argparse."""
    path, _, folds = text.rpartition("=")
    if not path or not all(fold.isdigit() for fold in folds.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not RUN=FOLDS, as in runs/a=1,2")
    return Path(path), [int(fold) for fold in folds.split(",")]


def main() -> int:
    """Write the certificate; 1 if a gate fails."""
    parser = argparse.ArgumentParser(prog="python -m export.parity", description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/esc50"), help="(%(default)s)")
    parser.add_argument("--store", type=Path, default=Path("model_store"), help="(%(default)s)")
    parser.add_argument("--data", type=Path, help="labelled clips: accuracy of every file")
    parser.add_argument("--folds", help="of --data, not trained on: 4 (default: all that were not)")
    parser.add_argument(
        "--twin",
        type=parse_twin,
        action="append",
        metavar="RUN=FOLDS",
        help="a cross-validation run and its unseen folds: measure what int8 costs, and keep it in the "
        "checkpoint; once for every run (needs --data)",
    )
    args = parser.parse_args()
    if args.twin and not args.data:
        parser.error("--twin needs --data")
    try:
        if args.twin:
            quantize.record_accuracy(args.checkpoint, int8_cost(args.twin, args.data))
        model = Model(args.checkpoint, args.store)
        certificate = certify(model, _labelled(model, args.data, args.folds))
        (args.store / CERTIFICATE).write_text(json.dumps(certificate, indent=1) + "\n", encoding="utf-8")
        print_certificate(certificate)
        print(json.dumps(certificate))
        must_pass(certificate)
    except (DatasetError, ModelFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _labelled(model: Model, data: Path | None, folds: str | None) -> list[LabelledClip]:
    if data is None:
        return []
    dataset = read_dataset(data)
    seen = set(model.config.provenance.get("train_folds", []))
    wanted = {int(fold) for fold in folds.split(",")} if folds else {c.fold for c in dataset.clips} - seen
    return dataset.folds(wanted) if wanted else []


if __name__ == "__main__":
    sys.exit(main())

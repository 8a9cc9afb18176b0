"""Accuracy of exported files on labelled clips, and what int8 costs of it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from audiocnn import audio
from audiocnn.arrays import FloatArray
from audiocnn.audio import windows
from audiocnn.command import FoldModel
from audiocnn.config import WEIGHTS, Config
from audiocnn.datasets import LabelledClip, read_dataset
from audiocnn.errors import DatasetError
from audiocnn.model import checkpoint
from audiocnn.model.engine import INT8 as INT8_SUFFIX
from audiocnn.model.engine import Graph, OnnxGraph, open_graph
from audiocnn.model.frontend import LogMel
from audiocnn.probabilities import probabilities
from export import common, onnx, quantize
from export.common import NAME

Predictor = Callable[[FloatArray], FloatArray]  # waveform (num_samples,) -> probs (num_classes,)

INT8 = f"{NAME}{INT8_SUFFIX}.onnx"


def log_mel_predictor(graph: Graph, log_mel: LogMel, config: Config) -> Predictor:
    """A graph that takes log-mels: all windows at once, then pooled."""

    @torch.inference_mode()
    def predict(samples: FloatArray) -> FloatArray:
        log_mels = log_mel(torch.from_numpy(windows.cut(samples, config.frontend))).numpy()
        return windows.pool(probabilities(graph.run(log_mels, ["logits"])[0], config))

    return predict


def waveform_predictor(path: Path, config: Config) -> Predictor:
    """The file that takes waveforms: one window or less at once, longer clips window by window."""
    graph = OnnxGraph(path, "cpu", None)

    def predict(samples: FloatArray) -> FloatArray:
        is_one = len(samples) <= config.frontend.window_samples + 1
        batch = samples[None] if is_one else windows.cut(samples, config.frontend)
        return windows.pool(graph.run(batch, ["probs"])[0])

    return predict


def count_correct(
    predictors: dict[str, Predictor], config: Config, clips: Sequence[LabelledClip]
) -> dict[str, int]:
    """How many of the clips each predictor classifies correctly."""
    correct = dict.fromkeys(predictors, 0)
    for clip in tqdm(clips, desc="measuring", unit="clip", leave=False, disable=None):
        decoded = audio.decode(clip.path.read_bytes(), sample_rate=config.frontend.sample_rate)
        for name, predict in predictors.items():
            correct[name] += config.class_names[int(predict(decoded.waveform).argmax())] == clip.label
    return correct


def int8_cost(runs: Sequence[FoldModel], data: Path) -> dict[str, Any]:
    """Accuracy of float32 and int8 over the pooled out-of-fold predictions of cross-validation runs.

    Every run is exported, calibrated on clips that it was trained on, and quantised, as a release is.
    `points_lost` are percentage points. Raises `DatasetError` for a run that was trained on its folds.
    """
    dataset = read_dataset(data)
    total: Counter[str] = Counter()
    for run, folds in runs:
        clips = dataset.folds(folds)
        total.update(_correct_by_precision(run, folds, clips, data) | {"num_clips": len(clips)})
    count = total["num_clips"]
    return {
        "runs": [f"{run.name}={','.join(map(str, folds))}" for run, folds in runs],
        "num_clips": count,
        "float32": total["float32"] / count,
        "int8": total["int8"] / count,
        "points_lost": 100 * (total["float32"] - total["int8"]) / count,
    }


def _correct_by_precision(
    run: Path, folds: Sequence[int], clips: Sequence[LabelledClip], data: Path
) -> dict[str, int]:
    """Correct predictions of a run, exported in `float32` and `int8`."""
    config, log_mel, _ = checkpoint.load(run)
    if seen := set(folds) & set(config.provenance.get("train_folds", [])):
        raise DatasetError(f"{run} was trained on fold {sorted(seen)}: name folds that it was not trained on")
    with tempfile.TemporaryDirectory() as temporary:
        store, copy = Path(temporary, "store"), Path(temporary, "run")
        copy.mkdir()
        for name in (checkpoint.CONFIG, WEIGHTS):
            (copy / name).symlink_to((run / name).resolve())
        source = store / f"{NAME}.onnx"
        common.export(copy, store, ".onnx", onnx.write, quiet=True)
        quantize.calibrate(copy, source, quantize.training_clips(copy, data))
        quantize.quantize(copy, source, store / INT8)
        graphs = {"float32": open_graph(source), "int8": open_graph(store / INT8)}
        predictors = {name: log_mel_predictor(graph, log_mel, config) for name, graph in graphs.items()}
        return count_correct(predictors, config, clips)

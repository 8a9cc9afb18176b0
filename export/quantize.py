"""Quantise the float32 ONNX file to int8, with ONNX Runtime's static quantisation.

Convolutions, additions and the operators between them run in int8 (`audiocnn.model.quantisation`). The stem
(first convolution to max-pool) and the head (from average pooling on) stay in float: an int8 stem costs a
percentage point of accuracy.

The ranges of the activations are measured on training clips (`--calibrate DATASET`) and kept in the
checkpoint as `calibration.json`: exporting a released checkpoint needs no clips.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from tqdm import tqdm

from audiocnn import audio, command
from audiocnn.arrays import FloatArray
from audiocnn.audio import windows
from audiocnn.config import WEIGHTS
from audiocnn.datasets import LabelledClip, read_dataset
from audiocnn.errors import DatasetError, ModelFileError
from audiocnn.files import replacing, sha256, write_text
from audiocnn.model import checkpoint
from audiocnn.model.engine import Engine
from audiocnn.model.quantisation import quantised
from export import common
from export.common import NAME

CALIBRATION = "calibration.json"
CLIPS = 200
QUANTISED = ["Conv", "Add", "Relu", "MaxPool"]
METHODS = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}


class LogMels(CalibrationDataReader):  # type: ignore[misc]
    """Yields the log-mel of the first window of every clip, with a progress bar."""

    def __init__(self, engine: Engine, clips: list[LabelledClip]) -> None:
        self._batches = self._read(engine, clips)

    def get_next(self) -> dict[str, FloatArray] | None:
        """The next input of the graph, `(1, 1, n_mels, num_frames)`, or None."""
        return next(self._batches, None)

    @staticmethod
    def _read(engine: Engine, clips: list[LabelledClip]) -> Iterator[dict[str, FloatArray]]:
        config = engine.config.frontend
        for clip in tqdm(clips, desc="calibrating", unit="clip", leave=False, disable=None):
            decoded = audio.decode(clip.path.read_bytes(), sample_rate=config.sample_rate)
            window = windows.cut(decoded.waveform, config)[0]
            yield {"log_mel": engine.prepare(window)[None]}


def training_clips(folder: Path, data: Path, count: int = CLIPS) -> list[LabelledClip]:
    """At most `count` clips that the checkpoint was trained on, spread evenly over the classes.

    Raises `DatasetError` if the dataset has none of the folds that the checkpoint names.
    """
    config, _, _ = checkpoint.load(folder)
    folds = config.provenance.get("train_folds", [])
    clips = [clip for clip in read_dataset(data).clips if clip.fold in folds]
    if not clips:
        raise DatasetError(f"{data} has no clip of the folds {folds} that {folder} was trained on")
    clips.sort(key=lambda clip: (clip.label, clip.path.name))
    return clips[:: max(1, len(clips) // count)][:count]


def calibrate(folder: Path, source: Path, clips: list[LabelledClip], method: str = "minmax") -> None:
    """Measure the range of every activation on the clips; writes `calibration.json` into the checkpoint."""
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(temporary, "ranges.json")
        _quantised(source, LogMels(Engine(source), clips), method, cache)
        ranges = json.loads(cache.read_text())
    weights = sha256(folder / WEIGHTS)
    _write(folder, {"weights": weights, "method": method, "num_clips": len(clips), "ranges": ranges})


def _write(folder: Path, document: dict[str, object]) -> None:
    write_text(folder / CALIBRATION, json.dumps(document) + "\n")


def read_calibration(folder: Path) -> dict[str, object]:
    """What `calibrate` wrote. Raises `ModelFileError` if there is none or it is of other weights."""
    try:
        document: dict[str, object] = json.loads((folder / CALIBRATION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(
            f"{folder} has no usable {CALIBRATION} ({error}): measure it with --calibrate DATASET"
        ) from error
    if document.get("weights") != sha256(folder / WEIGHTS):
        raise ModelFileError(f"{folder / CALIBRATION} is of other weights: measure it again with --calibrate")
    return document


def record_accuracy(folder: Path, accuracy: dict[str, object]) -> None:
    """Store the accuracy cost of int8 (`export.accuracy.int8_cost`) in `calibration.json`."""
    _write(folder, read_calibration(folder) | {"accuracy": accuracy})


def quantize(folder: Path, source: Path, out: Path) -> None:
    """Write the int8 version of the float32 graph `source`, with the ranges kept in the checkpoint."""
    document = read_calibration(folder)
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(temporary, "ranges.json")
        cache.write_text(json.dumps(document["ranges"]))
        proto = _quantised(source, None, str(document["method"]), cache)
    with replacing(out) as part:
        onnx.save(proto, part)


def _quantised(source: Path, reader: LogMels | None, method: str, ranges: Path) -> onnx.ModelProto:
    proto = onnx.load(source)
    return quantised(
        proto, reader, operators=QUANTISED, excluded=_stem(proto), method=METHODS[method], ranges=ranges
    )


def _stem(proto: onnx.ModelProto) -> list[str]:
    """Names of the nodes up to the max-pool."""
    nodes = list(proto.graph.node)
    last = next(number for number, node in enumerate(nodes) if node.op_type == "MaxPool")
    return [node.name for node in nodes[: last + 1]]


def _options(parser: argparse.ArgumentParser) -> None:
    common.add_folders(parser, "checkpoint", "store")
    add = parser.add_argument
    add("--calibrate", type=Path, metavar="DATASET", help="measure the ranges first (those kept are used)")
    add("--clips", type=command.count, default=CLIPS, metavar="N", help="clips to calibrate on (%(default)s)")
    add("--method", choices=METHODS, default="minmax", help="method of calibration (%(default)s)")


@command.entry_point(_options, "--checkpoint runs/mine --calibrate data/ESC-50")
def main(args: argparse.Namespace) -> None:
    """Calibrate if the command line asks for it, then quantise."""
    source, out = args.store / f"{NAME}.onnx", args.store / f"{NAME}-int8.onnx"
    if not source.is_file():
        raise ModelFileError(f"{source} is missing: build it with `make export`")
    if args.calibrate:
        clips = training_clips(args.checkpoint, args.calibrate, args.clips)
        calibrate(args.checkpoint, source, clips, args.method)
    quantize(args.checkpoint, source, out)
    print(common.described(out))


if __name__ == "__main__":
    sys.exit(main())

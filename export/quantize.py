"""ONNX float32 -> ONNX int8, by ONNX Runtime's static quantisation: `python -m export.quantize`.

Convolutions, additions and what lies between them run in 8 bits (QDQ, a scale per output channel); the
stem (the first convolution to the max-pool) and the head (from the average pooling on) stay in float:
7-bit weights in the stem cost a point of accuracy. The softmax was never in the graph. Weights
have 7 bits (`reduce_range`): with 8, sums of U8 x S8 products saturate on processors with AVX2 but
without VNNI, and a convolution silently returns something else.

The ranges of the activations are measured once, on training clips (`--calibrate DIR`), and kept in the
checkpoint as `calibration.json`: whoever exports a released checkpoint needs no clips.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from tqdm import tqdm

from audiocnn import audio
from audiocnn.audio import windows
from audiocnn.datasets import LabelledClip, read_dataset
from audiocnn.errors import DatasetError, ModelFileError
from audiocnn.files import sha256
from audiocnn.model import checkpoint
from audiocnn.model.engine import Engine
from export.common import NAME

FloatArray = npt.NDArray[np.float32]

CALIBRATION = "calibration.json"
CLIPS = 200
QUANTISED = ["Conv", "Add", "Relu", "MaxPool"]
METHODS = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}


class LogMels(CalibrationDataReader):  # type: ignore[misc]
    """Feeds the log-mel of the first window of every clip to the calibration, with a progress bar."""

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
            with torch.inference_mode():
                yield {"log_mel": engine.log_mel(torch.from_numpy(window[None])).numpy()}


def training_clips(folder: Path, data: Path, count: int = CLIPS) -> list[LabelledClip]:
    """`count` clips that the checkpoint was trained on, spread evenly over the classes.

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
        _quantise(source, Path(temporary, "int8.onnx"), cache, LogMels(Engine(source), clips), method)
        ranges = json.loads(cache.read_text())
    document: dict[str, object] = {
        "weights": sha256(folder / checkpoint.WEIGHTS),
        "method": method,
        "num_clips": len(clips),
        "ranges": ranges,
    }
    _write(folder, document)


def _write(folder: Path, document: dict[str, object]) -> None:
    part = folder / (CALIBRATION + ".part")
    part.write_text(json.dumps(document) + "\n", encoding="utf-8")
    os.replace(part, folder / CALIBRATION)


def read_calibration(folder: Path) -> dict[str, object]:
    """What `calibrate` wrote; raises `ModelFileError` if there is none or it is of other weights."""
    try:
        document: dict[str, object] = json.loads((folder / CALIBRATION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(
            f"{folder} has no usable {CALIBRATION} ({error}): measure it with --calibrate DATASET"
        ) from error
    if document.get("weights") != sha256(folder / checkpoint.WEIGHTS):
        raise ModelFileError(f"{folder / CALIBRATION} is of other weights: measure it again with --calibrate")
    return document


def record_accuracy(folder: Path, accuracy: dict[str, object]) -> None:
    """Keep in `calibration.json` what int8 costs, as measured by `export.parity --twin`."""
    document = read_calibration(folder) | {"accuracy": accuracy}
    _write(folder, document)


def quantize(folder: Path, source: Path, out: Path) -> None:
    """Write the int8 twin of the float32 graph `source`, with the ranges that the checkpoint keeps."""
    document = read_calibration(folder)
    with tempfile.TemporaryDirectory() as temporary:
        cache, built = Path(temporary, "ranges.json"), Path(temporary, "int8.onnx")
        cache.write_text(json.dumps(document["ranges"]))
        _quantise(source, built, cache, None, str(document["method"]))
        proto = onnx.load(built)
    metadata = {prop.key: prop.value for prop in onnx.load(source, load_external_data=False).metadata_props}
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto)
    part = out.with_suffix(".part.onnx")
    onnx.save(proto, part)
    os.replace(part, out)


def _quantise(
    source: Path, out: Path, cache: Path, reader: CalibrationDataReader | None, method: str
) -> None:
    proto = onnx.shape_inference.infer_shapes(onnx.load(source))
    onnx.helper.set_model_props(proto, {"onnx.quant.pre_process": "onnxruntime.quant"})  # shapes: all it asks
    quantize_static(
        proto,
        out,
        reader,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=QUANTISED,
        nodes_to_exclude=_stem(proto),
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=METHODS[method],
        calibration_cache_path=cache,
    )


def _stem(proto: onnx.ModelProto) -> list[str]:
    """Names of the nodes up to the max-pool."""
    nodes = list(proto.graph.node)
    last = next(number for number, node in enumerate(nodes) if node.op_type == "MaxPool")
    return [node.name for node in nodes[: last + 1]]


def main() -> int:
    """Calibrate if asked to, and quantise."""
    parser = argparse.ArgumentParser(prog="python -m export.quantize", description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/esc50"), help="(%(default)s)")
    parser.add_argument("--store", type=Path, default=Path("model_store"), help="(%(default)s)")
    parser.add_argument("--calibrate", type=Path, metavar="DATASET", help="measure the ranges again, first")
    parser.add_argument("--clips", type=int, default=CLIPS, help="to calibrate on (%(default)s)")
    parser.add_argument("--method", choices=METHODS, default="minmax", help="of calibration (%(default)s)")
    args = parser.parse_args()
    source, out = args.store / f"{NAME}.onnx", args.store / f"{NAME}-int8.onnx"
    try:
        if not source.is_file():
            raise ModelFileError(f"{source} is missing: build it with `make export`")
        if args.calibrate:
            clips = training_clips(args.checkpoint, args.calibrate, args.clips)
            calibrate(args.checkpoint, source, clips, args.method)
        quantize(args.checkpoint, source, out)
    except (DatasetError, ModelFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out}  {out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

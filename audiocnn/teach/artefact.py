"""The folder of a taught model: one ONNX file from sound to logits, configuration, features, card, notice.

It is served like a checkpoint: `audiocnn classify --model FOLDER`, `make serve CHECKPOINT=FOLDER`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.utils import Extractor

from audiocnn.arrays import FloatArray
from audiocnn.config import Config
from audiocnn.errors import ModelFileError
from audiocnn.files import replacing, write_text
from audiocnn.model.engine import CONFIG_KEY, FRONTEND_KEY, INT8, Engine
from audiocnn.model.loading import PARITY_REPORT, REFERENCE, synthetic_logits
from audiocnn.teach.fit import TaughtHead

MODEL = "audiocnn.onnx"
MODEL_INT8 = f"audiocnn{INT8}.onnx"
PARITY_TOLERANCE = 0.02  # features are kept with 16 bits
CONFIG, FEATURES, CARD, NOTICE = "config.json", "features.npz", "README.md", "NOTICE"


def model_name(backbone: Path) -> str:
    """The name of the ONNX file: an int8 backbone makes an int8 model."""
    return MODEL_INT8 if backbone.stem.endswith(INT8) else MODEL


def is_taught(folder: Path) -> bool:
    """Whether a folder is the artefact of `audiocnn teach`."""
    return (folder / FEATURES).is_file() and (folder / PARITY_REPORT).is_file()


def write_model(backbone: Path, head: TaughtHead, metadata: dict[str, str], out: Path) -> None:
    """Write the graph of a backbone with `TaughtHead.logits`: outputs `logits` and `embedding`."""
    whole = onnx.load(backbone)
    proto = Extractor(whole).extract_model([whole.graph.input[0].name], ["embedding"])
    num_classes, size = len(head.class_names), head.weight.shape[1]
    tensors = {
        "head.weight": head.weight,
        "head.bias": head.bias,
        "head.split": np.array([num_classes, len(head.bias) - num_classes]),
        "head.axes": np.array([1]),
        "head.temperature": np.array(head.temperature, np.float32),
    }
    proto.graph.initializer.extend(numpy_helper.from_array(x, name) for name, x in tensors.items())
    names = iter(tensors)
    node = helper.make_node
    proto.graph.node.extend(
        [
            node("Gemm", ["embedding", next(names), next(names)], ["head.scores"], transB=1),
            node("Split", ["head.scores", next(names)], ["head.classes", "head.background"], axis=1),
            node("ReduceLogSumExp", ["head.background", next(names)], ["head.sum"], keepdims=1),
            node("Softplus", ["head.sum"], ["head.none"]),
            node("Sub", ["head.classes", "head.none"], ["head.relative"]),
            node("Div", ["head.relative", next(names)], ["logits"]),
        ]
    )
    del proto.graph.output[:]
    for name, width in (("logits", num_classes), ("embedding", size)):
        shape = ["batch", width]
        proto.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto)
    with replacing(out) as part:
        onnx.save(proto, part)


def metadata_of(config: Config, backbone_metadata: dict[str, str]) -> dict[str, str]:
    """What the file says about itself: our configuration, and the stored front end of the backbone if any."""
    frontend = {key: text for key, text in backbone_metadata.items() if key == FRONTEND_KEY}
    return {CONFIG_KEY: config.to_json(), **frontend}


def write_reports(folder: Path, name: str, serves: str, extra: dict[str, Any]) -> None:
    """Write which file answers, and the logits of the synthetic sounds that the file `name` has to return
    anywhere."""
    engine = Engine(folder / name)
    _write_json(folder / REFERENCE, {"logits": synthetic_logits(engine).round(4).tolist()})
    _write_json(folder / PARITY_REPORT, {"serves": serves, **extra})


def check_parity(path: Path, windows: FloatArray, expected: FloatArray) -> float:
    """Largest difference of the logits on windows `(n, window_samples)`, as a share of the largest logit.

    Raises `ModelFileError` if it is above `PARITY_TOLERANCE`.
    """
    logits = Engine(path).run_windows(windows)["logits"]
    difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
    if not difference <= PARITY_TOLERANCE:
        raise ModelFileError(
            f"{path} differs from its training features by {difference:.1%}: not usable here"
        )
    return difference


def _write_json(path: Path, document: dict[str, Any]) -> None:
    write_text(path, json.dumps(document) + "\n")


def read_config(folder: Path) -> Config:
    """The configuration of a taught model. Raises `ModelFileError` for another folder."""
    if not is_taught(folder):
        raise ModelFileError(f"{folder} is not the folder of a taught model: there is nothing to add to")
    return Config.from_json((folder / CONFIG).read_text(encoding="utf-8"))

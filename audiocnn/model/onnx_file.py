"""Write ONNX files with PyTorch's dynamo exporter; needs the packages `onnx` and `onnxscript`."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn


def save(
    module: nn.Module,
    example: dict[str, Tensor],
    dynamic_shapes: dict[str, dict[int, Any]],
    outputs: list[str],
    metadata: dict[str, str],
    path: Path,
    *,
    optimize: bool = True,
) -> None:
    """Write one self-contained, checked file with our metadata; `example` are inputs by name.

    `optimize` lets onnxscript rewrite the graph; it removes the addition of 1e-10.
    """
    program = _export(module, example, dynamic_shapes, outputs, optimize=optimize)
    proto = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # stack traces with paths of this machine
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def _export(
    module: nn.Module,
    example: dict[str, Tensor],
    dynamic_shapes: dict[str, dict[int, Any]],
    outputs: list[str],
    *,
    optimize: bool,
) -> torch.onnx.ONNXProgram:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # warns that torchvision is missing
    with warnings.catch_warnings():
        # torch.export copies its own deprecated LeafSpec.
        warnings.filterwarnings("ignore", message=r".*LeafSpec", category=FutureWarning)
        program = torch.onnx.export(
            module,
            tuple(example.values()),
            dynamo=True,
            input_names=list(example),
            output_names=outputs,
            dynamic_shapes=dynamic_shapes,
            optimize=optimize,
            verbose=False,
        )
    assert program is not None
    return program

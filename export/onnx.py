"""Checkpoint -> ONNX, by PyTorch's dynamo exporter: `python -m export.onnx`."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from export.common import command


def write(
    module: nn.Module, example: Tensor, outputs: list[str], metadata: dict[str, str], path: Path
) -> None:
    """The network's graph: `log_mel`, with any batch size, -> the named outputs."""
    dynamic = {"log_mel": {0: torch.export.Dim("batch")}}
    save(module, {"log_mel": example}, dynamic, outputs, metadata, path)


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
    """One self-contained, checked file with our metadata in it; `example` is the input by its name.

    `optimize` lets onnxscript rewrite the graph. It takes adding 1e-10 for adding nothing.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which we never use
    with warnings.catch_warnings():
        # torch.export copies its own, meanwhile deprecated, LeafSpec.
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
    proto = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # stack traces with the paths of the machine that exported
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


if __name__ == "__main__":
    sys.exit(command(".onnx", write, __doc__, "onnx"))

"""Checkpoint -> ONNX, by PyTorch's dynamo exporter: `python -m export.onnx`."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from export.common import command


def write(
    module: nn.Module, example: Tensor, outputs: list[str], metadata: dict[str, str], path: Path
) -> None:
    """One self-contained file with a dynamic batch and our metadata in it."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which we never use
    with warnings.catch_warnings():
        # torch.export copies its own, meanwhile deprecated, LeafSpec.
        warnings.filterwarnings("ignore", message=r".*LeafSpec", category=FutureWarning)
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            input_names=["log_mel"],
            output_names=outputs,
            dynamic_shapes={"log_mel": {0: torch.export.Dim("batch")}},
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

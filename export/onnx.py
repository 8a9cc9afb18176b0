"""Export a checkpoint to ONNX, with PyTorch's dynamo exporter."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from audiocnn import command
from audiocnn.model.onnx_file import save
from export import common


def write(
    module: nn.Module, example: Tensor, outputs: list[str], metadata: dict[str, str], path: Path
) -> None:
    """Write the graph of the network: `log_mel`, any batch size -> the named outputs."""
    dynamic = {"log_mel": {0: torch.export.Dim("batch")}}
    save(module, {"log_mel": example}, dynamic, outputs, metadata, path)


@command.entry_point(common.folders("checkpoint", "out"), common.EXAMPLE)
def main(args: argparse.Namespace) -> None:
    """Export the checkpoint of the command line."""
    common.export(args.checkpoint, args.out, ".onnx", write)


if __name__ == "__main__":
    sys.exit(main())

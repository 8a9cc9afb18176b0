"""Export a checkpoint to ONNX, with PyTorch's dynamo exporter."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from audiocnn.model.onnx_file import save
from export.common import exporter


def write(
    module: nn.Module, example: Tensor, outputs: list[str], metadata: dict[str, str], path: Path
) -> None:
    """Write the graph of the network: `log_mel`, any batch size -> the named outputs."""
    dynamic = {"log_mel": {0: torch.export.Dim("batch")}}
    save(module, {"log_mel": example}, dynamic, outputs, metadata, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return exporter("export.onnx", __doc__, ".onnx", write, arguments)


if __name__ == "__main__":
    sys.exit(main())

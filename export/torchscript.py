"""Export a checkpoint to TorchScript, traced and frozen."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from audiocnn import command
from export import common


def write(
    module: nn.Module, example: Tensor, outputs: list[str], metadata: dict[str, str], path: Path
) -> None:
    """Trace with a variable batch size, fold constants, and save with our metadata as extra files."""
    with warnings.catch_warnings():
        # torch.jit is deprecated since torch 2.10; TorchServe still loads it.
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
        traced = torch.jit.trace(module, example)  # type: ignore[no-untyped-call]
        frozen = torch.jit.freeze(traced)
        files = {**metadata, "output_names": json.dumps(outputs)}
        torch.jit.save(frozen, str(path), _extra_files=files)


@command.entry_point(common.folders("checkpoint", "out"), common.EXAMPLE)
def main(args: argparse.Namespace) -> None:
    """Export the checkpoint of the command line."""
    common.export(args.checkpoint, args.out, ".pt", write)


if __name__ == "__main__":
    sys.exit(main())

"""Checkpoint -> TorchScript, traced and frozen: `python -m export.torchscript`."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from export.common import command


def write(
    module: nn.Module, example: Tensor, outputs: list[str], metadata: dict[str, str], path: Path
) -> None:
    """Trace with any batch size, fold what is constant, save with our metadata as extra files."""
    with warnings.catch_warnings():
        # torch.jit is deprecated since torch 2.10; TorchServe users still ask for it.
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
        traced = torch.jit.trace(module, example)  # type: ignore[no-untyped-call]
        frozen = torch.jit.freeze(traced)
        files = {**metadata, "output_names": json.dumps(outputs)}
        torch.jit.save(frozen, str(path), _extra_files=files)


if __name__ == "__main__":
    sys.exit(command(".pt", write, __doc__, "torchscript"))

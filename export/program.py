"""Export a checkpoint with `torch.export`, as `.pt2`: what replaces TorchScript.

The server does not load these files: `torch.export.load` unpickles. Load only what you have made yourself.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audiocnn import command
from audiocnn.arrays import FloatArray
from audiocnn.model.engine import CONFIG_KEY, FRONTEND_KEY
from export import common

_NAMES = "output_names"


class ExportedProgramGraph:
    """A `.pt2` file of ours; see `audiocnn.model.engine.Graph`."""

    takes_waveform = False
    uses_torch = True

    def __init__(self, path: Path) -> None:
        files: dict[str, Any] = {CONFIG_KEY: "", FRONTEND_KEY: "", _NAMES: ""}
        self._module = torch.export.load(path, extra_files=files).module()
        self.output_names: tuple[str, ...] = tuple(json.loads(files.pop(_NAMES)))
        self.metadata: dict[str, str] = files

    @torch.inference_mode()
    def run(self, inputs: FloatArray, outputs: Sequence[str]) -> list[FloatArray]:
        """`inputs (b, 1, n_mels, num_frames)` -> the named outputs, batch first."""
        named = dict(zip(self.output_names, self._module(torch.from_numpy(inputs)), strict=True))
        return [named[name].numpy() for name in outputs]


def write(
    module: nn.Module, example: Tensor, outputs: list[str], metadata: dict[str, str], path: Path
) -> None:
    """Save the graph for any batch size, with our metadata as extra files."""
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    buffer = io.BytesIO()  # a file's name would become that of a folder in the archive
    torch.export.save(program, buffer, extra_files={**metadata, _NAMES: json.dumps(outputs)})
    path.write_bytes(buffer.getvalue())


@command.entry_point(common.folders("checkpoint", "out"), common.EXAMPLE)
def main(args: argparse.Namespace) -> None:
    """Export the checkpoint of the command line."""
    common.export(args.checkpoint, args.out, ".pt2", write, read=ExportedProgramGraph)


if __name__ == "__main__":
    sys.exit(main())

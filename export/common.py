"""What both exporters share: which graphs there are, and the check before a file gets its name."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from audiocnn import checkpoint
from audiocnn.engine import EagerGraph, open_graph, pack_metadata
from audiocnn.errors import ModelFileError
from audiocnn.model import WithMaps
from export import parity

NAME = "audiocnn"

# (module, example input, names of the outputs, metadata, file to write)
Writer = Callable[[nn.Module, torch.Tensor, list[str], dict[str, str], Path], None]


def export(folder: Path, out: Path, suffix: str, write: Writer) -> None:
    """Write `audiocnn<suffix>` (logits) and `audiocnn-maps<suffix>` (all outputs), both checked."""
    config, log_mel, model = checkpoint.load(folder)
    reference = EagerGraph(folder, "cpu")
    probes = parity.probe_log_mels(log_mel)
    example = torch.zeros(2, 1, config.frontend.n_mels, config.frontend.num_frames)
    with_maps = WithMaps(model).eval()
    out.mkdir(parents=True, exist_ok=True)
    graphs: list[tuple[str, nn.Module, list[str]]] = [
        (NAME, model, ["logits"]),
        (f"{NAME}-maps", with_maps, with_maps.output_names),
    ]
    for name, module, outputs in graphs:
        part = out / f"{name}.part{suffix}"
        write(module, example, outputs, pack_metadata(config, log_mel), part)
        try:
            worst = parity.check(open_graph(part), reference, probes, outputs, name + suffix)
        except ModelFileError:
            part.unlink()
            raise
        path = out / (name + suffix)
        os.replace(part, path)
        size = path.stat().st_size / 1e6
        print(f"{path}  {size:.1f} MB, differs from PyTorch by {worst:.1e} on {len(probes)} clips")


def command(suffix: str, write: Writer, description: str, prog: str) -> int:
    """The command line of an exporter."""
    parser = argparse.ArgumentParser(prog=f"python -m export.{prog}", description=description)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/esc50"), help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("model_store"), help="(%(default)s)")
    args = parser.parse_args()
    try:
        export(args.checkpoint, args.out, suffix, write)
    except ModelFileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0

"""What both exporters share: which graphs there are, and the check before a file gets its name."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from audiocnn.errors import ModelFileError
from audiocnn.model import checkpoint
from audiocnn.model.engine import EagerGraph, Graph, open_graph, pack_metadata
from audiocnn.model.network import FeatureMapModel, WithEmbedding
from export import test_signals

FloatArray = npt.NDArray[np.float32]

NAME = "audiocnn"
TOLERANCE = 1e-4  # float32: largest difference over the larger of 1 and the largest value

# (module, example input, names of the outputs, metadata, file to write)
Writer = Callable[[nn.Module, torch.Tensor, list[str], dict[str, str], Path], None]


def export(folder: Path, out: Path, suffix: str, write: Writer, *, quiet: bool = False) -> None:
    """Write `audiocnn<suffix>` (logits, embedding) and `audiocnn-maps<suffix>` (all outputs), checked."""
    config, log_mel, model = checkpoint.load(folder)
    reference = EagerGraph(folder, "cpu")
    log_mels = test_signals.log_mels(log_mel, test_signals.waveforms(config.frontend))
    example = torch.zeros(2, 1, config.frontend.n_mels, config.frontend.num_frames)
    served, with_maps = WithEmbedding(model).eval(), FeatureMapModel(model).eval()
    out.mkdir(parents=True, exist_ok=True)
    graphs: list[tuple[str, nn.Module, list[str]]] = [
        (NAME, served, list(served.output_names)),
        (f"{NAME}-maps", with_maps, with_maps.output_names),
    ]
    for name, module, outputs in graphs:
        part = out / f"{name}.part{suffix}"
        write(module, example, outputs, pack_metadata(config, log_mel), part)
        try:
            worst = check(open_graph(part), reference, log_mels, outputs, name + suffix)
        except ModelFileError:
            part.unlink()
            raise
        path = out / (name + suffix)
        os.replace(part, path)
        size = path.stat().st_size / 1e6
        if quiet:
            continue
        print(f"{path}  {size:.1f} MB, differs from PyTorch by {worst:.1e} on {len(log_mels)} clips")


def largest_difference(graph: Graph, reference: Graph, log_mels: FloatArray, outputs: list[str]) -> float:
    """Over all outputs and clips, alone and in odd batches, relative to the larger of 1 and the
    largest value of that output in the reference."""
    worst = 0.0
    for batch in (log_mels[:1], log_mels[1:4], log_mels[4:]):
        for ours, theirs in zip(graph.run(batch, outputs), reference.run(batch, outputs), strict=True):
            assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
            worst = max(worst, float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max())))
    return worst


def check(graph: Graph, reference: Graph, log_mels: FloatArray, outputs: list[str], name: str) -> float:
    """The largest difference; `ModelFileError` if it is above the tolerance, or not a number."""
    worst = largest_difference(graph, reference, log_mels, outputs)
    if not worst <= TOLERANCE:
        raise ModelFileError(
            f"{name} differs from PyTorch by {worst:.2e}, more than {TOLERANCE:g}: not written"
        )
    return worst


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

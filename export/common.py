"""What the exporters share: the graphs, the check of a file before it gets its name, the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from audiocnn.arrays import FloatArray
from audiocnn.errors import ModelFileError
from audiocnn.files import replacing
from audiocnn.model import checkpoint
from audiocnn.model.engine import Graph, open_graph, pack_metadata
from audiocnn.model.network import AudioCNN, FeatureMapModel, WithEmbedding
from audiocnn.model.torch_graphs import EagerGraph
from export import test_signals

NAME = "audiocnn"
TOLERANCE = 1e-4  # float32: largest difference over the larger of 1 and the largest value
CHECKPOINT = Path("checkpoints/esc50")
STORE = Path("model_store")
EXAMPLE = "--checkpoint checkpoints/esc50 --out model_store"

# (module, example input, names of the outputs, metadata, file to write)
Writer = Callable[[nn.Module, torch.Tensor, list[str], dict[str, str], Path], None]
Reader = Callable[[Path], Graph]


def export(
    folder: Path, out: Path, suffix: str, write: Writer, *, read: Reader = open_graph, quiet: bool = False
) -> None:
    """Write `audiocnn<suffix>` (logits, embedding) and `audiocnn-maps<suffix>` (all outputs).

    Each file is compared with PyTorch before it gets its name. Raises `ModelFileError` for a checkpoint that
    cannot be loaded, or a file that differs by more than `TOLERANCE`.
    """
    config, log_mel, model = checkpoint.load(folder)
    reference = EagerGraph(folder, "cpu")
    log_mels = test_signals.log_mels(log_mel, test_signals.waveforms(config.frontend))
    example = torch.zeros(2, 1, config.frontend.n_mels, config.frontend.num_frames)
    metadata = pack_metadata(config, log_mel.arrays())
    for name, module, outputs in _graphs(model):
        path = out / (name + suffix)
        with replacing(path) as part:
            write(module, example, outputs, metadata, part)
            worst = check(read(part), reference, log_mels, outputs, path.name)
        if not quiet:
            difference = f"differs from PyTorch by {worst:.1e} on {len(log_mels)} clips"
            print(f"{described(path)}, {difference}")


def _graphs(model: AudioCNN) -> list[tuple[str, nn.Module, list[str]]]:
    """Name, module and output names of each graph."""
    served, with_maps = WithEmbedding(model).eval(), FeatureMapModel(model).eval()
    return [(NAME, served, list(served.output_names)), (f"{NAME}-maps", with_maps, with_maps.output_names)]


def largest_difference(graph: Graph, reference: Graph, log_mels: FloatArray, outputs: list[str]) -> float:
    """Largest difference over all outputs of `log_mels (n, 1, n_mels, num_frames)`, in batches of 1, 3 and
    the rest, relative to the larger of 1 and the largest value of that output in the reference."""
    worst = 0.0
    for batch in (log_mels[:1], log_mels[1:4], log_mels[4:]):
        for ours, theirs in zip(graph.run(batch, outputs), reference.run(batch, outputs), strict=True):
            assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
            worst = max(worst, float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max())))
    return worst


def check(graph: Graph, reference: Graph, log_mels: FloatArray, outputs: list[str], name: str) -> float:
    """The largest difference. Raises `ModelFileError` if it is above the tolerance or not a number."""
    worst = largest_difference(graph, reference, log_mels, outputs)
    if not worst <= TOLERANCE:
        raise ModelFileError(
            f"{name} differs from PyTorch by {worst:.2e}, more than {TOLERANCE:g}: not written"
        )
    return worst


def described(path: Path) -> str:
    """Path and size, for people."""
    return f"{path}  {path.stat().st_size / 1e6:.1f} MB"


def add_folders(parser: argparse.ArgumentParser, *names: str) -> None:
    """The options `--checkpoint`, and `--out` or `--store` for the folder of the exported files."""
    texts = {"checkpoint": "checkpoint folder", "out": "output folder", "store": "folder of exported files"}
    for name in names:
        default = CHECKPOINT if name == "checkpoint" else STORE
        text = f"{texts[name]} (%(default)s)"
        parser.add_argument(f"--{name}", type=Path, default=default, metavar="DIR", help=text)


def folders(*names: str) -> Callable[[argparse.ArgumentParser], None]:
    """`add_folders` for a command without other options."""
    return lambda parser: add_folders(parser, *names)

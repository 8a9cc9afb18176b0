"""Whether an ONNX file from elsewhere can be served: `audiocnn check model.onnx`.

A waveform model takes `waveform (batch, num_samples)`, float32 in [-1, 1], and returns `logits` or `probs`,
`(batch, num_classes)`. `model.json` beside it has `sample_rate`, `clip_seconds` and `class_names`, perhaps
`activation` (softmax or sigmoid), `temperature`, `unknown_threshold`, `name`, `version`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from audiocnn.arrays import FloatArray
from audiocnn.audio import synthetic
from audiocnn.classifier import Classifier
from audiocnn.errors import AudioCNNError, ModelFileError
from audiocnn.model.engine import CONFIG_KEY, Engine, OnnxGraph
from audiocnn.model.loading import model_file, synthetic_windows
from audiocnn.model.waveform import interface_problems, mismatches, read_description
from audiocnn.printing import print_text
from audiocnn.probabilities import probabilities

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_RUNS = 20  # that are timed
_TOLERANCE = 1e-3  # of probabilities, alone and in a batch
_SMALLEST_DIFFERENCE = 1e-6  # of probabilities, between a siren and rain


def problems_of(path: Path) -> list[str]:
    """What keeps a file from being served, a sentence each; empty if nothing does."""
    try:
        graph = OnnxGraph(path, "cpu", 1) if path.suffix == ".onnx" else None
    except AudioCNNError as error:
        return [str(error)]
    if graph is not None and CONFIG_KEY not in graph.metadata:
        found = interface_problems(graph.shapes)
        try:
            config = read_description(path)
        except ModelFileError as error:
            return [*found, str(error)]
        if found := found or mismatches(graph.shapes, config):
            return found
    try:
        return _problems_of_answers(Engine(path))
    except Exception as error:  # ONNX Runtime's own errors share no other base class
        return [str(error)]


def _problems_of_answers(engine: Engine) -> list[str]:
    stack = _test_inputs(engine)
    together = engine.run(stack)["logits"]
    num_classes = len(engine.config.class_names)
    if together.shape != (len(stack), num_classes):
        return [
            f"it returns an array of shape {together.shape} for {len(stack)} windows and {num_classes} names"
        ]
    if not np.isfinite(together).all():
        return ["it returns values that are not finite for a test sound, silence or a full-scale tone"]
    probs = probabilities(together, engine.config)
    alone = np.concatenate([engine.run(stack[n : n + 1])["logits"] for n in range(len(stack))])
    found = []
    if (difference := float(np.abs(probabilities(alone, engine.config) - probs).max())) > _TOLERANCE:
        found.append(f"an answer depends on what else is in the batch: {difference:.3f} of probability")
    if float(np.ptp(probs[: len(synthetic.SOUNDS)], axis=0).max()) < _SMALLEST_DIFFERENCE:
        found.append("it gives the same answer to every test sound: is the input scaled to [-1, 1]?")
    return found


def _test_inputs(engine: Engine) -> FloatArray:
    """The synthetic sounds, silence, and a full-scale tone."""
    config = engine.config.frontend
    silence = np.zeros(config.window_samples, np.float32)
    tone = np.sin(2 * np.pi * 440 * np.arange(config.window_samples) / config.sample_rate, dtype=np.float32)
    return np.stack([engine.prepare(window) for window in (*synthetic_windows(config), silence, tone)])


def milliseconds(run: Callable[[], object]) -> float:
    """The median of some runs, in ms, after one that does not count."""
    run()
    spent = []
    for _ in range(_RUNS):
        began = time.perf_counter()
        run()
        spent.append(time.perf_counter() - began)
    return 1000 * float(np.median(spent))


@app.command(epilog="Example: audiocnn check model.onnx")
def check(
    path: Annotated[
        Path, typer.Argument(metavar="MODEL", help="ONNX file with a JSON beside it, or folder.")
    ],
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (all).")] = None,
) -> None:
    """Say what a model lacks, run it on test signals, measure it. Exit code 2: it cannot be served."""
    path = model_file(path)
    if found := problems_of(path):
        for problem in found:
            print(f"error: {problem}", file=sys.stderr)
        raise typer.Exit(2)
    engine = Engine(path, threads=threads)
    classifier, config = Classifier(engine), engine.config
    table = Table("test sound", "class", "confidence")
    for name in synthetic.SOUNDS:
        result = classifier.predict(synthetic.wav(name))
        table.add_row(name, escape(result.label), f"{result.confidence:.3f}")
    console = Console()
    console.print(table)
    stack = _test_inputs(engine)
    gives = ["predictions"] + ["embedding"] * (config.num_features is not None)
    gives += ["evidence", "feature maps"] * (config.model is not None)
    window = f"windows of {config.frontend.clip_seconds:g} s at {config.frontend.sample_rate:,} Hz"
    print_text(
        console,
        f"{path}: {len(config.class_names)} classes ({config.activation}), {window}\n"
        f"It gives {', '.join(gives)}.\n"
        f"{milliseconds(lambda: engine.run(stack[:1])):.1f} ms a window alone, "
        f"{milliseconds(lambda: engine.run(stack[:4])) / 4:.1f} ms in batches of 4 "
        f"({threads or 'all'} CPU threads)\nIt can be served: make serve CHECKPOINT={path}",
    )

"""Feature vectors of sound files: `audiocnn embed recordings/ --out sounds.parquet`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

from audiocnn import inputs
from audiocnn.arrays import FloatArray
from audiocnn.classifier import Classifier
from audiocnn.embedding_table import SUFFIXES, EmbeddingTable, check_writable
from audiocnn.errors import AudioError, ModelFileError
from audiocnn.files import as_text
from audiocnn.inputs import InputError, Notes
from audiocnn.results import WindowProbs

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def embed_file(classifier: Classifier, path: str) -> Iterator[tuple[float, float, FloatArray]]:
    """Start and end in seconds and embedding `(d,)` of each window of a file of any length.

    Raises `AudioError` and `OSError`, perhaps after windows that were good.
    """
    for _, item in classifier.predict_streams([path], outputs=["embedding"]):
        if isinstance(item, WindowProbs):
            yield item.start, item.end, item.outputs["embedding"]
        elif item.error:
            raise item.error


def open_embedder(model: Path | None, threads: int | None) -> Classifier:
    """The model. Raises `ModelFileError` if it has no embedding."""
    classifier = Classifier.load(model, threads=threads)
    if classifier.config.num_features is None:
        raise ModelFileError(f"{classifier.engine.path} has no output embedding")
    return classifier


@app.command(epilog="Example: audiocnn embed recordings/ --out sounds.parquet")
def embed(
    paths: Annotated[list[str], typer.Argument(metavar="FILES", help="Files, folders, globs or CSVs.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Table to write: .parquet or .npz.")],
    model: Annotated[
        Path | None,
        typer.Option(help="Model file or folder (model_store, else the released model)."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (all).")] = None,
) -> None:
    """Write the feature vector of every window. Exit code 1: some files had errors; 2: wrong input."""
    if out.suffix not in SUFFIXES:
        raise InputError(f"--out must end in {' or '.join(SUFFIXES)}")
    check_writable(out)
    classifier = open_embedder(model, threads)
    found = inputs.find_all(paths, Notes())
    rows, errors = [], 0
    console = Console(stderr=True)
    for path in track(found, description="embedding", console=console, disable=not console.is_terminal):
        name = as_text(os.path.abspath(path))
        try:
            rows += [(name, *row) for row in embed_file(classifier, path)]
        except (AudioError, OSError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            errors += 1
    if not rows:
        raise InputError("no file could be read")
    files, starts, ends, vectors = zip(*rows, strict=True)
    times = (np.array(starts, np.float32), np.array(ends, np.float32))
    table = EmbeddingTable(list(files), *times, np.stack(vectors), classifier.engine.sha256)
    table.save(out)
    print(f"{out}: {len(rows)} windows of {len(found) - errors} files, {table.vectors.shape[1]} numbers each")
    raise typer.Exit(int(bool(errors)))

"""Feature vectors of sound files: `audiocnn embed recordings/ --out sounds.parquet`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.progress import track

from audiocnn import inputs
from audiocnn.arrays import FloatArray
from audiocnn.classifier import Classifier
from audiocnn.errors import AudioError, ModelFileError
from audiocnn.files import replacing
from audiocnn.inputs import InputError, Notes

SUFFIXES = (".parquet", ".npz")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class EmbeddingTable:
    """Embeddings of windows, one row each, and the model that they are of."""

    files: list[str]
    starts: FloatArray  # (n,) seconds
    ends: FloatArray  # (n,)
    vectors: FloatArray  # (n, d) float32
    model: str  # SHA-256 of the model's file

    def save(self, path: Path) -> None:
        """Write `.parquet` (needs pyarrow) or `.npz`."""
        with replacing(path) as part:
            if path.suffix == ".npz":
                with part.open("wb") as file:
                    arrays = {name: np.array(value) for name, value in vars(self).items()}
                    np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's own stub
            else:
                self._write_parquet(part)

    def _write_parquet(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        flat = pa.array(self.vectors.ravel(), pa.float32())
        columns = {
            "file": pa.array(self.files),
            "start": pa.array(self.starts, pa.float32()),
            "end": pa.array(self.ends, pa.float32()),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, self.vectors.shape[1]),
        }
        pq.write_table(pa.table(columns).replace_schema_metadata({"model": self.model}), path)

    @classmethod
    def load(cls, path: Path) -> EmbeddingTable:
        """Read what `save` wrote. Raises `InputError` for any other file."""
        try:
            return cls._read_npz(path) if path.suffix == ".npz" else cls._read_parquet(path)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path} is no table of `audiocnn embed`: {error}") from error

    @classmethod
    def _read_npz(cls, path: Path) -> EmbeddingTable:
        with np.load(path, allow_pickle=False) as file:
            files = [str(name) for name in file["files"]]
            return cls(files, file["starts"], file["ends"], file["vectors"], str(file["model"]))

    @classmethod
    def _read_parquet(cls, path: Path) -> EmbeddingTable:
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        vectors = np.stack(table["embedding"].combine_chunks().to_numpy(zero_copy_only=False))
        model = (table.schema.metadata or {})[b"model"].decode()
        starts, ends = (table[name].to_numpy().astype(np.float32) for name in ("start", "end"))
        return cls(table["file"].to_pylist(), starts, ends, vectors.astype(np.float32), model)


def embed_file(classifier: Classifier, path: str) -> Iterator[tuple[float, float, FloatArray]]:
    """Start and end in seconds and embedding `(d,)` of each window. Raises `AudioError` and `OSError`."""
    result = classifier.predict(path)
    assert result.window_embeddings is not None, "checked by `open_embedder`"
    for (start, end), vector in zip(result.spans, result.window_embeddings, strict=True):
        yield start, end, vector


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
        Path | None, typer.Option(help="Model or folder of a taught model (the released model).")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (all).")] = None,
) -> None:
    """Write the feature vector of every window. Exit code 1: some files had errors; 2: wrong input."""
    if out.suffix not in SUFFIXES:
        print(f"error: --out must end in {' or '.join(SUFFIXES)}", file=sys.stderr)
        raise typer.Exit(2)
    try:
        classifier = open_embedder(model, threads)
        found = [path for path, _ in inputs.find(paths, Notes())]
    except (ModelFileError, InputError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    rows, errors = [], 0
    for path in track(found, description="embedding", transient=True):
        try:
            rows += [(path, *row) for row in embed_file(classifier, path)]
        except (AudioError, OSError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            errors += 1
    if not rows:
        print("error: no file could be read", file=sys.stderr)
        raise typer.Exit(2)
    files, starts, ends, vectors = zip(*rows, strict=True)
    times = (np.array(starts, np.float32), np.array(ends, np.float32))
    table = EmbeddingTable(list(files), *times, np.stack(vectors), classifier.engine.sha256)
    table.save(out)
    print(f"{out}: {len(rows)} windows of {len(found) - errors} files, {table.vectors.shape[1]} numbers each")
    raise typer.Exit(int(bool(errors)))

"""A table of embeddings: what `audiocnn embed` and `audiocnn batch --embeddings` write and `search` reads."""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from audiocnn import files, npz
from audiocnn.arrays import FloatArray
from audiocnn.files import replacing
from audiocnn.inputs import InputError

SUFFIXES = (".parquet", ".npz")


def parquet_schema(size: int, model: str) -> Any:
    """The columns, a row for each window, and the SHA-256 of the model's file as metadata `model`."""
    import pyarrow as pa

    columns = [("file", pa.string()), ("start", pa.float32()), ("end", pa.float32())]
    return pa.schema([*columns, ("embedding", pa.list_(pa.float32(), size))], {"model": model})


def check_writable(path: Path) -> None:
    """Raises `ModuleNotFoundError` if a table of this format needs a package that is not installed, `OSError`
    if its folder cannot be written."""
    if path.suffix == ".parquet":
        import_module("pyarrow")
    files.check_writable(path.parent)


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
        if path.suffix == ".npz":
            npz.save(path, vars(self))
            return
        with replacing(path) as part:
            self._write_parquet(part)

    def _write_parquet(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        size = self.vectors.shape[1]
        flat = pa.array(self.vectors.ravel(), pa.float32())
        vectors = pa.FixedSizeListArray.from_arrays(flat, size)
        schema = parquet_schema(size, self.model)
        pq.write_table(pa.table([self.files, self.starts, self.ends, vectors], schema=schema), path)

    @classmethod
    def load(cls, path: Path) -> EmbeddingTable:
        """Read what `save` wrote, or the folder of Parquet files of `audiocnn batch --embeddings`.

        Raises `InputError` for anything else.
        """
        try:
            return cls._read_npz(path) if path.suffix == ".npz" else cls._read_parquet(path)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{path} is no table of `audiocnn embed` or `audiocnn batch --embeddings`: {error}"
            ) from error

    @classmethod
    def _read_npz(cls, path: Path) -> EmbeddingTable:
        files, starts, ends, vectors, model = npz.load(path, [field.name for field in fields(cls)]).values()
        return cls(list(map(str, files)), starts, ends, vectors, str(model))

    @classmethod
    def _read_parquet(cls, path: Path) -> EmbeddingTable:
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        vectors = np.stack(table["embedding"].combine_chunks().to_numpy(zero_copy_only=False))
        model = (table.schema.metadata or {})[b"model"].decode()
        starts, ends = (table[name].to_numpy().astype(np.float32) for name in ("start", "end"))
        return cls(table["file"].to_pylist(), starts, ends, vectors.astype(np.float32), model)

"""NumPy archives of arrays and texts; no pickle is read."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from audiocnn.files import replacing


def save(path: Path, arrays: Mapping[str, npt.ArrayLike]) -> None:
    """Write a compressed file with `replacing`."""
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]  # numpy's own stub


def load(path: Path, names: Collection[str]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of these names. Raises `ValueError` for a file that lacks one or is damaged, `OSError`."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except (EOFError, KeyError, IndexError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"it is damaged, or has other contents ({error})") from error

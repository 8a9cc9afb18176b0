"""AudioCNN: sounds in; class labels, calibrated confidences and timestamps out.

>>> import audiocnn
>>> audiocnn.load().predict("rain.wav").label
'rain'

Importing the package loads neither torch nor numpy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audiocnn.classifier import Classifier
    from audiocnn.client.async_client import AsyncClient as AsyncClient
    from audiocnn.client.client import Client as Client

__version__ = "0.2.0"
__all__ = ["AsyncClient", "Client", "__version__", "load"]

_LAZY = {"AsyncClient": "audiocnn.client.async_client", "Client": "audiocnn.client.client"}


def load(path: str | Path | None = None, *, device: str = "cpu", threads: int | None = None) -> Classifier:
    """A classifier from an exported file or a checkpoint folder.

    Without a path: the model in the folder `model_store` of a checkout, else the released one. `device` is
    `cpu`, `cuda` or `cuda:1`; `threads` those of the CPU (None: all). Raises `ModelFileError`.
    """
    from audiocnn.classifier import Classifier

    return Classifier.load(path, device=device, threads=threads)


def __getattr__(name: str) -> Any:
    """The clients, imported when they are asked for."""
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'audiocnn' has no attribute {name!r}")

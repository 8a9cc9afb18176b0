"""What runs in PyTorch: TorchScript files, checkpoint folders, and the front end beside them or on a GPU."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audiocnn.arrays import FloatArray
from audiocnn.config import FrontendConfig
from audiocnn.errors import ModelFileError
from audiocnn.model import checkpoint
from audiocnn.model.engine import CONFIG_KEY, FRONTEND_KEY, pack_metadata
from audiocnn.model.frontend import LogMel
from audiocnn.model.network import AudioCNN, FeatureMapModel, WithEmbedding


class TorchFrontend:
    """`LogMel` for one window at a time; see `audiocnn.model.engine.FeatureExtractor`."""

    def __init__(self, config: FrontendConfig, arrays: Mapping[str, FloatArray], device: str) -> None:
        """`arrays` are those of `LogMel.state_dict()`."""
        self.config, self._device = config, device
        self._log_mel = LogMel(config)
        self._log_mel.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
        self._log_mel.eval().to(device)

    @torch.inference_mode()
    def __call__(self, window: FloatArray) -> FloatArray:
        """See `FeatureExtractor`."""
        log_mel: FloatArray = self._log_mel(self._batch(window))[0].cpu().numpy()
        return log_mel

    @torch.inference_mode()
    def power_mel(self, waveform: FloatArray) -> FloatArray:
        """See `FeatureExtractor`."""
        power: FloatArray = self._log_mel.power_mel(self._batch(waveform))[0].cpu().numpy()
        return power

    def fingerprint(self) -> str:
        """See `mel.fingerprint`."""
        return self._log_mel.fingerprint()

    def _batch(self, waveform: FloatArray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(waveform))[None].to(self._device)


class TorchScriptGraph:
    """A traced and frozen `.pt` file."""

    takes_waveform = False
    uses_torch = True

    def __init__(self, path: Path, device: str, threads: int | None = None) -> None:
        _limit_threads(threads)
        files: dict[str, Any] = {CONFIG_KEY: "", FRONTEND_KEY: "", "output_names": ""}
        try:
            with warnings.catch_warnings():
                # torch.jit is deprecated since torch 2.10, and still what TorchScript users run.
                warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
                self._module = torch.jit.load(str(path), map_location=device, _extra_files=files)  # type: ignore[no-untyped-call]
            texts = {
                key: value.decode() if isinstance(value, bytes) else value for key, value in files.items()
            }
            self.output_names = tuple(json.loads(texts.pop("output_names") or "[]"))
        except (RuntimeError, ValueError) as error:
            raise ModelFileError(f"{path} cannot be loaded as TorchScript: {error}") from error
        self.metadata = texts
        self._device = device

    @torch.inference_mode()
    def run(self, inputs: FloatArray, outputs: Sequence[str]) -> list[FloatArray]:
        """See `Graph`."""
        tensors = self._module(torch.from_numpy(inputs).to(self._device))
        named = dict(
            zip(self.output_names, tensors if isinstance(tensors, tuple) else (tensors,), strict=True)
        )
        return [named[name].cpu().numpy() for name in outputs]


class EagerGraph:
    """A checkpoint folder in plain PyTorch: the reference that the exports are measured against."""

    takes_waveform = False
    uses_torch = True

    def __init__(self, folder: Path, device: str, threads: int | None = None) -> None:
        _limit_threads(threads)
        config, log_mel, model = checkpoint.load(folder)
        self.metadata = pack_metadata(config, log_mel.arrays())
        self._model: AudioCNN = model.to(device)
        self._served, self._with_maps = WithEmbedding(self._model), FeatureMapModel(self._model)
        self._device = device
        self.output_names = self._served.output_names

    @torch.inference_mode()
    def run(self, inputs: FloatArray, outputs: Sequence[str]) -> list[FloatArray]:
        """See `Graph`."""
        x = torch.from_numpy(inputs).to(self._device)
        is_served = set(outputs) <= set(self._served.output_names)
        module = self._served if is_served else self._with_maps
        named = dict(zip(module.output_names, module(x), strict=True))
        return [named[name].cpu().numpy() for name in outputs]


def _limit_threads(threads: int | None) -> None:
    if threads:
        torch.set_num_threads(threads)

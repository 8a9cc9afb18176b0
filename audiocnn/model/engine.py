"""One call over three ways to run the network: ONNX Runtime, TorchScript, and plain PyTorch.

The path says which: `NAME.onnx`, `NAME.pt`, or a checkpoint folder. An exported file carries its
configuration and front-end arrays, so the file alone is enough; its outputs are `logits` and
`embedding`, the pooled feature before the last layer. What only pictures need (evidence and
feature maps) is in a second file, `NAME-maps.onnx` or `NAME-maps.pt`, opened on first use: extra
outputs keep the optimiser from fusing operations, and most requests never ask for them.
"""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from audiocnn.arrays import FloatArray
from audiocnn.config import Config, feature_map_names
from audiocnn.errors import ModelFileError
from audiocnn.files import sha256
from audiocnn.model import checkpoint, waveform
from audiocnn.model.frontend import LogMel
from audiocnn.model.network import AudioCNN, FeatureMapModel, WithEmbedding

CONFIG_KEY = "audiocnn.config"  # the JSON of `Config`
SHA256_KEY = "audiocnn.sha256"  # of the served file, of a graph that is no file here
FRONTEND_KEY = "audiocnn.model.frontend"  # base64 of the safetensors bytes of `LogMel`
INT8 = "-int8"  # ends the stem of a quantised file: audiocnn-int8.onnx beside audiocnn.onnx
MAX_BATCH = 8
BATCH_SIZES = tuple(1 << n for n in range(MAX_BATCH.bit_length()))  # 1, 2, 4, 8: the only ones that run


class Graph(Protocol):
    """A network that can be run; `metadata` holds the values of the two keys above."""

    metadata: dict[str, str]
    output_names: tuple[str, ...]  # of these `logits` is one
    takes_waveform: bool  # else it takes log-mels

    def run(self, inputs: FloatArray, outputs: Sequence[str]) -> list[FloatArray]:
        """`inputs (b, 1, n_mels, num_frames)`, or `(b, num_samples)` -> the named outputs, batch first."""
        ...


class Engine:
    """A model ready to run, with its configuration and front end."""

    def __init__(
        self, path: Path, *, device: str = "cpu", threads: int | None = None, graph: Graph | None = None
    ) -> None:
        """Load `path` (see the module) for `device` ("cpu" or "cuda:N").

        `threads` limits the CPU threads of this process's models; None takes all cores. `graph` is used
        instead of a file; `path` is then its name. Raises `ModelFileError` for a file that is missing,
        damaged, too new, or not ours.
        """
        if threads:
            torch.set_num_threads(threads)
        self.path, self.device, self.threads = path, device, threads
        self._graph = graph or open_graph(path, device=device, threads=threads)
        self._maps: Graph | None = self._graph if path.is_dir() and not graph else None
        self.config = Config.from_json(self._graph.metadata[CONFIG_KEY])
        self.takes_waveform = self._graph.takes_waveform
        frontend = self._graph.metadata.get(FRONTEND_KEY)  # of a waveform model: to look at, if there is one
        log_mel = _unpack_frontend(frontend, self.config) if frontend else LogMel(self.config.frontend).eval()
        self.log_mel = log_mel.to(device)
        if self.takes_waveform:
            self.config = replace(self.config, model=None, embedding_size=self.config.num_features)
        if graph:
            self.sha256 = graph.metadata.get(SHA256_KEY, "")
        else:
            self.sha256 = sha256(path / checkpoint.WEIGHTS if path.is_dir() else path)

    @property
    def map_names(self) -> list[str]:
        """Names of the feature maps that `run` can return besides `logits` and `evidence`."""
        return feature_map_names(self.config.model)

    @property
    def metadata(self) -> dict[str, str]:
        """What the file carries besides its graph."""
        return self._graph.metadata

    @property
    def served_outputs(self) -> tuple[str, ...]:
        """Names of the outputs of the served graph: `logits`, and `embedding` if it has one."""
        return tuple(name for name in WithEmbedding.output_names if name in self._graph.output_names)

    @torch.inference_mode()
    def prepare(self, window: FloatArray) -> FloatArray:
        """What the network takes for a window `(window_samples,)`.

        Its log-mel `(1, n_mels, num_frames)`, or the window itself for a network that takes waveforms.
        """
        if self.takes_waveform:
            return window
        log_mel: FloatArray = self.log_mel(torch.from_numpy(window[None]).to(self.device))[0].cpu().numpy()
        return log_mel

    @torch.inference_mode()
    def shown_log_mel(self, network_input: FloatArray) -> FloatArray:
        """The log-mel `(n_mels, num_frames)` to show for what `prepare` returned.

        That is what the network saw, or for a network that takes waveforms one computed for the eye.
        """
        if not self.takes_waveform:
            shown: FloatArray = network_input[0]
            return shown
        shown = self.log_mel(torch.from_numpy(network_input[None]).to(self.device))[0, 0].cpu().numpy()
        return shown

    def run(self, inputs: FloatArray, outputs: Sequence[str] = ("logits",)) -> dict[str, FloatArray]:
        """Run a stack of what `prepare` returns; returns the named outputs, first dimension n.

        Batches are cut into powers of two up to `MAX_BATCH`: a handful of shapes, so ONNX Runtime's
        memory stays flat. All outputs of one call come from one graph.
        """
        is_served = set(outputs) <= set(self._graph.output_names)
        graph = self._graph if is_served else self._maps_graph()
        parts = [graph.run(inputs[chunk], outputs) for chunk in _chunks(len(inputs))]
        return {
            name: np.concatenate(arrays)
            for name, arrays in zip(outputs, zip(*parts, strict=True), strict=True)
        }

    def _maps_graph(self) -> Graph:
        if self.config.model is None:
            raise ModelFileError(f"{self.path} has no feature maps and no evidence")
        if self._maps is None:
            stem = self.path.stem.removesuffix(INT8)  # pictures are drawn from float32
            path = self.path.with_name(f"{stem}-maps{self.path.suffix}")
            self._maps = open_graph(path, device=self.device, threads=self.threads)
            if self._maps.metadata != self._graph.metadata:
                raise ModelFileError(f"{path} was exported from another model than {self.path}: export again")
        return self._maps


def open_graph(path: Path, *, device: str = "cpu", threads: int | None = None) -> Graph:
    """The graph in a file or checkpoint folder; raises `ModelFileError` if there is none."""
    if path.is_dir():
        return EagerGraph(path, device)
    if not path.is_file():
        hint = "build it with `make export`" if path.suffix else "train or teach it first, or name another"
        raise ModelFileError(f"there is no model at {path}: {hint}")
    if path.suffix == ".onnx":
        graph: Graph = _open_onnx(path, device, threads)
    elif path.suffix == ".pt":
        graph = TorchScriptGraph(path, device)
    else:
        raise ModelFileError(f"{path} is no model file: expected .onnx, .pt or a checkpoint folder")
    keys = (CONFIG_KEY,) if graph.takes_waveform else (CONFIG_KEY, FRONTEND_KEY)
    if missing := [key for key in keys if not graph.metadata.get(key)]:
        raise ModelFileError(
            f"{path} carries no {' and no '.join(missing)}: it was not exported by us; a waveform model from "
            "elsewhere is described by a JSON file beside it, see `audiocnn check --help`"
        )
    return graph


def _open_onnx(path: Path, device: str, threads: int | None) -> Graph:
    graph = OnnxGraph(path, device, threads)
    is_ours = bool(graph.metadata.get(CONFIG_KEY))
    if not graph.takes_waveform and (is_ours or not waveform.description_path(path).is_file()):
        return graph
    config = Config.from_json(graph.metadata[CONFIG_KEY]) if is_ours else waveform.read_description(path)
    size = graph.shapes["embedding"][-1] if "embedding" in graph.shapes else None
    metadata = dict(graph.metadata)
    if not is_ours:
        metadata[CONFIG_KEY] = replace(config, embedding_size=size).to_json()
    try:
        return waveform.WaveformGraph(graph, config, metadata)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}\n`audiocnn check {path}` says more") from error


def pack_metadata(config: Config, log_mel: LogMel) -> dict[str, str]:
    """What an exported file carries besides its graph."""
    arrays = safetensors.torch.save(dict(log_mel.state_dict()))
    return {CONFIG_KEY: config.to_json(), FRONTEND_KEY: base64.b64encode(arrays).decode()}


def _unpack_frontend(text: str, config: Config) -> LogMel:
    log_mel = LogMel(config.frontend)
    try:
        log_mel.load_state_dict(safetensors.torch.load(base64.b64decode(text)))
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise ModelFileError(f"the stored front end is damaged: {error}") from error
    checkpoint.check_fingerprint(config, log_mel)
    return log_mel.eval()


def _chunks(count: int) -> Iterator[slice]:
    start = 0
    while start < count:
        size = min(MAX_BATCH, 1 << ((count - start).bit_length() - 1))
        yield slice(start, start + size)
        start += size


class OnnxGraph:
    """An `.onnx` file in ONNX Runtime."""

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        import onnxruntime  # here, so that TorchScript users need not have it

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        providers: list[object] = ["CPUExecutionProvider"]
        if device.startswith("cuda"):
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": int(device.partition(":")[2] or 0)}))
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # ONNX Runtime's own errors share no base class but this
            raise ModelFileError(f"{path} cannot be loaded by ONNX Runtime: {error}") from error
        if (
            providers[0] != "CPUExecutionProvider"
            and "CUDAExecutionProvider" not in self._session.get_providers()
        ):
            raise ModelFileError(
                f"ONNX Runtime cannot use {device} and would silently run on the CPU: install "
                "onnxruntime-gpu (`make setup` does where it sees a GPU) with matching CUDA libraries"
            )
        self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        self.output_names = tuple(output.name for output in self._session.get_outputs())
        both = (*self._session.get_inputs(), *self._session.get_outputs())
        self.shapes = {x.name: [n if isinstance(n, int) else None for n in x.shape] for x in both}
        self._input_name = self._session.get_inputs()[0].name
        self.takes_waveform = waveform.INPUT in self.shapes

    def run(self, inputs: FloatArray, outputs: Sequence[str]) -> list[FloatArray]:
        """See `Graph`."""
        return list(self._session.run(list(outputs), {self._input_name: inputs}))


class TorchScriptGraph:
    """A traced and frozen `.pt` file."""

    takes_waveform = False

    def __init__(self, path: Path, device: str) -> None:
        files: dict[str, Any] = {CONFIG_KEY: "", FRONTEND_KEY: "", "output_names": ""}
        try:
            with warnings.catch_warnings():
                # torch.jit is deprecated since torch 2.10, and still what TorchScript users run.
                warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
                self._module = torch.jit.load(str(path), map_location=device, _extra_files=files)  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise ModelFileError(f"{path} cannot be loaded as TorchScript: {error}") from error
        texts = {key: value.decode() if isinstance(value, bytes) else value for key, value in files.items()}
        self.output_names = tuple(json.loads(texts.pop("output_names") or "[]"))
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

    def __init__(self, folder: Path, device: str) -> None:
        config, log_mel, model = checkpoint.load(folder)
        self.metadata = pack_metadata(config, log_mel)
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

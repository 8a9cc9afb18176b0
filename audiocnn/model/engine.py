"""One call over the ways to run the network: ONNX Runtime or OpenVINO, TorchScript, and plain PyTorch.

The path says which: `NAME.onnx`, `NAME.pt`, or a checkpoint folder. An exported file carries its
configuration and front-end arrays, so the file alone is enough; its outputs are `logits` and
`embedding`, the pooled feature before the last layer. What only pictures need (evidence and
feature maps) is in a second file, `NAME-maps.onnx` or `NAME-maps.pt`, opened on first use: extra
outputs keep the optimiser from fusing operations, and most requests never ask for them.
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from audiocnn.arrays import FloatArray
from audiocnn.config import SERVED_OUTPUTS, WEIGHTS, Config, FrontendConfig
from audiocnn.errors import ModelFileError
from audiocnn.files import sha256
from audiocnn.model import mel, openvino_graph, waveform
from audiocnn.model.numpy_frontend import NumpyLogMel
from audiocnn.model.openvino_graph import OpenVinoGraph

CONFIG_KEY = "audiocnn.config"  # the JSON of `Config`
SHA256_KEY = "audiocnn.sha256"  # of the served file, of a graph that is no file here
FRONTEND_KEY = "audiocnn.model.frontend"  # base64 of the safetensors bytes of `LogMel`
INT8 = "-int8"  # ends the stem of a quantised file: audiocnn-int8.onnx beside audiocnn.onnx
MAX_BATCH = 8
BATCH_SIZES = tuple(1 << n for n in range(MAX_BATCH.bit_length()))  # 1, 2, 4, 8: the only ones that run

logger = logging.getLogger(__name__)


class Graph(Protocol):
    """A network that can be run; `metadata` holds the values of the two keys above."""

    metadata: dict[str, str]
    output_names: tuple[str, ...]  # of these `logits` is one
    takes_waveform: bool  # else it takes log-mels
    uses_torch: bool  # and so does its front end

    def run(self, inputs: FloatArray, outputs: Sequence[str]) -> list[FloatArray]:
        """`inputs (b, 1, n_mels, num_frames)`, or `(b, num_samples)` -> the named outputs, batch first."""
        ...


class FeatureExtractor(Protocol):
    """`NumpyLogMel`, or `TorchFrontend` beside a network in PyTorch or on a GPU."""

    config: FrontendConfig

    def __call__(self, window: FloatArray) -> FloatArray:
        """`(window_samples,)` float32 in [-1, 1] -> `(1, n_mels, num_frames)` float32."""
        ...

    def power_mel(self, waveform: FloatArray) -> FloatArray:
        """Mel power `(n_mels, 1 + num_samples // hop_length)` of `(num_samples,)`, 0 or more."""
        ...

    def fingerprint(self) -> str:
        """See `mel.fingerprint`."""
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
        if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
            raise ModelFileError(f"there is no device {device}: name cpu, cuda or cuda:1")
        self.path, self.device, self.threads = path, device, threads
        self._graph = graph or open_graph(path, device=device, threads=threads)
        self._maps: Graph | None = self._graph if path.is_dir() and not graph else None
        self.config = Config.from_json(self._graph.metadata[CONFIG_KEY])
        self.takes_waveform = self._graph.takes_waveform
        self.log_mel = _frontend(self._graph, self.config, device)
        if self.takes_waveform or graph:  # there is no file with maps
            self.config = replace(self.config, model=None, embedding_size=self.config.num_features)
        if graph:
            self.sha256 = graph.metadata.get(SHA256_KEY, "")
        else:
            self.sha256 = sha256(path / WEIGHTS if path.is_dir() else path)

    @property
    def metadata(self) -> dict[str, str]:
        """What the file carries besides its graph."""
        return self._graph.metadata

    @property
    def served_outputs(self) -> tuple[str, ...]:
        """Names of the outputs of the served graph: `logits`, and `embedding` if it has one."""
        return tuple(name for name in SERVED_OUTPUTS if name in self._graph.output_names)

    def prepare(self, window: FloatArray) -> FloatArray:
        """What the network takes for a window `(window_samples,)`; a shorter one is repeated.

        Its log-mel `(1, n_mels, num_frames)`, or the window itself for a network that takes waveforms. Called
        for one window at a time: the rounding of a matrix product depends on the shape of its operands, and
        no answer may depend on a neighbour.
        """
        if len(window) < self.config.frontend.window_samples:
            window = np.resize(window, self.config.frontend.window_samples)
        return window if self.takes_waveform else self.log_mel(window)

    def shown_log_mel(self, network_input: FloatArray) -> FloatArray:
        """The log-mel `(n_mels, num_frames)` to show for what `prepare` returned.

        That is what the network saw, or for a network that takes waveforms one computed for the eye.
        """
        shown: FloatArray = (self.log_mel(network_input) if self.takes_waveform else network_input)[0]
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

    def run_windows(
        self, windows: Sequence[FloatArray] | FloatArray, outputs: Sequence[str] = ("logits",)
    ) -> dict[str, FloatArray]:
        """`prepare`, then `run`, for windows `(window_samples,)` each."""
        return self.run(np.stack([self.prepare(window) for window in windows]), outputs)

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
        reference: Graph = _torch_graphs(path).EagerGraph(path, device, threads)
        return reference
    if not path.is_file():
        hint = "build it with `make export`" if path.suffix else "train or teach it first, or name another"
        raise ModelFileError(f"there is no model at {path}: {hint}")
    if path.suffix == ".onnx":
        graph: Graph = _open_onnx(path, device, threads)
    elif path.suffix == ".pt":
        graph = _torch_graphs(path).TorchScriptGraph(path, device, threads)
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
    graph = _graph_of_onnx(path, device, threads)
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


def _graph_of_onnx(path: Path, device: str, threads: int | None) -> OnnxGraph | OpenVinoGraph:
    if device == "cpu" and path.stem.endswith(INT8) and openvino_graph.is_preferred():
        try:
            return OpenVinoGraph(path, threads)
        except ModelFileError as error:
            logger.warning("%s; ONNX Runtime is used, which is slower", error)
    return OnnxGraph(path, device, threads)


def pack_metadata(config: Config, frontend: Mapping[str, FloatArray]) -> dict[str, str]:
    """What an exported file carries besides its graph; `frontend` are the arrays of `LogMel`."""
    arrays = safetensors.numpy.save(dict(frontend))
    return {CONFIG_KEY: config.to_json(), FRONTEND_KEY: base64.b64encode(arrays).decode()}


def _frontend(graph: Graph, config: Config, device: str) -> FeatureExtractor:
    """The stored front end; for a waveform model, which needs none, one to draw spectrograms with."""
    text = graph.metadata.get(FRONTEND_KEY)
    if not text:
        return NumpyLogMel.new(config.frontend)
    try:
        arrays = safetensors.numpy.load(base64.b64decode(text))
    except (ValueError, SafetensorError) as error:
        raise ModelFileError(f"the stored front end is damaged: {error}") from error
    found = NumpyLogMel(config.frontend, arrays)
    mel.check_fingerprint(found.fingerprint(), config.fingerprint)
    if device == "cpu" and not graph.uses_torch:
        return found
    in_torch: FeatureExtractor = _torch_graphs(device).TorchFrontend(config.frontend, arrays, device)
    return in_torch


def _torch_graphs(wanted: object) -> Any:
    """The module that needs PyTorch; raises `ModelFileError` where that is not installed."""
    try:
        return import_module("audiocnn.model.torch_graphs")
    except ModuleNotFoundError as error:
        raise ModelFileError(
            f"{wanted} needs PyTorch: pip install torch; an ONNX export of the model does without it on a CPU"
        ) from error


def _chunks(count: int) -> Iterator[slice]:
    start = 0
    while start < count:
        size = min(MAX_BATCH, 1 << ((count - start).bit_length() - 1))
        yield slice(start, start + size)
        start += size


class OnnxGraph:
    """An `.onnx` file in ONNX Runtime."""

    uses_torch = False

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
            self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)
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
        self.output_names = tuple(output.name for output in self._session.get_outputs())
        both = (*self._session.get_inputs(), *self._session.get_outputs())
        # Of inputs and outputs; None where any size will do.
        self.shapes = {x.name: [n if isinstance(n, int) else None for n in x.shape] for x in both}
        self._input_name = self._session.get_inputs()[0].name
        self.takes_waveform = waveform.INPUT in self.shapes

    def run(self, inputs: FloatArray, outputs: Sequence[str]) -> list[FloatArray]:
        """See `Graph`."""
        return list(self._session.run(list(outputs), {self._input_name: inputs}))

"""int8 ONNX files in OpenVINO, whose 8-bit convolutions are 2 to 4 times faster than ONNX Runtime's.

That holds for processors with VNNI or AMX. On others ONNX Runtime is used, as everywhere where the package
`openvino` is not installed. The environment variable `AUDIOCNN_RUNTIME` (`onnxruntime` or `openvino`) decides
instead.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from audiocnn.arrays import FloatArray
from audiocnn.errors import ModelFileError
from audiocnn.machine import cpu_flags
from audiocnn.model import waveform

VARIABLE = "AUDIOCNN_RUNTIME"
RUNTIMES = ("onnxruntime", "openvino")
_FAST_FLAGS = {"avx512_vnni", "avx_vnni"}


def is_preferred() -> bool:
    """Whether int8 files run in OpenVINO here. Raises `ModelFileError` for an unknown `AUDIOCNN_RUNTIME`."""
    wanted = os.environ.get(VARIABLE)
    if wanted and wanted not in RUNTIMES:
        raise ModelFileError(f"{VARIABLE}={wanted}: expected {' or '.join(RUNTIMES)}")
    return wanted == "openvino" or (not wanted and is_installed() and bool(_FAST_FLAGS & set(cpu_flags())))


def is_installed() -> bool:
    """Whether the package `openvino` is there."""
    return find_spec("openvino") is not None


class OpenVinoGraph:
    """An int8 `.onnx` file in OpenVINO; see `audiocnn.model.engine.Graph`. Threads may share it.

    >>> OpenVinoGraph(Path("audiocnn-int8.onnx"), threads=1).output_names
    ('logits', 'embedding')
    """

    uses_torch = False

    def __init__(self, path: Path, threads: int | None) -> None:
        """Load and compile `path` for the CPU. Raises `ModelFileError` if that is not possible."""
        openvino = _openvino()
        settings = {
            "INFERENCE_NUM_THREADS": threads or 0,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # of what is not int8
            "ENABLE_CPU_PINNING": False,  # else the workers of a server share a core
        }
        try:
            core = openvino.Core()
            model = core.read_model(path)
            self._compiled = core.compile_model(model, "CPU", settings)
            stored = model.get_rt_info("framework").astype(dict) if model.has_rt_info("framework") else {}
            self.metadata = {key: value.astype(str) for key, value in stored.items()}
        except (RuntimeError, UnicodeDecodeError) as error:
            raise ModelFileError(f"{path} cannot be loaded by OpenVINO: {error}") from error
        ports = (*self._compiled.inputs, *self._compiled.outputs)
        self.shapes = {port.any_name: _shape(port) for port in ports}
        self.output_names = tuple(port.any_name for port in self._compiled.outputs)
        self.takes_waveform = waveform.INPUT in self.shapes
        self._local = threading.local()  # a request must not be used by two threads at a time

    def run(self, inputs: FloatArray, outputs: Sequence[str]) -> list[FloatArray]:
        """See `Graph`."""
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        results = self._local.request.infer([inputs])
        return [results[name] for name in outputs]


def _shape(port: Any) -> list[int | None]:
    return [None if n.is_dynamic else n.get_length() for n in port.partial_shape]


def _openvino() -> Any:
    """The module, without its telemetry: `import openvino` sends a message to Google Analytics."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # an ImportError, which is handled
    try:
        import openvino
    except ImportError as error:
        raise ModelFileError(f"OpenVINO cannot be used: {error}; pip install openvino") from error
    return openvino

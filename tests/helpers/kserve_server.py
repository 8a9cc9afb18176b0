"""KServe's Python server with ONNX Runtime, serving files: run in the clients' environment.

kserve_server.py PORT NAME=MODEL.onnx ...
"""

from __future__ import annotations

import asyncio
import sys

import kserve
import numpy as np
import onnxruntime


class OnnxModel(kserve.Model):
    def __init__(self, path: str, name: str) -> None:
        super().__init__(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # requests run beside one another instead
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.ready = True

    def get_input_types(self):  # type: ignore[no-untyped-def]
        return [_described(each) for each in self._session.get_inputs()]

    def get_output_types(self):  # type: ignore[no-untyped-def]
        return [_described(each) for each in self._session.get_outputs()]

    async def predict(self, request, headers=None, response_headers=None):  # type: ignore[no-untyped-def]
        names = [output.name for output in request.request_outputs]
        feed = {each.name: each.as_numpy().astype(np.float32) for each in request.inputs}
        outputs = []
        arrays = await asyncio.to_thread(self._session.run, names, feed)
        for name, values in zip(names, arrays, strict=True):
            output = kserve.InferOutput(name, list(values.shape), "FP32")
            output.set_data_from_numpy(values, binary_data=True)
            outputs.append(output)
        return kserve.InferResponse(request.id, self.name, outputs)


def _described(tensor):  # type: ignore[no-untyped-def]
    shape = [size if isinstance(size, int) else -1 for size in tensor.shape]
    return {"name": tensor.name, "datatype": "FP32", "shape": shape}


if __name__ == "__main__":
    port, *models = sys.argv[1:]
    server = kserve.ModelServer(http_port=int(port), enable_grpc=False, workers=1)
    server.start([OnnxModel(path, name) for name, _, path in (each.partition("=") for each in models)])

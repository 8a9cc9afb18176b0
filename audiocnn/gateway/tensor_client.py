"""The caller's side of the Open Inference Protocol: requests with one FP32 tensor, and their responses.

Outputs are asked for as bytes. A server without binary tensors ignores that and answers JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from audiocnn.arrays import FloatArray
from audiocnn.gateway.tensors import HEADER_LENGTH


def write_request(
    name: str, values: FloatArray, outputs: Sequence[str], request_id: str, *, is_binary: bool
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request with the tensor `name`, as bytes or as JSON."""
    tensor: dict[str, Any] = {"name": name, "shape": values.shape, "datatype": "FP32"}
    wanted = [{"name": output, "parameters": {"binary_data": True}} for output in outputs]
    head = {"id": request_id, "inputs": [tensor], "outputs": wanted}
    if not is_binary:
        tensor["data"] = np.ascontiguousarray(values, np.float32).ravel()
        return orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY), {"Content-Type": "application/json"}
    data = values.astype("<f4").tobytes()
    tensor["parameters"] = {"binary_data_size": len(data)}
    text = orjson.dumps(head)
    return text + data, {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(text))}


def read_response(body: bytes, header_length: str | None) -> dict[str, FloatArray]:
    """The numeric outputs by name, float32. Raises `ValueError` for what is no such response."""
    end = len(body) if header_length is None else int(header_length)
    arrays = {}
    try:
        for row in orjson.loads(body[:end])["outputs"]:
            size = (row.get("parameters") or {}).get("binary_data_size")
            if size is None:
                values = np.array(row["data"], np.float32)
            elif row["datatype"] == "FP32":
                values, end = np.frombuffer(body[end : end + size], "<f4"), end + size
            else:
                raise ValueError(f"{row['name']} is {row['datatype']}, not FP32")
            arrays[str(row["name"])] = values.reshape(row["shape"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no outputs with name, datatype, shape and data ({error!r})") from error
    return arrays

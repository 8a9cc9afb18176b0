"""Requests and responses of the Open Inference Protocol (v2) and its binary tensor extension.

A body is a JSON object; with the header `Inference-Header-Content-Length: n` only its first n bytes are, and
the rest is tensors in the order in which they are listed. FP32 is little-endian; an element of BYTES is its
length in four bytes, little-endian, and its content. In JSON an element of BYTES is a string of base64 in a
request and text in a response.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from audiocnn import __version__
from audiocnn.arrays import FloatArray
from audiocnn.gateway.errors import BadRequestError
from audiocnn.request_body import read_base64

EXTENSIONS = ["binary_tensor_data", "model_configuration"]
HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_JSON_VALUES = 2_000_000  # parsing them blocks the process for 0.1 s
BYTES_PER_VALUE = 48  # of memory, for a number in JSON: the object, its place in two lists, float32 twice
_MAX_ELEMENTS = 1000  # of a BYTES tensor: sound files, MAX_FILES at most
_LENGTH = struct.Struct("<I")


class RequestInput(BaseModel):
    """An input tensor; `data`, or `binary_data_size` among its parameters."""

    model_config = ConfigDict(strict=True)

    name: str
    shape: list[Annotated[int, Field(ge=0)]] = Field(examples=[[1, 1]], max_length=8)
    datatype: str = Field(examples=["BYTES"])
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class RequestOutput(BaseModel):
    """An output tensor that is asked for; `"binary_data": true` among its parameters sends it as bytes."""

    model_config = ConfigDict(strict=True)

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """The JSON object of a request."""

    model_config = ConfigDict(strict=True)

    id: str | None = None
    parameters: dict[str, Any] = {}
    inputs: list[RequestInput] = Field(min_length=1)
    outputs: list[RequestOutput] = []


class TensorMetadata(BaseModel):
    """Name, data type and shape, -1 where it varies."""

    name: str = Field(examples=["waveform"])
    datatype: str = Field(examples=["FP32"])
    shape: list[int] = Field(examples=[[-1, -1]])


class ModelMetadata(BaseModel):
    """A model and its tensors."""

    name: str = Field(examples=["audiocnn"])
    versions: list[str] = Field(examples=[["1.0"]])
    platform: str = Field(examples=["torchserve"])
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """The server and the protocol extensions that it has."""

    name: str = Field(examples=["audiocnn-serve"])
    version: str = Field(examples=[__version__])
    extensions: list[str] = Field(examples=[EXTENSIONS])


class ResponseOutput(TensorMetadata):
    """An output tensor; without `data` it follows the JSON, `binary_data_size` bytes long."""

    data: list[float | str] | None = None
    parameters: dict[str, int] | None = None


class InferReply(BaseModel):
    """The JSON object of a response."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseOutput]


@dataclass(frozen=True)
class Tensor:
    """FP32 as float32 of its shape, BYTES as a flat list."""

    name: str
    shape: tuple[int, ...]
    values: FloatArray | Sequence[bytes]

    @property
    def datatype(self) -> str:
        """`FP32` or `BYTES`."""
        return "FP32" if isinstance(self.values, np.ndarray) else "BYTES"


def count_json_values(body: bytes, header_length: str | None) -> int:
    """At most so many values are in the JSON of a body; raises `BadRequestError` if it is too many."""
    end = _json_end(body, header_length)
    count = body.count(b",", 0, end) + body.count(b"[", 0, end)
    if count > MAX_JSON_VALUES:
        raise BadRequestError(
            f"The JSON has more than {MAX_JSON_VALUES:,} values: send binary tensors ({HEADER_LENGTH})."
        )
    return count


def read_request(body: bytes, header_length: str | None) -> tuple[InferRequest, list[Tensor]]:
    """The request and its input tensors; raises `BadRequestError` or `BadBase64Error`."""
    end = _json_end(body, header_length)
    try:
        request = InferRequest.model_validate(orjson.loads(memoryview(body)[:end]))
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"The body is not valid JSON: {str(error)[:80]}.") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the body"
        raise BadRequestError(f"{where}: {problem['msg']}.") from None
    binary = memoryview(body)[end:]
    tensors = []
    for each in request.inputs:
        tensor, binary = _read_tensor(each, binary)
        tensors.append(tensor)
    if len(binary):
        raise BadRequestError(f"{len(binary)} bytes after the last tensor belong to none.")
    return request, tensors


def _json_end(body: bytes, header_length: str | None) -> int:
    if header_length is None:
        return len(body)
    is_number = header_length.isascii() and header_length.isdigit() and len(header_length) < 12
    if not is_number or int(header_length) > len(body):
        raise BadRequestError(f"{HEADER_LENGTH} must be a number of bytes that the body has.")
    return int(header_length)


def _read_tensor(given: RequestInput, binary: memoryview) -> tuple[Tensor, memoryview]:
    """The tensor, and the binary data after it."""
    if given.datatype not in ("FP32", "BYTES"):
        raise BadRequestError(f"{given.name}: datatype {given.datatype[:20]!r}; FP32 and BYTES are possible.")
    size = given.parameters.get("binary_data_size")
    if (size is None) == (given.data is None):
        raise BadRequestError(f"{given.name}: send either data or binary_data_size.")
    if size is None:
        values = _from_json(given)
    else:
        if type(size) is not int or not 0 <= size <= len(binary):
            raise BadRequestError(f"{given.name}: binary_data_size must be a number of bytes in the body.")
        values = _from_binary(given, binary[:size])
        binary = binary[size:]
    expected = math.prod(given.shape)
    if len(values) != expected:
        raise BadRequestError(
            f"{given.name}: shape {given.shape} has {expected} elements, but {len(values)} were sent."
        )
    shape = tuple(given.shape)
    return Tensor(
        given.name, shape, values.reshape(shape) if isinstance(values, np.ndarray) else values
    ), binary


def _from_json(given: RequestInput) -> FloatArray | list[bytes]:
    # Of dtype object: as text, NumPy would give every element the size of the longest.
    elements = np.asarray(given.data, object).ravel()
    kinds = set(map(type, elements))
    if list in kinds:  # rows of different lengths
        raise BadRequestError(f"{given.name}: data must be an array of its shape, or flat.")
    if given.datatype == "BYTES":
        if not kinds <= {str}:
            raise BadRequestError(f"{given.name}: every element must be a string of base64.")
        _check_count(given.name, elements.size)
        return [read_base64(text, given.name) for text in elements]
    if not kinds <= {int, float}:
        raise BadRequestError(f"{given.name}: data must be numbers.")
    with np.errstate(over="ignore"):  # becomes infinite, which is refused as a sound
        return elements.astype(np.float32)


def _from_binary(given: RequestInput, data: memoryview) -> FloatArray | list[bytes]:
    if given.datatype == "BYTES":
        return _split(given.name, data)
    if len(data) % 4:
        raise BadRequestError(f"{given.name}: {len(data)} bytes are no whole number of FP32 values.")
    return np.frombuffer(data, "<f4")


def _split(name: str, data: memoryview) -> list[bytes]:
    elements = []
    while len(data):
        length = _LENGTH.unpack(data[:4])[0] if len(data) >= 4 else len(data)
        if length > len(data) - 4:
            raise BadRequestError(f"{name}: an element of BYTES is longer than the tensor's data.")
        elements.append(bytes(data[4 : 4 + length]))
        data = data[4 + length :]
        _check_count(name, len(elements))
    return elements


def _check_count(name: str, count: int) -> None:
    if count > _MAX_ELEMENTS:
        raise BadRequestError(f"{name}: at most {_MAX_ELEMENTS} elements of BYTES are possible.")


def write_response(head: dict[str, Any], outputs: Sequence[tuple[Tensor, bool]]) -> tuple[bytes, int | None]:
    """The body of a response, and the length of its JSON if a tensor is binary.

    `head` is what the object has beside `outputs`; the tensors come with whether each is sent as bytes.
    """
    rows: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for tensor, is_binary in outputs:
        row = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if is_binary:
            parts.append(_to_binary(tensor))
            rows.append(row | {"parameters": {"binary_data_size": len(parts[-1])}})
        else:
            rows.append(row | {"data": _to_json(tensor)})
    content = orjson.dumps(head | {"outputs": rows})
    return b"".join([content, *parts]), len(content) if parts else None


def _to_binary(tensor: Tensor) -> bytes:
    if isinstance(tensor.values, np.ndarray):
        return tensor.values.astype("<f4").tobytes()
    return b"".join(_LENGTH.pack(len(element)) + element for element in tensor.values)


def _to_json(tensor: Tensor) -> list[Any]:
    if isinstance(tensor.values, np.ndarray):
        return [float(str(value)) for value in tensor.values.ravel()]  # 0.64, not 0.6399999856948853
    return [element.decode("utf-8") for element in tensor.values]

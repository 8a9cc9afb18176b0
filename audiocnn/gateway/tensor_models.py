"""The two models of the Open Inference Protocol: from tensors to predictions and back.

`NAME` takes sound files as BYTES, `NAME-waveform` mono waveforms at the model's sample rate as FP32. Both are
answered by the served model, row by row.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from audiocnn.arrays import FloatArray
from audiocnn.errors import AudioError, BadOptionError, ServerError
from audiocnn.gateway import tensors
from audiocnn.gateway.errors import BadRequestError, GatewayError, Known, NotFoundError, NotReadyError
from audiocnn.gateway.model_info import ALL_CLASSES
from audiocnn.gateway.multipart import JSON_COPIES, json_limit, read_all, receiving, too_large
from audiocnn.gateway.service import PredictionService, given_options
from audiocnn.gateway.tensors import HEADER_LENGTH, InferRequest, Tensor
from audiocnn.options import OPTIONS

WAVEFORM = "-waveform"  # ends the name of the model that takes waveforms
_MAX_TOP_K = OPTIONS["top_k"]["maximum"]
# Name, data type and whether it is sent if no output is named; all are `(batch, -1)`.
_OUTPUTS = {
    "label": ("BYTES", True),
    "score": ("FP32", True),
    "probs": ("FP32", False),
    "embedding": ("FP32", False),
}


class Parameters(BaseModel):
    """The parameters of a request; `priority` and `timeout` are accepted and have no effect."""

    model_config = ConfigDict(extra="forbid")

    top_k: Annotated[int, Field(ge=1, le=_MAX_TOP_K)] = OPTIONS["top_k"]["default"]
    binary_data_output: bool = False
    priority: int = 0
    timeout: int = 0


@dataclass(frozen=True)
class Input:
    """The one input of a model, and how its rows become sound files."""

    name: str
    datatype: str
    row: int  # elements of a row; -1: any number
    to_files: Callable[[Tensor, int], list[bytes]]  # (tensor, sample rate in Hz)


def float_wav(waveform: FloatArray, sample_rate: int) -> bytes:
    """A mono WAV file of float32 samples `(num_samples,)`."""
    data = waveform.astype("<f4").tobytes()
    form = (16, 3, 1, sample_rate, 4 * sample_rate, 4, 32)  # of the chunk: float, mono, bytes a second, ...
    head = (b"RIFF", 36 + len(data), b"WAVE", b"fmt ", *form, b"data", len(data))
    return struct.pack("<4sI4s4sIHHIIHH4sI", *head) + data


def _files(tensor: Tensor, sample_rate: int) -> list[bytes]:
    """Elements of BYTES `(batch,)` or `(batch, 1)` are sound files already."""
    assert not isinstance(tensor.values, np.ndarray)
    return list(tensor.values)


def _wavs(tensor: Tensor, sample_rate: int) -> list[bytes]:
    """Rows of FP32 `(batch, num_samples)`."""
    assert isinstance(tensor.values, np.ndarray)
    return [float_wav(row, sample_rate) for row in tensor.values]


class TensorModels:
    """The two models over the routes' common service."""

    def __init__(self, gateway: PredictionService) -> None:
        self._gateway = gateway
        name = gateway.settings.torchserve_model
        self._inputs = {
            name: Input("audio", "BYTES", 1, _files),
            name + WAVEFORM: Input("waveform", "FP32", -1, _wavs),
        }

    def find(self, name: str) -> Input:
        """The model's input; raises `NotFoundError`."""
        if name not in self._inputs:
            raise NotFoundError(f"There is no model {name[:40]!r}: {' and '.join(self._inputs)} are served.")
        return self._inputs[name]

    async def version(self, asked: str | None) -> str:
        """The served version; raises `NotFoundError` if another one is asked for."""
        served = str((await self._gateway.model.describe())["model"]["version"])
        if asked not in (None, served):
            raise NotFoundError(f"There is no version {str(asked)[:40]!r}: {served} is served.")
        return served

    async def metadata(self, name: str, version: str | None) -> dict[str, Any]:
        """`GET /v2/models/NAME`."""
        model, served = self.find(name), await self.version(version)
        outputs = [
            {"name": output, "datatype": kind, "shape": [-1, -1]} for output, (kind, _) in _OUTPUTS.items()
        ]
        return {
            "name": name,
            "versions": [served],
            "platform": self._gateway.settings.backend,
            "inputs": [{"name": model.name, "datatype": model.datatype, "shape": [-1, model.row]}],
            "outputs": outputs,
        }

    async def config(self, name: str, version: str | None) -> dict[str, Any]:
        """`GET /v2/models/NAME/config`: Triton's model configuration; its parameters describe the model."""
        model, served = self.find(name), await self.version(version)
        classes = [label["name"] for label in await self._gateway.model.labels()]
        frontend = self._gateway.model.frontend
        values = {
            "class_names": json.dumps(classes, ensure_ascii=False),
            "sample_rate": str(frontend.sample_rate),
            "clip_seconds": f"{frontend.clip_seconds:g}",
            "version": served,
            "sha256": (await self._gateway.model.describe())["model"]["sha256"],
        }
        outputs = [
            {"name": each, "data_type": _triton_type(kind), "dims": [-1]}
            for each, (kind, _) in _OUTPUTS.items()
        ]
        return {
            "name": name,
            "platform": self._gateway.settings.backend,
            "max_batch_size": self._gateway.settings.max_files,
            "input": [{"name": model.name, "data_type": _triton_type(model.datatype), "dims": [model.row]}],
            "output": outputs,
            "parameters": {key: {"string_value": value} for key, value in values.items()},
        }

    async def infer(self, request: Request, name: str, version: str | None) -> Response:
        """`POST /v2/models/NAME/infer`."""
        model = self.find(name)
        if version is not None:
            await self.version(version)
        given_options(request, ())
        header_length = request.headers.get(HEADER_LENGTH)
        settings, budget = self._gateway.settings, self._gateway.budget
        copies = JSON_COPIES if header_length is None else 2
        limit = json_limit(settings)
        async with receiving(request, settings, budget, max_bytes=limit, copies=copies) as chunks:
            body = await read_all(chunks)
            values = tensors.count_json_values(body, header_length)
            with budget.holding(tensors.BYTES_PER_VALUE * values):
                asked, given = await asyncio.to_thread(tensors.read_request, body, header_length)
                wanted = read_outputs(asked)
                files = await asyncio.to_thread(self._to_files, model, given)
                answers = await self._predict(files, wanted, request)
        return await self._reply(name, asked, wanted, answers)

    def _to_files(self, model: Input, given: Sequence[Tensor]) -> list[bytes]:
        """The sound files in the one input tensor."""
        expected = (
            f"the one input {model.name}, {model.datatype} [batch, {'samples' if model.row < 0 else 1}]"
        )
        if len(given) != 1 or (given[0].name, given[0].datatype) != (model.name, model.datatype):
            raise BadRequestError(f"Send {expected}.")
        tensor, settings = given[0], self._gateway.settings
        is_flat = model.row == 1 and len(tensor.shape) == 1
        if not is_flat and (len(tensor.shape) != 2 or model.row not in (-1, tensor.shape[1])):
            raise BadRequestError(f"{model.name}: shape {list(tensor.shape)}; send {expected}.")
        if not 1 <= tensor.shape[0] <= settings.max_files:
            raise BadRequestError(f"{model.name}: a batch has 1 to {settings.max_files} rows.")
        files = model.to_files(tensor, self._gateway.model.frontend.sample_rate)
        if sum(map(len, files)) > settings.max_upload_bytes:
            raise too_large(settings)
        return files

    async def _predict(
        self, files: Sequence[bytes], wanted: Outputs, request: Request
    ) -> list[dict[str, Any]]:
        """The answer to every row; raises the first row's error if one has one."""
        state, options = request.state, wanted.options()

        async def ask(number: int, audio: bytes) -> dict[str, Any] | Known:
            own_id = state.request_id if len(files) == 1 else f"{state.request_id}-{number}"
            try:
                return await self._gateway.predict(audio, own_id, options, state.trace)
            except (GatewayError, AudioError, ServerError) as error:
                return error if len(files) == 1 else _of_row(error, number)

        answers: list[dict[str, Any]] = []
        for answer in await self._gateway.ask_each(files, ask, state.caller):
            if isinstance(answer, Known):
                raise answer
            answers.append(answer)
        return answers

    async def _reply(
        self, name: str, asked: InferRequest, wanted: Outputs, answers: Sequence[dict[str, Any]]
    ) -> Response:
        names = list(wanted.binary)
        order = [row["name"] for row in await self._gateway.model.labels()] if "probs" in names else []
        outputs = [(_output(each, wanted.top_k, order, answers), wanted.binary[each]) for each in names]
        head = {"model_name": name, "model_version": str(answers[0]["model"]["version"])}
        if asked.id is not None:
            head["id"] = asked.id
        content, length = tensors.write_response(head, outputs)
        if length is None:
            return Response(content, media_type="application/json")
        headers = {HEADER_LENGTH: str(length)}
        return Response(content, headers=headers, media_type="application/octet-stream")


@dataclass(frozen=True)
class Outputs:
    """What a request asks for."""

    top_k: int
    binary: dict[str, bool]  # output: whether it is sent as bytes

    def options(self) -> dict[str, Any]:
        """The options of the prediction behind it."""
        options: dict[str, Any] = {"top_k": ALL_CLASSES if "probs" in self.binary else self.top_k}
        return options | ({"embedding": True} if "embedding" in self.binary else {})


def read_outputs(asked: InferRequest) -> Outputs:
    """Outputs and parameters of a request; raises `BadRequestError` or `BadOptionError`."""
    try:
        parameters = Parameters.model_validate(asked.parameters)
    except ValidationError as error:
        problem = error.errors()[0]
        raise BadOptionError(f"parameters.{problem['loc'][0]}: {problem['msg']}.") from None
    defaults = [output for output, (_, is_default) in _OUTPUTS.items() if is_default]
    binary = dict.fromkeys(defaults, parameters.binary_data_output) if not asked.outputs else {}
    for output in asked.outputs:
        if output.name not in _OUTPUTS:
            raise BadRequestError(f"There is no output {output.name[:40]!r}: {', '.join(_OUTPUTS)}.")
        if unknown := output.parameters.keys() - {"binary_data"}:
            raise BadOptionError(f"{output.name}: the parameter {min(unknown)[:40]!r} is not supported.")
        is_binary = output.parameters.get("binary_data", parameters.binary_data_output)
        if not isinstance(is_binary, bool):
            raise BadOptionError(f"{output.name}: binary_data must be true or false.")
        binary[output.name] = is_binary
    return Outputs(parameters.top_k, binary)


def _output(name: str, top_k: int, order: Sequence[str], answers: Sequence[dict[str, Any]]) -> Tensor:
    """One output tensor `(batch, -1)` of all rows."""
    if name == "embedding":
        rows = [answer["embedding"] for answer in answers]
    elif name == "probs":
        rows = [_in_order(answer["predictions"], order) for answer in answers]
    else:
        key = {"label": "class", "score": "confidence"}[name]
        rows = [[row[key] for row in answer["predictions"][:top_k]] for answer in answers]
    shape = (len(rows), len(rows[0]))
    if name == "label":
        return Tensor(name, shape, [label.encode() for row in rows for label in row])
    return Tensor(name, shape, np.array(rows, np.float32).reshape(shape))


def _in_order(predictions: Sequence[dict[str, Any]], order: Sequence[str]) -> list[float]:
    confidences = {row["class"]: row["confidence"] for row in predictions}
    if confidences.keys() != set(order):
        raise NotReadyError("The served model has just changed: ask again.")
    return [confidences[name] for name in order]


def _of_row(error: Known, number: int) -> Known:
    """The same error; its message names the row."""
    error.args = (f"Row {number}: {error}",)
    return error


def _triton_type(datatype: str) -> str:
    return {"BYTES": "TYPE_STRING"}.get(datatype, f"TYPE_{datatype}")

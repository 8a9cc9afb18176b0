"""Tensors of the Open Inference Protocol, as JSON and as bytes."""

from __future__ import annotations

import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest

from audiocnn.errors import BadBase64Error, BadOptionError
from audiocnn.gateway.errors import BadRequestError
from audiocnn.gateway.tensor_client import read_response, write_request
from audiocnn.gateway.tensor_models import read_outputs
from audiocnn.gateway.tensors import (
    HEADER_LENGTH,
    MAX_JSON_VALUES,
    Tensor,
    count_json_values,
    read_request,
    write_response,
)


def body(*inputs: dict[str, Any], binary: bytes = b"", **more: Any) -> tuple[bytes, str | None]:
    """A request and the length of its JSON, if there is more."""
    head = json.dumps({"inputs": list(inputs), **more}).encode()
    return head + binary, str(len(head)) if binary else None


def fp32(**values: Any) -> dict[str, Any]:
    return {"name": "waveform", "datatype": "FP32", "shape": [2, 2], **values}


def raw(size: int, **values: Any) -> dict[str, Any]:
    return fp32(parameters={"binary_data_size": size}, **values)


FOUR = np.array([[1, 2], [3, 4]], np.float32)


@pytest.mark.parametrize(
    "request_body",
    [
        body(fp32(data=[1, 2, 3, 4])),
        body(fp32(data=[[1, 2.0], [3, 4]])),
        body(raw(16), binary=FOUR.tobytes()),
    ],
)
def test_floats_in_every_encoding(request_body: tuple[bytes, str | None]) -> None:
    _, (tensor,) = read_request(*request_body)
    assert isinstance(tensor.values, np.ndarray)
    assert tensor.values.dtype == np.float32
    np.testing.assert_array_equal(tensor.values, FOUR)


def test_tensors_are_taken_in_their_order() -> None:
    elements = b"".join(struct.pack("<I", len(each)) + each for each in (b"abc", b"", b"\xff"))
    sounds = {"name": "audio", "datatype": "BYTES", "shape": [3, 1]}
    sounds["parameters"] = {"binary_data_size": len(elements)}
    request, (first, second) = read_request(
        *body(sounds, raw(16), binary=elements + FOUR.tobytes(), id="mine", outputs=[{"name": "label"}])
    )
    assert (request.id, request.outputs[0].name) == ("mine", "label")
    assert list(first.values) == [b"abc", b"", b"\xff"]
    np.testing.assert_array_equal(second.values, FOUR)


def test_bytes_in_json_are_base64() -> None:
    _, (tensor,) = read_request(*body({"name": "audio", "datatype": "BYTES", "shape": [1], "data": ["/w=="]}))
    assert list(tensor.values) == [b"\xff"]


@pytest.mark.parametrize(
    ("request_body", "message"),
    [
        ((b"", None), "not valid JSON"),
        ((b"[]", None), "the body"),
        ((b"{}", None), "inputs"),
        ((b"{}", "3"), "Inference-Header-Content-Length"),
        ((b"{}", "-1"), "Inference-Header-Content-Length"),
        (body(), "inputs"),
        (body(fp32()), "either data or binary_data_size"),
        (body(fp32(data=[1, 2, 3])), "4 elements, but 3"),
        (body(fp32(data=[[1, 2], [3]])), "its shape, or flat"),
        (body(fp32(data=["1", "2", "3", "4"])), "numbers"),
        (body(fp32(data=[None, 2, 3, 4])), "numbers"),
        (body(fp32(data=[True, False, True, True])), "numbers"),
        (body(fp32(data=[1], shape=[-1])), "shape"),
        (body(fp32(data=[1], shape=["1"])), "shape"),
        (body(fp32(data=[1], datatype="INT8")), "FP32 and BYTES"),
        (body(raw(16), binary=FOUR.tobytes()[:-1]), "binary_data_size"),
        (body(raw(12), binary=FOUR.tobytes()), "4 elements, but 3"),
        (body(raw(16), binary=FOUR.tobytes() + b"more"), "belong to none"),
        (body(raw(15), binary=bytes(15)), "no whole number"),
        (body(raw(4, datatype="BYTES", shape=[1]), binary=b"\xff\xff\xff\xff"), "longer than"),
        (body(raw(2, datatype="BYTES", shape=[1]), binary=b"\x01\x00"), "longer than"),
        (body(raw(-1), binary=b"x"), "binary_data_size"),
        (body(fp32(datatype="BYTES", data=[1, 2, 3, 4])), "base64"),
        (body(fp32(data=[1], shape=[2**63 - 1] * 300)), "inputs.0.shape"),
        (body(fp32(data=[1], shape=[2**63 - 1] * 8)), "elements, but 1"),
        (body(fp32(datatype="BYTES", data=[""] * 1001)), "at most 1000"),
        (body(raw(8 << 10, datatype="BYTES"), binary=bytes(8 << 10)), "at most 1000"),
        ((b"[" * 100_000, None), "not valid JSON"),
    ],
)
def test_what_is_wrong_is_named(request_body: tuple[bytes, str | None], message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        read_request(*request_body)


def test_text_that_is_no_base64() -> None:
    with pytest.raises(BadBase64Error):
        read_request(*body({"name": "audio", "datatype": "BYTES", "shape": [1], "data": ["%"]}))


@pytest.mark.parametrize("datatype", ["BYTES", "FP32"])
def test_one_long_element_does_not_take_the_memory_of_all(datatype: str) -> None:
    data = ["A" * 2_000_000, *["AAAA"] * 63] if datatype == "BYTES" else ["A" * 2_000_000, *[1.0] * 63]
    request_body = body(fp32(datatype=datatype, shape=[64, 1], data=data))
    tracemalloc.start()
    try:
        if datatype == "BYTES":
            _, (tensor,) = read_request(*request_body)
            assert len(tensor.values[0]) == 1_500_000
        else:
            with pytest.raises(BadRequestError, match="numbers"):
                read_request(*request_body)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", ["false", 0, None, []])
def test_whether_an_output_is_binary_is_true_or_false(value: object) -> None:
    outputs = [{"name": "label", "parameters": {"binary_data": value}}]
    request, _ = read_request(*body(raw(16), binary=FOUR.tobytes(), outputs=outputs))
    with pytest.raises(BadOptionError, match="binary_data"):
        read_outputs(request)


def test_the_number_of_json_values_is_bounded() -> None:
    small = body(fp32(data=[1, 2, 3, 4]))
    assert 4 <= count_json_values(*small) <= 20
    with pytest.raises(BadRequestError, match="binary"):
        count_json_values(b"0," * (MAX_JSON_VALUES + 1), None)
    commas = b"," * (2 * MAX_JSON_VALUES)  # bytes after the JSON are no values
    assert count_json_values(small[0] + commas, str(len(small[0]))) == count_json_values(*small)


def test_a_response_has_text_or_bytes() -> None:
    label, score = Tensor("label", (1, 2), [b"dog", "hähn".encode()]), Tensor("score", (2, 2), FOUR / 10)
    content, length = write_response({"model_name": "m"}, [(label, False), (score, False)])
    assert length is None
    assert json.loads(content) == {
        "model_name": "m",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [1, 2], "data": ["dog", "hähn"]},
            {"name": "score", "datatype": "FP32", "shape": [2, 2], "data": [0.1, 0.2, 0.3, 0.4]},
        ],
    }
    content, length = write_response({}, [(label, True), (score, True)])
    assert length is not None
    rows = json.loads(content[:length])["outputs"]
    assert [row["parameters"]["binary_data_size"] for row in rows] == [4 + 3 + 4 + 5, 16]
    assert content[length:] == b"\3\0\0\0dog\5\0\0\0h\xc3\xa4hn" + (FOUR / 10).tobytes()


# --- the caller's side ---


@pytest.mark.parametrize("is_binary", [False, True])
def test_what_is_written_is_read(is_binary: bool) -> None:
    content, headers = write_request("waveform", FOUR, ["probs"], "mine", is_binary=is_binary)
    request, (tensor,) = read_request(content, headers.get(HEADER_LENGTH))
    assert (request.id, request.outputs[0].name, tensor.name) == ("mine", "probs", "waveform")
    np.testing.assert_array_equal(tensor.values, FOUR)
    outputs = [(Tensor(name, (2, 2), scale * FOUR), is_binary) for scale, name in enumerate(("a", "b"))]
    body_, length = write_response({"model_name": "m"}, outputs)
    read = read_response(body_, None if length is None else str(length))
    for scale, name in enumerate(("a", "b")):
        np.testing.assert_array_equal(read[name], scale * FOUR)


INT8 = (
    b'{"outputs": [{"name": "a", "datatype": "INT8", "shape": [1], "parameters": {"binary_data_size": 4}}]}'
)


@pytest.mark.parametrize(
    ("content", "length"),
    [
        (b"", None),
        (b"[]", None),
        (b'{"outputs": [1]}', None),
        (b'{"outputs": [{"name": "a", "shape": [2], "data": [1]}]}', None),
        (b'{"outputs": []}', "x"),
        (INT8 + b"1234", str(len(INT8))),
    ],
)
def test_what_is_no_response(content: bytes, length: str | None) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        read_response(content, length)

"""Request bodies of the handler: raw bytes, multipart and JSON."""

from __future__ import annotations

import base64
import json
import tracemalloc

import pytest

from audiocnn.config import Config
from audiocnn.errors import AudioError
from audiocnn.options import Options
from handler.audio_handler import read_request, request_id_of

CONFIG = Config(class_names=("dog", "cat"))
SOUND = bytes(range(256)) * 4
URL_SAFE = base64.urlsafe_b64encode(SOUND).decode()
TEXT = base64.b64encode(SOUND).decode()
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        pytest.param({"body": bytearray(SOUND)}, {}, id="raw"),
        pytest.param({"data": bytearray(SOUND)}, {}, id="multipart"),
        pytest.param({"file": bytearray(SOUND)}, {}, id="multipart file"),
        pytest.param({"files": bytearray(SOUND)}, {}, id="multipart files"),
        pytest.param({"body": SOUND}, {"Content-Encoding": "identity"}, id="not compressed"),
        pytest.param({"body": {"audio_data": TEXT}}, JSON, id="json audio_data"),
        pytest.param({"body": {"data": TEXT}}, JSON, id="json data"),
        pytest.param(
            {"body": json.dumps({"data": TEXT}).encode()},
            {"content-type": "application/json; charset=utf-8"},
            id="json bytes",
        ),
        pytest.param({"body": {"data": "data:audio/wav;base64," + TEXT}}, JSON, id="data URL"),
        pytest.param({"body": {"data": TEXT[:100] + "\n" + TEXT[100:]}}, JSON, id="wrapped lines"),
        pytest.param({"body": {"data": URL_SAFE}}, JSON, id="URL-safe"),
        pytest.param({"body": {"data": URL_SAFE.rstrip("=")}}, JSON, id="URL-safe, no padding"),
        pytest.param({"body": {"data": TEXT.rstrip("=")}}, JSON, id="no padding"),
        pytest.param({"body": {"data": ' Data:audio/ogg;x="a,b";base64,' + TEXT}}, JSON, id="other data URL"),
        pytest.param({"body": {"audio_data": None, "data": TEXT, "top_k": None}}, JSON, id="null"),
    ],
)
def test_the_same_bytes_arrive(fields: dict, headers: dict) -> None:
    audio, options = read_request(fields, headers, CONFIG)
    assert audio == SOUND
    assert options == Options.parse({}, CONFIG)


def test_base64_in_small_pieces_takes_no_more_memory() -> None:
    text = "AB  " * 1_000_000
    tracemalloc.start()
    audio, _ = read_request({"body": {"data": text}}, JSON, CONFIG)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(audio) == 1_500_000
    assert peak < 4 * len(text)


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({"body": SOUND}, {"X-Top-K": "1", "Accept": "*/*", "X-Other": "ignored"}),
        ({"body": SOUND}, {"x-top-k": "1"}),
        ({"data": SOUND, "top_k": bytearray(b"1")}, {"X-TOP-K": "2"}),
        ({"body": {"data": TEXT, "top_k": 1}}, JSON),
        ({"body": SOUND}, {"X-Top-K": "%31", "X-Classes": "cat%2Cdog"}),
    ],
)
def test_options_come_by_header_field_or_key(fields: dict, headers: dict) -> None:
    _, options = read_request(fields, headers, CONFIG)
    assert isinstance(options, Options)
    assert options.top_k == 1


@pytest.mark.parametrize(
    ("fields", "headers", "code", "word"),
    [
        ({"data": SOUND, "topk": b"1"}, {}, "bad_option", "topk"),
        ({"audio": SOUND}, {}, "bad_option", "audio_data"),
        ({"file": SOUND, "data": SOUND}, {}, "bad_option", "file and data"),
        ({"body": {"data": TEXT, "audio_data": TEXT}}, JSON, "bad_option", "data and audio_data"),
        ({"body": {"audio": TEXT}}, JSON, "bad_option", "audio_data"),
        ({"body": f'{{"data": "{TEXT}", "top_k": 1, "top_k": 2}}'.encode()}, JSON, "bad_option", "top_k"),
        ({"body": SOUND}, {"X-TopK": "2"}, "bad_option", "X-Top-K"),
        ({"body": SOUND}, {"x_top_k": "2", "X-Top_K": "2"}, "bad_option", "X-Top-K"),
        ({"body": SOUND}, {"Content-Encoding": "gzip"}, "unsupported_format", "gzip"),
        ({"body": {"data": TEXT[:-4] + "%3D="}}, JSON, "bad_base64", "'%'"),
        ({"body": {"data": "data:audio/wav,RIFF"}}, JSON, "bad_base64", "data: URL"),
        ({"body": {"data": "QQ==QQ=="}}, JSON, "bad_base64", "base64"),
        ({"body": {"audio_data": ""}}, JSON, "empty_audio", "audio_data"),
        ({"body": b""}, JSON, "empty_audio", "audio_data"),
        ({"body": b"{}"}, JSON, "empty_audio", "audio_data"),
        ({"body": {"data": TEXT, "sample_rate": 8000}}, JSON, "bad_option", "sample_rate"),
        ({"body": SOUND}, {"X-Top-K": "many"}, "bad_option", "many"),
        ({"body": {"data": "@@@"}}, JSON, "bad_base64", "base64"),
        ({"body": {"data": "\u00e4" * 4}}, JSON, "bad_base64", "base64"),
        ({"body": {"data": 7}}, JSON, "bad_base64", "string"),
        ({"body": b'{"data": '}, JSON, "bad_option", "JSON"),
        ({"body": b"[" * 100_000}, JSON, "bad_option", "JSON"),
        ({"body": json.dumps([TEXT]).encode()}, JSON, "bad_option", "object"),
        ({"body": b"[" + b"0," * 10_001 + b"0]"}, JSON, "bad_option", "values"),
        ({"data": {"a": 1}}, {}, "bad_option", "bytes"),
        ({"data": 10**13}, {}, "bad_option", "bytes"),
        ({"data": [1, 2]}, {}, "bad_option", "bytes"),
    ],
)
def test_a_bad_request_is_that_clips_error(fields: dict, headers: dict, code: str, word: str) -> None:
    _, error = read_request(fields, headers, CONFIG)
    assert isinstance(error, AudioError)
    assert error.code == code
    assert word in str(error)


def test_explanations_are_asked_for_by_torchserves_own_header() -> None:
    for headers, explain in (({}, False), ({"explain": "True"}, True), ({"X-Explain": "True"}, False)):
        _, options = read_request({"body": SOUND}, headers, CONFIG)
        assert isinstance(options, Options)
        assert options.explain is explain
    _, error = read_request({"data": SOUND, "explain": b"true"}, {}, CONFIG)
    assert isinstance(error, AudioError)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-Request-Id": "job-7"}, "job-7"),
        ({"x-request-id": "a\nb\x00c\u2028"}, "abc"),
        ({"X-Request-Id": "x" * 1000}, "x" * 128),
        ({"X-Request-Id": "\n"}, "own"),
        ({}, "own"),
    ],
)
def test_a_request_id_cannot_break_a_line_of_the_log(headers: dict, expected: str) -> None:
    assert request_id_of(headers, "own") == expected


def test_a_request_without_audio_is_empty() -> None:
    for fields, headers in (({}, {}), ({"body": b""}, {}), ({"top_k": b"3"}, {})):
        audio, options = read_request(fields, headers, CONFIG)
        assert audio == b""
        assert isinstance(options, Options)

"""What callers really send to the gateway: names of fields, file names, encodings, `HEAD`."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from typing import Any

import httpx
import pytest

from tests.helpers.gateways import RunningGateway
from tests.helpers.paths import ROOT
from tests.helpers.servers import Server

RAIN = (ROOT / "samples" / "rain.wav").read_bytes()
BASE64 = base64.b64encode(RAIN).decode()
JSON = {"Content-Type": "application/json"}


def part(disposition: str, content: bytes, *headers: str) -> bytes:
    """One part of a form."""
    head = "\r\n".join((f"--b\r\nContent-Disposition: form-data; {disposition}", *headers))
    return head.encode() + b"\r\n\r\n" + content + b"\r\n"


def form(*parts: bytes) -> dict[str, Any]:
    """A multipart request."""
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    return {"content": b"".join(parts) + b"--b--\r\n", "headers": headers}


SOUND = part('name="file"; filename="clip.wav"', RAIN)


def top(reply: httpx.Response) -> tuple[int, list[str]]:
    assert reply.status_code == 200, reply.text
    names = [row["class"] for row in reply.json()["predictions"]]
    return len(names), names[:1]


def refusal(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["message"]


# --- forms ---


@pytest.mark.parametrize(
    "disposition",
    [
        'name="file"',
        'name="files"',
        'name="data"',
        'name="audio_data"',
        "name=\"file\"; filename*=UTF-8''r%C3%A4in.wav",
        'name="file"; filename=""',
        "name=file; filename=clip.wav",
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/predict_batch"])
def test_a_sound_with_and_without_a_file_name(gateway: RunningGateway, disposition: str, path: str) -> None:
    reply = gateway.post(path, **form(part('name="top_k"', b"2"), part(disposition, RAIN)))
    assert reply.status_code == 200, reply.text
    answer = reply.json() if path == "/predict" else reply.json()["results"][0]
    assert [row["class"] for row in answer["predictions"]][:1] == ["rain"]
    assert len(answer["predictions"]) == 2


def test_the_same_names_on_torchserves_own_port(server: Server) -> None:
    for disposition in ('name="file"; filename="a.wav"', 'name="files"', "name=\"data\"; filename*=UTF-8''x"):
        assert top(httpx.post(server.predictions, **form(part(disposition, RAIN))))[1] == ["rain"]
    twice = httpx.post(server.predictions, files={"file": RAIN, "data": RAIN})
    assert refusal(twice)[0] == 400
    assert "more than once" in refusal(twice)[1]


@pytest.mark.parametrize(
    ("disposition", "expected"),
    [
        ("name=\"files\"; filename*=UTF-8''r%C3%A4in.wav", "r\u00e4in.wav"),
        ("name=\"files\"; filename*=iso-8859-1'de'r%E4in.wav", "r\u00e4in.wav"),
        ('name="files"; filename="a.wav"; filename*=UTF-8\'\'b.wav', "a.wav"),
        ("name=\"files\"; filename*=no-such-charset''a.wav", "a.wav"),
        ("name=\"files\"; filename*=unicode_escape''%5cud800.wav", "?.wav"),
        ('name="files"', ""),
    ],
)
def test_file_names_of_a_batch(gateway: RunningGateway, disposition: str, expected: str) -> None:
    reply = gateway.post("/predict_batch", **form(part(disposition, RAIN)))
    assert reply.json()["results"][0]["file"] == expected


@pytest.mark.parametrize(
    ("request_body", "named"),
    [
        (form(part('name="audio"; filename="a.wav"', RAIN)), ["'audio'", "file, files, data or audio_data"]),
        (form(part('name="sound"', RAIN)), ["'sound'", "file, files, data or audio_data"]),
        (form(part('name="File"', b"RIFF")), ["File", "file"]),
        (form(SOUND, part('name="data"', RAIN)), ["file, data"]),
        (form(SOUND, part('name="top_k"', b"1"), part('name="top_k"', b"2")), ["top_k", "more than once"]),
        (form(SOUND, part('name="topk"', b"1")), ["topk"]),
        (form(part('name="top_k"', b"1")), ["file", "top_k"]),
        (form(part('name="file"', b"UklG", "Content-Transfer-Encoding: base64")), ["base64"]),
        (
            form(SOUND, part('name="classes"', b"rain", "Content-Type: text/plain; charset=x")),
            ["charset", "'x'"],
        ),
        *(
            (form(SOUND, part('name="top_k"', b"1", f"Content-Type: a/b; charset={name}")), ["charset"])
            for name in ("undefined", "idna", '"a\0b"')
        ),
        *(
            (form(part(f"name=\"file\"; filename*={name}''%ff", RAIN)), ["filename*", "UTF-8"])
            for name in ("undefined", "idna", "a%00b")
        ),
        (form(SOUND, part('name="classes"', b"rain," * 2000)), ["options", "too long"]),
        (
            {"content": b"", "headers": {"Content-Type": f"multipart/form-data; boundary={'x' * 300}"}},
            ["malformed"],
        ),
    ],
)
def test_what_a_form_cannot_have_is_named(
    gateway: RunningGateway, request_body: dict[str, Any], named: list[str]
) -> None:
    status, message = refusal(gateway.post("/predict", **request_body))
    assert status == 400
    assert all(word in message for word in named), message


def test_options_of_a_form_with_types_and_file_names(gateway: RunningGateway) -> None:
    utf_16 = part('name="classes"', "rain,dog".encode("utf-16"), "Content-Type: text/plain; charset=utf-16")
    as_file = part('name="top_k"; filename="blob"', b"1", "Content-Type: application/octet-stream")
    assert top(gateway.post("/predict", **form(as_file, utf_16, SOUND))) == (1, ["rain"])


def test_a_form_without_its_boundary(gateway: RunningGateway) -> None:
    reply = gateway.post("/predict", content=RAIN, headers={"Content-Type": "multipart/form-data"})
    assert refusal(reply)[0] == 415
    assert "boundary" in refusal(reply)[1]


# --- options ---


def test_every_address_obeys_options_in_query_and_headers(gateway: RunningGateway) -> None:
    header = {"X-Top-K": "1"}
    assert top(gateway.post("/inference?top_k=1", json={"data": BASE64}))[0] == 1
    assert top(gateway.post("/inference", json={"data": BASE64}, headers=header))[0] == 1
    assert top(gateway.post("/inference?top_k=1", json={"data": BASE64, "top_k": 2}))[0] == 2
    for more in ({"params": {"top_k": 1}}, {"headers": header}):
        reply = gateway.post("/predict_batch", files={"files": RAIN}, **more)
        assert len(reply.json()["results"][0]["predictions"]) == 1


@pytest.mark.parametrize("path", ["/inference", "/predict_batch", "/spectrogram", "/predict"])
def test_every_address_names_what_is_no_option(gateway: RunningGateway, path: str) -> None:
    body: dict[str, Any] = {"json": {"data": BASE64}} if path == "/inference" else {"files": {"file": RAIN}}
    status, message = refusal(gateway.post(f"{path}?topk=1", **body))
    assert status == 400
    assert "'topk'" in message
    assert "X-Top-K" in refusal(gateway.post(path, headers={"X-TopK": "1"}, **body))[1]


def test_a_spectrogram_has_no_option_but_its_format(gateway: RunningGateway) -> None:
    reply = gateway.post("/spectrogram", files={"file": RAIN}, headers={"X-Top-K": "1"})
    assert refusal(reply)[0] == 400
    assert "top_k" in refusal(reply)[1]


def test_percent_encoded_values(gateway: RunningGateway) -> None:
    assert top(gateway.post("/predict?classes=rain%2Csiren&top_k=%31", content=RAIN)) == (1, ["rain"])
    assert top(gateway.post("/predict", content=RAIN, headers={"X-Classes": "rain%2Csiren"}))[0] == 2
    status, message = refusal(gateway.post("/predict?classes=gr%C3%BCn", content=RAIN))
    assert status == 400
    assert "gr\u00fcn" in message


# --- base64 ---


@pytest.mark.parametrize(
    "text",
    [
        BASE64.replace("+", "-").replace("/", "_"),
        BASE64.replace("+", "-").replace("/", "_").rstrip("="),
        BASE64.rstrip("="),
        "data:audio/wav;base64," + BASE64,
        "DATA:audio/wav;rate=44100;base64," + BASE64.replace("+", "-").rstrip("="),
        "\r\n".join(BASE64[n : n + 76] for n in range(0, len(BASE64), 76)),
    ],
    ids=["URL-safe", "URL-safe, no padding", "no padding", "data URL", "all of it", "lines"],
)
def test_base64_as_libraries_write_it(gateway: RunningGateway, text: str) -> None:
    assert top(gateway.post("/inference", json={"audio_data": text})) == (3, ["rain"])


@pytest.mark.parametrize("body", [b"", b"  ", b"{}", b'{"top_k": 2}', b'{"data": ""}', b'{"data": null}'])
def test_json_without_audio_says_what_to_send(gateway: RunningGateway, body: bytes) -> None:
    reply = gateway.post("/inference", content=body, headers=JSON)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "empty_audio")
    assert '{"audio_data": "<base64 of a sound file>"}' in refusal(reply)[1]


# --- Content-Encoding ---


@pytest.mark.parametrize("coding", ["gzip", "X-GZip", "identity"])
def test_encodings_that_are_read(gateway: RunningGateway, coding: str) -> None:
    def packed(content: bytes) -> bytes:
        return content if coding == "identity" else gzip.compress(content)

    encoding = {"Content-Encoding": coding}
    as_form = form(part('name="top_k"', b"2"), SOUND)
    assert top(gateway.post("/predict", content=packed(RAIN), headers=encoding))[1] == ["rain"]
    headers = as_form["headers"] | encoding
    assert top(gateway.post("/predict", content=packed(as_form["content"]), headers=headers))[0] == 2
    body = json.dumps({"data": BASE64}).encode()
    assert top(gateway.post("/inference", content=packed(body), headers=JSON | encoding))[0] == 3


@pytest.mark.parametrize(
    ("coding", "content", "status", "word"),
    [
        ("deflate", zlib.compress(RAIN), 415, "deflate"),
        ("br", RAIN, 415, "br"),
        ("gzip, gzip", gzip.compress(gzip.compress(RAIN)), 415, "gzip, gzip"),
        ("gzip", RAIN, 400, "not gzip"),
        ("gzip", gzip.compress(RAIN)[:-9], 400, "too early"),
        ("gzip", gzip.compress(RAIN) + b"more", 400, "behind"),
        ("gzip", gzip.compress(RAIN)[:-8] + bytes(8), 400, "not gzip"),
    ],
)
def test_encodings_that_are_refused_by_name(
    gateway: RunningGateway, coding: str, content: bytes, status: int, word: str
) -> None:
    got = refusal(gateway.post("/predict", content=content, headers={"Content-Encoding": coding}))
    assert got[0] == status
    assert word in got[1]


def test_two_headers_of_encodings_are_one_list(gateway: RunningGateway) -> None:
    headers = [("Content-Encoding", "identity"), ("Content-Encoding", "gzip")]
    status, message = refusal(gateway.post("/predict", content=RAIN, headers=headers))
    assert status == 415
    assert "identity, gzip" in message


def test_the_limit_of_uploads_holds_for_what_is_unpacked(strict: RunningGateway) -> None:
    headers = {"X-API-Key": "x" * 32, "Content-Encoding": "gzip"}
    whole = RAIN + bytes((1 << 20) - len(RAIN))
    assert strict.post("/predict", content=gzip.compress(whole), headers=headers).status_code == 200
    assert strict.post("/predict", content=gzip.compress(whole + b"x"), headers=headers).status_code == 413


def test_torchserves_own_port_names_the_encoding(server: Server) -> None:
    for body in ({"content": gzip.compress(RAIN)}, {"files": {"file": RAIN}}):
        status, message = refusal(
            httpx.post(server.predictions, headers={"Content-Encoding": "gzip"}, **body)
        )
        assert status == 415
        assert "gzip" in message


# --- other bodies ---


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (gzip.compress(RAIN), "gzip"),
        (BASE64.encode(), "base64"),
        (b"data:audio/wav;base64," + BASE64.encode(), "data: URL"),
        (json.dumps({"audio_data": BASE64}).encode(), "JSON"),
        (b"{}", "JSON"),
        (form(SOUND)["content"], "form"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"PK\x03\x04" + RAIN[:1000], "ZIP"),
    ],
)
def test_bytes_that_are_no_sound_are_named(gateway: RunningGateway, content: bytes, word: str) -> None:
    status, message = refusal(gateway.post("/predict", content=content))
    assert status == 415
    assert word in message


def test_json_is_sent_to_another_address(gateway: RunningGateway) -> None:
    status, message = refusal(gateway.post("/predict", json={"data": BASE64}))
    assert status == 415
    assert "/inference" in message


# --- HEAD ---


@pytest.mark.parametrize(
    "path",
    [
        *("/health", "/ready", "/labels", "/config", "/metrics", "/openapi.json", "/docs", "/"),
        *("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/audiocnn", "/v2/models/audiocnn/config"),
        *("/compat/environmental-audio/health", "/compat/environmental-audio/labels", "/examples/rain.wav"),
    ],
)
def test_head_is_get_without_a_body(gateway: RunningGateway, path: str) -> None:
    head, get = gateway.send("HEAD", path), gateway.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"] == get.headers["Content-Type"]
    if path != "/metrics":
        assert head.headers["Content-Length"] == str(len(get.content))


@pytest.mark.parametrize(
    ("path", "status", "allow"),
    [("/predict", 405, "POST, PUT"), ("/v2/models/audiocnn/infer", 405, "POST"), ("/nothing", 404, None)],
)
def test_head_where_there_is_no_get(
    gateway: RunningGateway, path: str, status: int, allow: str | None
) -> None:
    reply = gateway.send("HEAD", path)
    assert (reply.status_code, reply.content, reply.headers.get("Allow")) == (status, b"", allow)


def test_head_is_logged_and_counted_as_head(gateway: RunningGateway) -> None:
    gateway.send("HEAD", "/v2/models/audiocnn", headers={"X-Request-Id": "a-head"})
    counted = gateway.get("/metrics").text
    assert 'method="HEAD",route="/v2/models/{name}"' in counted
    assert gateway.send("DELETE", "/v2/models/audiocnn").headers["Allow"] == "GET, HEAD"

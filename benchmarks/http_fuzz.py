"""Fuzz inputs as HTTP requests: raw bodies, JSON and forms, to TorchServe and to the gateway.

Some of the JSON texts, forms and content types are damaged too.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import http.client
import json
import time
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np

from audiocnn.options import AUDIO_FIELDS, OPTION_NAMES
from benchmarks.branches import branches_of_answer
from benchmarks.fuzz_inputs import FuzzInput, Saved, fuzz_input
from benchmarks.load import JSON, OCTETS, as_headers
from benchmarks.mutations import Rng, choice, mutate
from benchmarks.sandbox import FuzzResult, first_prediction

# TorchServe 0.12 itself (Java, before any code of ours) answers 500 to a form that it cannot parse.
PARSER_500 = "TorchServe's form parser, 500"
GATEWAY_SHARE = 0.25
_ATTEMPTS = 20
_BROKEN = "the connection broke"
_TIMEOUT_SECONDS = 60.0
_BOUNDARY = "boundary-of-a-form"
_DAMAGED_SHARE = 0.15  # of the forms and JSON texts
_EXPLANATION_SHARE = 0.1
_GZIP_SHARE = 0.2
_FORM = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
_ODD_TYPES = ["", "audio/wav", "text/plain", "application/json", "x"]


@dataclass(frozen=True)
class FuzzRequest(Saved):
    """One HTTP request. `target` is `torchserve` or `gateway`."""

    number: int
    target: str
    path: str
    headers: dict[str, str]
    body: bytes
    how: str
    intact: str = ""

    @classmethod
    def raw(cls, one: FuzzInput) -> Self:
        """The file as the body of a request to TorchServe."""
        return cls(one.number, "torchserve", "/predictions/audiocnn", OCTETS, one.body, one.how, one.intact)


def fuzz_request(seed: int, number: int) -> FuzzRequest:
    """The request with this number, from the input with this number."""
    one, rng = fuzz_input(seed, number), np.random.default_rng([seed, number, 1])
    target = "gateway" if rng.random() < GATEWAY_SHARE else "torchserve"
    kinds = ["raw", "raw", "form", "json"] if target == "torchserve" else ["form", "form", "json"]
    if one.intact and target == "gateway":
        kinds = ["form"]  # /inference returns maps, and so float32 results
    kind = choice(kinds, rng)
    path = _path(target, kind, one, rng)
    damage = not one.intact and rng.random() < _DAMAGED_SHARE
    headers, body = _content(kind, one, choice(AUDIO_FIELDS, rng), rng, damage=damage)
    if target == "gateway" and rng.random() < _GZIP_SHARE:
        headers, body = headers | {"Content-Encoding": "gzip"}, _gzip(body, rng, damage=damage)
    how = f"{target} {kind}{', damaged' if damage else ''}; {one.how}"
    return FuzzRequest(number, target, path, headers, body, how, one.intact)


def _gzip(body: bytes, rng: Rng, *, damage: bool) -> bytes:
    packed = gzip.compress(body, 1, mtime=0)
    return mutate(packed, rng)[0] if damage else packed


def _path(target: str, kind: str, one: FuzzInput, rng: Rng) -> str:
    if target == "gateway":
        return "/inference" if kind == "json" else "/predict"
    is_explanation = not one.intact and rng.random() < _EXPLANATION_SHARE
    return "/explanations/audiocnn" if is_explanation else "/predictions/audiocnn"


def _content(
    kind: str, one: FuzzInput, field: str, rng: Rng, *, damage: bool
) -> tuple[dict[str, str], bytes]:
    if kind == "json":
        return JSON, _json_body(one, rng, damage=damage)
    if kind == "form":
        return _FORM, _form_body(one, field, rng, damage=damage)
    headers = OCTETS | _option_headers(one.options)
    return headers | ({"Content-Type": str(rng.choice(_ODD_TYPES))} if damage else {}), one.body


def _option_headers(options: dict[str, Any]) -> dict[str, str]:
    texts = {
        name: str(value).encode("latin-1", "replace").decode("latin-1")
        for name, value in options.items()
        if name in OPTION_NAMES
    }
    return as_headers({name: text.replace("\n", " ").replace("\r", " ") for name, text in texts.items()})


def _json_body(one: FuzzInput, rng: Rng, *, damage: bool) -> bytes:
    content = {"audio_data": base64.b64encode(one.body).decode()} | {
        name: value.decode("latin-1") if isinstance(value, bytes | bytearray) else value
        for name, value in one.options.items()
    }
    text = json.dumps(content).encode()
    damaged = [b"[" * 3000, b"null", b'"' + text[:99] + b'"', text[: len(text) // 2], b"\xff\xfe" + text]
    damaged += [b"{}", b"", text[:14] + b"@#" + text[16:], b'{"audio_data": 7}']
    damaged += [b'{"audio_data": {"a": 1}}', text + text]
    return choice(damaged, rng) if damage else text


def _form_body(one: FuzzInput, field: str, rng: Rng, *, damage: bool) -> bytes:
    body = b""
    for name, value in one.options.items():
        text = value if isinstance(value, bytes | bytearray) else str(value).encode("utf-8", "replace")
        body += _part(name, bytes(text))
    body += _part(field, one.body, "clip.wav") + f"--{_BOUNDARY}--\r\n".encode()
    if not damage:
        return body
    damaged = [body[: len(body) // 2], body[30:], body + body, body.replace(b"\r\n", b"\n"), b"--" + body]
    damaged += [b"", body.replace(b"form-data", b"form-dat"), body.replace(b'name="', b'nam="'), body[:-6]]
    damaged += [_part("data" * 500, one.body, "a") + body, _part(field, one.body) + body]
    return choice([*damaged, body.replace(b'"', b"", 1)], rng)


def _part(name: str, content: bytes, filename: str = "") -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"'
    disposition += f'; filename="{filename}"\r\nContent-Type: audio/wav' if filename else ""
    return f"--{_BOUNDARY}\r\n{disposition}\r\n\r\n".encode() + content + b"\r\n"


class RequestSender:
    """Sends requests, each over a connection of its own."""

    def __init__(self, torchserve: str, gateway: str) -> None:
        self._hosts = {"torchserve": urlsplit(torchserve).netloc, "gateway": urlsplit(gateway).netloc}

    def send(self, request: FuzzRequest) -> FuzzResult:
        """A status of 500 or more is a `server error`, and so is a connection that breaks at each attempt.

        A single broken connection is not: a server that rejects the headers may close it before the client
        has sent the body and read the reply.
        """
        for _ in range(_ATTEMPTS):
            result = self._send_once(request)
            if not result.why.endswith(_BROKEN):
                break
        return result

    def _send_once(self, request: FuzzRequest) -> FuzzResult:
        began = time.perf_counter()
        branches: tuple[str, ...] = ()
        connection = http.client.HTTPConnection(self._hosts[request.target], timeout=_TIMEOUT_SECONDS)
        try:
            connection.request("POST", request.path, request.body, request.headers)
            reply = connection.getresponse()
            content = reply.read()
            outcome, top, confidence, why = _outcome(reply.status, content)
            branches = _branches(content)
        except TimeoutError:
            outcome, top, confidence, why = "hang", "", 0.0, f"no reply after {_TIMEOUT_SECONDS:.0f} s"
        except (OSError, http.client.HTTPException) as error:
            outcome, top, confidence, why = "server error", "", 0.0, f"{error!r}, {_BROKEN}"
        finally:
            connection.close()
        why = f"{request.how}: {why}" if why else ""
        ms = 1000 * (time.perf_counter() - began)
        return FuzzResult(request.number, outcome, top, confidence, ms, why, branches)


def _branches(body: bytes) -> tuple[str, ...]:
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        return tuple(sorted(branches_of_answer(json.loads(body))))
    return ()


def _outcome(status: int, body: bytes) -> tuple[str, str, float, str]:
    if status == 500 and b'"ErrorDataDecoderException"' in body:
        return PARSER_500, "", 0.0, ""
    if status >= 500:
        return "server error", "", 0.0, f"{status} {body[:200]!r}"
    try:
        content = json.loads(body or b"{}")
    except ValueError:
        return "server error", "", 0.0, f"{status}, not JSON: {body[:100]!r}"
    if status == 200:
        return "answered", *first_prediction(content), ""
    error = content.get("error")
    return (error["code"] if error else f"TorchServe's {status}"), "", 0.0, ""

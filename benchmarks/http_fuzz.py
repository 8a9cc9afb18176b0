"""Mutants in HTTP requests: raw bodies, JSON and forms, to TorchServe and to the gateway; the requests
themselves are damaged now and then, too."""

from __future__ import annotations

import base64
import http.client
import json
import time
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np

from audiocnn.options import OPTION_NAMES
from benchmarks.mutations import Mutant, Rng, mutant
from benchmarks.sandbox import Verdict

# What TorchServe 0.12 itself says, in Java and before any code of ours, to a form that it cannot parse.
PARSER_500 = "TorchServe's form parser, 500"
GATEWAY_SHARE = 0.25
_TRIES = 5
_BROKEN = "the connection broke"
_SECONDS = 60.0
_BOUNDARY = "boundary-of-a-form"
_DAMAGED = 0.15  # of the forms and JSON texts
_JSON_TYPE = {"Content-Type": "application/json"}
_FORM_TYPE = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
_OCTETS = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True)
class Letter:
    """One HTTP request. `target` is `torchserve` or `gateway`."""

    number: int
    target: str
    path: str
    headers: dict[str, str]
    body: bytes
    how: str
    intact: str = ""

    @classmethod
    def plain(cls, one: Mutant) -> Self:
        """A clip as it is, to TorchServe."""
        return cls(one.number, "torchserve", "/predictions/audiocnn", _OCTETS, one.body, one.how, one.intact)

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return vars(self) | {"body": base64.b64encode(self.body).decode()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """From a file; what else is in it is ignored."""
        names = ("number", "target", "path", "headers", "how", "intact")
        return cls(**{name: content[name] for name in names}, body=base64.b64decode(content["body"]))


def letter(seed: int, number: int) -> Letter:
    """The request of this number, with the mutant of this number in it."""
    one, rng = mutant(seed, number), np.random.default_rng([seed, number, 1])
    target = "gateway" if rng.random() < GATEWAY_SHARE else "torchserve"
    ways = ["raw", "raw", "form", "json"] if target == "torchserve" else ["form", "form", "json"]
    if one.intact and target == "gateway":
        ways = ["form"]  # /inference asks for maps, and is answered in float32
    way = ways[int(rng.integers(len(ways)))]
    path = {"torchserve": "/predictions/audiocnn", "gateway": "/inference" if way == "json" else "/predict"}[
        target
    ]
    if target == "torchserve" and not one.intact and rng.random() < 0.1:
        path = "/explanations/audiocnn"
    damage = not one.intact and rng.random() < _DAMAGED
    field = "file" if target == "gateway" else "data"
    if way == "raw":
        headers, body = _OCTETS | _as_headers(one.options), one.body
        if damage:
            headers |= {
                "Content-Type": str(rng.choice(["", "audio/wav", "text/plain", "application/json", "x"]))
            }
    elif way == "json":
        headers, body = dict(_JSON_TYPE), _as_json(one, rng, damage=damage)
    else:
        headers, body = dict(_FORM_TYPE), _as_form(one, field, rng, damage=damage)
    how = f"{target} {way}{', damaged' if damage else ''}; {one.how}"
    return Letter(number, target, path, headers, body, how, one.intact)


def _as_headers(options: dict[str, Any]) -> dict[str, str]:
    texts = {
        name: str(value).encode("latin-1", "replace").decode("latin-1") for name, value in options.items()
    }
    return {
        "X-" + name.replace("_", "-").title(): text.replace("\n", " ").replace("\r", " ")
        for name, text in texts.items()
        if name in OPTION_NAMES
    }


def _as_json(one: Mutant, rng: Rng, *, damage: bool) -> bytes:
    content = {"audio_data": base64.b64encode(one.body).decode()} | {
        name: value.decode("latin-1") if isinstance(value, bytes | bytearray) else value
        for name, value in one.options.items()
    }
    text = json.dumps(content).encode()
    if not damage:
        return text
    pieces: tuple[bytes, ...] = (
        b"[" * 3000,
        b"null",
        b'"' + text[:99] + b'"',
        text[: len(text) // 2],
        b"\xff\xfe" + text,
        b"{}",
        b"",
    )
    pieces += (text[:14] + b"@#" + text[16:], b'{"audio_data": 7}', b'{"audio_data": {"a": 1}}', text + text)
    return pieces[int(rng.integers(len(pieces)))]


def _as_form(one: Mutant, field: str, rng: Rng, *, damage: bool) -> bytes:
    body = b""
    for name, value in one.options.items():
        text = value if isinstance(value, bytes | bytearray) else str(value).encode("utf-8", "replace")
        body += _part(name, bytes(text))
    body += _part(field, one.body, "clip.wav") + f"--{_BOUNDARY}--\r\n".encode()
    if not damage:
        return body
    pieces: tuple[bytes, ...] = (
        body[: len(body) // 2],
        body[30:],
        body + body,
        body.replace(b"\r\n", b"\n"),
        b"--" + body,
        b"",
    )
    pieces += (body.replace(b"form-data", b"form-dat"), body.replace(b'name="', b'nam="'), body[:-6])
    pieces += (
        _part("data" * 500, one.body, "a") + body,
        _part(field, one.body) + body,
        body.replace(b'"', b"", 1),
    )
    return pieces[int(rng.integers(len(pieces)))]


def _part(name: str, content: bytes, filename: str = "") -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"'
    disposition += f'; filename="{filename}"\r\nContent-Type: audio/wav' if filename else ""
    return f"--{_BOUNDARY}\r\n{disposition}\r\n\r\n".encode() + content + b"\r\n"


class Post:
    """Sends letters, each over a connection of its own."""

    def __init__(self, torchserve: str, gateway: str) -> None:
        self._hosts = {"torchserve": urlsplit(torchserve).netloc, "gateway": urlsplit(gateway).netloc}

    def send(self, one: Letter) -> Verdict:
        """What came of it: a status from 500 is a `server error`, so is a connection that always breaks.

        Who is refused for a header while the body is still on its way may lose the reply: that is TCP.
        """
        for _ in range(_TRIES):
            verdict = self._once(one)
            if not verdict.why.endswith(_BROKEN):
                break
        return verdict

    def _once(self, one: Letter) -> Verdict:
        began = time.perf_counter()
        connection = http.client.HTTPConnection(self._hosts[one.target], timeout=_SECONDS)
        try:
            connection.request("POST", one.path, one.body, one.headers)
            reply = connection.getresponse()
            outcome, top, confidence, why = _read(reply.status, reply.read())
        except TimeoutError:
            outcome, top, confidence, why = "hang", "", 0.0, f"no reply after {_SECONDS:.0f} s"
        except (OSError, http.client.HTTPException) as error:
            outcome, top, confidence, why = "server error", "", 0.0, f"{error!r}, {_BROKEN}"
        finally:
            connection.close()
        why = f"{one.how}: {why}" if why else ""
        return Verdict(one.number, outcome, top, confidence, 1000 * (time.perf_counter() - began), why)


def _read(status: int, body: bytes) -> tuple[str, str, float, str]:
    if status == 500 and b'"ErrorDataDecoderException"' in body:
        return PARSER_500, "", 0.0, ""
    if status >= 500:
        return "server error", "", 0.0, f"{status} {body[:200]!r}"
    try:
        content = json.loads(body or b"{}")
    except ValueError:
        return "server error", "", 0.0, f"{status}, and no JSON: {body[:100]!r}"
    if status == 200:
        first = (content["predictions"] or [{"class": "", "confidence": 0.0}])[0]
        return "answered", first["class"], first["confidence"], ""
    error = content.get("error")
    return (error["code"] if error else f"TorchServe's {status}"), "", 0.0, ""

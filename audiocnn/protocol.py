"""What every HTTP client of the server must know: names, how to read a reply, when to ask again.

Pure logic, but for the reading of a key file; `audiocnn.client` does the talking, once with requests
and once with httpx. Imports neither torch nor numpy.
"""

from __future__ import annotations

import base64
import binascii
import functools
import io
import json
import math
import random
import re
import ssl
import string
import struct
import time
import uuid
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from audiocnn.errors import (
    AudioError,
    AudioTooLong,
    BadBase64,
    BadOption,
    RequestRefused,
    ServerBusy,
    ServerError,
    ServerFailed,
    ServerUnreachable,
    TokenRefused,
)

OPTION_NAMES = (
    "top_k",
    "min_confidence",
    "classes",
    "feature_maps",
    "layers",
    "evidence",
    "class",
    "spectrogram",
    "waveform",
    "windows",
    "reduce_payload",
)
HEADERS = {"x-" + name.replace("_", "-"): name for name in OPTION_NAMES}

REQUEST_ID, TRACEPARENT, TRACESTATE = "x-request-id", "traceparent", "tracestate"

E = TypeVar("E", AudioError, ServerError)

_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 3.0
_MAX_TOKEN_REFUSALS = 3
_MAX_ID_LENGTH = 128
_MAX_JSON_VALUES = 10_000
_SPACES = string.whitespace.encode()  # in base64: line breaks
_MAX_TRACESTATE_LENGTH = 512
_VERSION_0 = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_LATER = re.compile(r"(?!00|ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_ERRORS = {cls.code: cls for cls in AudioError.__subclasses__()}


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Which model on which server, and how much patience one call has.

    An attempt gets more than TorchServe's `responseTimeout`, so that the server reports its own time-outs.
    Queue full and no connection are retried until the deadline; a worker that fails at this very
    request only a few times, for the clip may be what kills it.
    """

    url: str
    model: str = "audiocnn"
    version: str | None = None  # None: the default version
    deadline_seconds: float = 180.0
    attempt_seconds: float = 75.0
    connect_seconds: float = 5.0
    max_server_failures: int = 5

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname:
            raise ValueError(f"{self.url!r} is no address: expected one like http://127.0.0.1:8080")

    def address(self, verb: str) -> str:
        """Where to post to; `verb` is `predictions` or `explanations`."""
        version = f"/{self.version}" if self.version else ""
        return f"{self.url.rstrip('/')}/{verb}/{self.model}{version}"

    @property
    def is_local(self) -> bool:
        """On this machine, where no proxy is wanted whatever the environment says."""
        return urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")


class Exchange:
    """One request until it is answered: its headers, and after each failure how long to wait."""

    def __init__(
        self,
        endpoint: Endpoint,
        headers: Mapping[str, str],
        keys: KeyFile | None,
        request_id: str | None,
        on_retry: Callable[[ServerError], None] | None = None,
    ) -> None:
        self.request_id = request_id or str(uuid.uuid4())
        self.authorization: str | None = None  # of the last attempt
        self._headers = {
            **headers,
            "Content-Type": "application/octet-stream",
            "X-Request-Id": self.request_id,
        }
        self._endpoint = endpoint
        self._keys = keys
        self._on_retry = on_retry
        self._began = time.monotonic()
        self._attempts = self._failures = self._refusals = 0

    def next_headers(self) -> dict[str, str]:
        """Of the next attempt, with the key as it is now."""
        self.authorization = self._keys.authorization if self._keys else None
        return self._headers | ({"Authorization": self.authorization} if self.authorization else {})

    @property
    def seconds_left(self) -> float:
        """Until the deadline of the whole call."""
        return self._began + self._endpoint.deadline_seconds - time.monotonic()

    @property
    def timeout_seconds(self) -> float:
        """For the next attempt."""
        return max(0.001, min(self._endpoint.attempt_seconds, self.seconds_left))

    @property
    def connect_seconds(self) -> float:
        """For the connection of the next attempt."""
        return min(self._endpoint.connect_seconds, self.timeout_seconds)

    def wait_after(self, error: ServerError) -> float:
        """Seconds to wait before the next attempt; raises the error if there is to be none."""
        self._attempts += 1
        self._failures += isinstance(error, ServerFailed)
        self._refusals += isinstance(error, TokenRefused)
        backoff = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2.0 ** min(self._attempts - 1, 16))
        jittered = backoff * random.uniform(0.5, 1.0)  # noqa: S311
        wait = max(jittered, error.retry_after_seconds)
        is_hopeless = (
            not error.is_retryable
            or self._failures > self._endpoint.max_server_failures
            or self._refusals >= (_MAX_TOKEN_REFUSALS if self._keys else 1)
            or wait >= self.seconds_left
        )
        if is_hopeless:
            raise self.sign(error)
        if self._on_retry:
            self._on_retry(error)
        return wait

    def sign(self, error: E) -> E:
        """The error with the request id on it, and in what a traceback prints."""
        error.request_id = self.request_id
        error.add_note(f"X-Request-Id: {self.request_id}, attempts: {max(self._attempts, 1)}")
        return error


def printable_id(text: str) -> str:
    """A caller's `X-Request-Id` as far as it can be printed in one line; may be empty."""
    return "".join(c for c in text if c.isascii() and c.isprintable())[:_MAX_ID_LENGTH].strip()


def trace_id(traceparent: str | None) -> str | None:
    """The trace of a `traceparent` header (W3C Trace Context), 32 hex digits; None if it is not valid."""
    text = (traceparent or "").strip()
    match = len(text) <= _MAX_TRACESTATE_LENGTH and (_VERSION_0.fullmatch(text) or _LATER.fullmatch(text))
    return match.group(1) if match else None


def trace_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """What to pass on of a request's trace context, unchanged; nothing if its `traceparent` is not valid.

    `headers` must have lower-case names, or find names in any case.
    """
    parent, state = headers.get(TRACEPARENT, "").strip(), headers.get(TRACESTATE, "")
    if trace_id(parent) is None:
        return {}
    is_clean = state.isascii() and state.isprintable() and 0 < len(state) <= _MAX_TRACESTATE_LENGTH
    return {TRACEPARENT: parent} | ({TRACESTATE: state} if is_clean else {})


def option_headers(options: Mapping[str, object]) -> dict[str, str]:
    """Options as headers; raises `BadOption` for a name that does not exist (a header would be ignored).

    None means not given; `class` is a word of Python's and may be written `class_`.
    """
    headers = {}
    for given, value in options.items():
        name = given.rstrip("_")
        if name not in OPTION_NAMES:
            raise BadOption(f"There is no option {given!r}. Options: {', '.join(OPTION_NAMES)}.")
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        text = text.strip()  # HTTP libraries refuse a header's value with spaces around it
        if not (text.isascii() and text.isprintable()):
            raise BadOption(f"{name}={text!r} cannot be sent: a header carries printable ASCII only.")
        if value is not None:
            headers["X-" + name.replace("_", "-").title()] = text
    return headers


def read_json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; raises `BadOption` if there is none.

    Only the audio may be large: a body of ten million small values would take gigabytes to parse.
    """
    if sum(map(body.count, b"[{,:")) > _MAX_JSON_VALUES:
        raise BadOption(f"The JSON body has too many values: at most {_MAX_JSON_VALUES:,}.")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadOption(f"The body is not valid JSON: {str(error)[:80]}.") from error
    if not isinstance(content, dict):
        raise BadOption('The JSON body must be an object: {"audio_data": "<base64>"}.')
    return content


def read_base64(content: Mapping[str, Any]) -> bytes:
    """The clip in a JSON request, `audio_data` or `data`; raises `BadBase64`. None of them: no bytes."""
    text = content.get("audio_data", content.get("data", ""))
    if not isinstance(text, str):
        raise BadBase64("audio_data must be a string of base64.")
    if text.startswith("data:"):  # what a browser's FileReader writes in front
        text = text.partition(",")[2]
    try:
        # Not `text.split()`: of "AB AB ..." it makes a gigabyte of pieces.
        return base64.b64decode(text.encode("ascii").translate(None, _SPACES), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadBase64(f"audio_data is not base64: {error}.") from error


def read_reply(status: int, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """The answer; an `AudioError` if the clip or an option is at fault, a `ServerError` for the rest.

    `headers` must find names in any case. Understands our errors, `{"error": {"code", "message"}}`, and
    TorchServe's own, `{"code", "type", "message"}`; its 413 has no body at all.
    """
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    reply = content if isinstance(content, dict) else {}
    if 200 <= status < 300:
        if not isinstance(content, dict):
            raise ServerFailed(f"the reply is not a JSON object: {body[:60]!r}", status=status)
        return reply
    ours = reply.get("error")
    if isinstance(ours, dict) and status < 500:
        raise _clip_error(status, str(ours.get("code")), str(ours.get("message")))
    if status == 413:
        raise AudioTooLong(
            "The server takes no body of this size (max_request_size): send FLAC, or the clip in parts."
        )
    message = ours.get("message") if isinstance(ours, dict) else reply.get("message")
    raise _server_error(status, str(reply.get("type", "")), str(message or body[:200]), headers)


def _clip_error(status: int, code: str, message: str) -> AudioError:
    error = _ERRORS.get(code, AudioError)(message)
    error.code, error.status = code, status
    return error


def _server_error(status: int, kind: str, message: str, headers: Mapping[str, str]) -> ServerError:
    if status == 503 and kind != "InternalServerException":  # that: the handler raised on the whole batch
        cls: type[ServerError] = ServerBusy
        if "has no worker" in message:  # TorchServe says so for a full queue as well
            message = f"the queue is full, or no worker is ready (TorchServe: {message})"
    elif status >= 500:
        cls = ServerFailed
    elif status == 401 or kind == "InvalidKeyException":
        cls = TokenRefused
    else:
        cls = RequestRefused
    error = cls(f"{status}: {message}", status=status)
    error.retry_after_seconds = _retry_after(headers.get("Retry-After", ""))
    return error


def _retry_after(text: str) -> float:
    """Seconds; the header is a number of them or a date."""
    if text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):  # no date, or one without a time zone
        return 0.0
    return max(0.0, seconds)


def unreachable(error: Exception) -> ServerUnreachable:
    """The library's error as ours; a certificate that is not trusted will not be so a second later."""
    result = ServerUnreachable(f"no reply from the server: {error or type(error).__name__}")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(cause):
            result.is_retryable = False
        cause = cause.__cause__ or cause.__context__
    return result


class KeyFile:
    """TorchServe's `key_file.json`: keys that expire, and are new after every start of the server."""

    def __init__(self, path: Path, kind: str = "inference") -> None:
        self._path = path
        self._kind = kind
        self._key = self._read(kind)

    @property
    def authorization(self) -> str | None:
        """The header's value with the key that was read last; None if the file had none."""
        return f"Bearer {self._key}" if self._key else None

    def renewal(self) -> tuple[str, dict[str, str]]:
        """Path and headers of the management API's request for a new key, which it writes to the file."""
        return f"/token?type={self._kind}", {"Authorization": f"Bearer {self._read('API')}"}

    def reload(self, refused: str | None) -> bool:
        """Read the file again; whether its key is another than the one that was refused."""
        self._key = self._read(self._kind)
        return self._key is not None and self.authorization != refused

    def _read(self, name: str) -> str | None:
        try:
            return str(json.loads(self._path.read_text(encoding="utf-8"))[name]["key"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # missing, or being written this moment: the refusal that follows leads back here


@functools.cache
def probe_wav() -> bytes:
    """A WAV file of 0.1 s with a 440 Hz tone: enough for a real prediction."""
    sample_rate = 16_000
    samples = [round(8000 * math.sin(2 * math.pi * 440 * n / sample_rate)) for n in range(sample_rate // 10)]
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(sample_rate)
        writer.writeframes(struct.pack(f"<{len(samples)}h", *samples))
    return file.getvalue()

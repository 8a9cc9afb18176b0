"""Retry rules: deadlines, back-off, and the mapping of replies to errors of the clip or of the server.

No input or output: `audiocnn.client.client` and `async_client` send the requests.
"""

from __future__ import annotations

import json
import random
import ssl
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from audiocnn.client.tokens import KeyFile
from audiocnn.errors import (
    AudioError,
    AudioTooLongError,
    RequestRefusedError,
    ServerBusyError,
    ServerError,
    ServerFailedError,
    ServerUnreachableError,
    TokenRefusedError,
    error_class,
)

E = TypeVar("E", AudioError, ServerError)
_LONGEST_WAIT_SECONDS = 3.0
_MAX_TOKEN_REFUSALS = 3


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Server, model and time limits of one call.

    `attempt_seconds` exceeds TorchServe's `responseTimeout` (60 s), so that the server reports its own
    time-outs. A full queue and a missing connection are retried until the deadline, a failed worker at most
    `max_server_failures` times, because the clip may cause the failure.
    """

    url: str
    model: str = "audiocnn"
    version: str | None = None  # None: the default version
    deadline_seconds: float = 180.0
    attempt_seconds: float = 75.0
    connect_seconds: float = 5.0
    max_server_failures: int = 5
    first_wait_seconds: float = 0.1

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname:
            raise ValueError(f"invalid address {self.url!r}: expected one like http://127.0.0.1:8080")

    def address(self, verb: str) -> str:
        """URL of the request; `verb` is `predictions` or `explanations`."""
        version = f"/{self.version}" if self.version else ""
        return f"{self.url.rstrip('/')}/{verb}/{self.model}{version}"

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine, so that no proxy is used."""
        return urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")


class RequestState:
    """State of one request: headers, deadline and failures so far."""

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
        self._last_reply: ServerError | None = None

    def next_headers(self) -> dict[str, str]:
        """Headers of the next attempt, with the current key."""
        self.authorization = self._keys.authorization if self._keys else None
        return self._headers | ({"Authorization": self.authorization} if self.authorization else {})

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline of the call."""
        return self._began + self._endpoint.deadline_seconds - time.monotonic()

    @property
    def timeout_seconds(self) -> float:
        """Time limit of the next attempt."""
        return max(0.001, min(self._endpoint.attempt_seconds, self.seconds_left))

    @property
    def connect_seconds(self) -> float:
        """Time limit of the next attempt's connection."""
        return min(self._endpoint.connect_seconds, self.timeout_seconds)

    def backoff_seconds(self, error: ServerError) -> float:
        """Seconds until the next attempt; raises the error if there is no further attempt."""
        self._attempts += 1
        self._failures += isinstance(error, ServerFailedError)
        self._refusals += isinstance(error, TokenRefusedError)
        doubled = self._endpoint.first_wait_seconds * 2.0 ** min(self._attempts - 1, 16)
        backoff = min(_LONGEST_WAIT_SECONDS, doubled)
        jittered = backoff * random.uniform(0.5, 1.0)  # noqa: S311
        wait = max(jittered, error.retry_after_seconds)
        is_final = (
            not error.is_retryable
            or self._failures > self._endpoint.max_server_failures
            or self._refusals >= (_MAX_TOKEN_REFUSALS if self._keys else 1)
            or wait >= self.seconds_left
        )
        if is_final:
            is_cut_off = isinstance(error, ServerUnreachableError) and self.seconds_left <= 0
            raise self.sign(self._last_reply or error if is_cut_off else error)
        if not isinstance(error, ServerUnreachableError):
            self._last_reply = error  # says more than that the deadline cut an attempt off
        if self._on_retry:
            self._on_retry(error)
        return wait

    def sign(self, error: E) -> E:
        """Add the request id to the error and to its traceback."""
        error.request_id = self.request_id
        error.add_note(f"X-Request-Id: {self.request_id}, attempts: {max(self._attempts, 1)}")
        return error


def read_reply(status: int, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """The answer. Raises an `AudioError` for an invalid clip or option, else a `ServerError`.

    `headers` must be case-insensitive. The errors are `{"error": {"code", "message"}}` of the handler and the
    gateway, or `{"code", "type", "message"}` of TorchServe, whose 413 has no body.
    """
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    reply = content if isinstance(content, dict) else {}
    if 200 <= status < 300:
        if not isinstance(content, dict):
            raise ServerFailedError(f"the reply is not a JSON object: {body[:60]!r}", status=status)
        return reply
    ours = reply.get("error")
    if isinstance(ours, dict) and status < 500:
        raise _clip_error(status, str(ours.get("code")), str(ours.get("message")))
    if status == 413:
        raise AudioTooLongError("The body is larger than max_request_size: send FLAC, or split the clip.")
    message = ours.get("message") if isinstance(ours, dict) else reply.get("message")
    raise server_error(status, str(reply.get("type", "")), str(message or body[:200]), headers)


def _clip_error(status: int, code: str, message: str) -> AudioError:
    error = error_class(code)(message)
    error.code, error.status = code, status
    return error


def server_error(status: int, kind: str, message: str, headers: Mapping[str, str]) -> ServerError:
    """The error for the status of a reply; `kind` is TorchServe's `type`, empty for other servers."""
    if status == 503 and kind != "InternalServerException":  # that one: the handler raised an exception
        cls: type[ServerError] = ServerBusyError
        if "has no worker" in message:  # TorchServe's text for a full queue as well
            message = f"the queue is full, or no worker is ready (TorchServe: {message})"
    elif status >= 500:
        cls = ServerFailedError
    elif status == 401 or kind == "InvalidKeyException":
        cls = TokenRefusedError
    else:
        cls = RequestRefusedError
    error = cls(f"{status}: {message}", status=status)
    error.retry_after_seconds = _retry_after(headers.get("Retry-After", ""))
    return error


def _retry_after(text: str) -> float:
    """Seconds of a `Retry-After` header, which is a number or a date; 0 if it is neither."""
    if text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):  # not a date, or without a time zone
        return 0.0
    return max(0.0, seconds)


def unreachable(error: Exception) -> ServerUnreachableError:
    """The error for a failed connection; not retryable if the certificate is not trusted."""
    result = ServerUnreachableError(f"no reply from the server: {str(error) or type(error).__name__}")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(cause):
            result.is_retryable = False
        cause = cause.__cause__ or cause.__context__
    return result

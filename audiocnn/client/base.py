"""The common part of `Client` and `AsyncClient`, without input and output."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import httpx

from audiocnn.client.retry import Endpoint, RequestState, read_reply, unreachable
from audiocnn.client.tokens import KeyFile
from audiocnn.errors import AudioError, BadOptionError, ServerError, TokenRefusedError
from audiocnn.options import option_headers

Answer = dict[str, Any]
Options = Mapping[str, object] | None
Trace = Mapping[str, str] | None
Clip = str | os.PathLike[str] | bytes | bytearray | memoryview
C = TypeVar("C", bound=Clip)
Failure = AudioError | ServerError | OSError

RENEWAL_SECONDS = 5.0
POOL_SIZE = 64
_MAX_OPTION_CHARACTERS = 6000  # in headers, of which TorchServe reads 8 KiB


@dataclass(frozen=True)
class Attempt:
    """Send the request: returns an `httpx.Response` or throws one of `TRANSPORT_ERRORS`."""

    timeout_seconds: float
    connect_seconds: float
    headers: dict[str, str]


@dataclass(frozen=True)
class Renewal:
    """Replace the refused token."""

    refused: str | None


@dataclass(frozen=True)
class Pause:
    """Wait before the next attempt."""

    seconds: float


Steps = Generator[Attempt | Renewal | Pause, Any, Answer]
TRANSPORT_ERRORS = (httpx.TransportError, httpx.DecodingError, ConnectionError, TimeoutError)


def read_clip(clip: Clip) -> bytes:
    """The bytes, or the content of the file at that path. Raises `OSError`."""
    return bytes(clip) if isinstance(clip, bytes | bytearray | memoryview) else Path(clip).read_bytes()


@cache
def _tls_context(trust_env: bool) -> ssl.SSLContext:
    """For all clients without a `ca_file`: to read the certificates takes longer than a request."""
    return httpx.create_ssl_context(trust_env=trust_env)


class BaseClient:
    """Settings, and the steps of a request as a generator that the clients run."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        model: str = "audiocnn",
        version: str | None = None,
        deadline_seconds: float = 180.0,
        attempt_seconds: float = 75.0,
        max_server_failures: int = 5,
        first_wait_seconds: float = 0.1,
        key_file: str | Path | None = None,
        management: str | None = None,
        ca_file: str | Path | None = None,
        on_retry: Callable[[ServerError], None] | None = None,
    ) -> None:
        """`version` None is the default version.

        `deadline_seconds` bounds a call with all attempts and pauses, `attempt_seconds` the time without
        data in one attempt. After `max_server_failures` failures of a worker on a clip the error is raised.
        `first_wait_seconds` is the pause before the second attempt, doubled for each one after it, up to 3 s.
        `key_file` is TorchServe's `key_file.json`, if it requires tokens; with the `management` address an
        expired key is renewed, without it the file is only read again. `ca_file` is a certificate to trust,
        such as a self-signed one. `on_retry` is called with the error before each retry. Raises `ValueError`
        for an invalid `url`.
        """
        self._endpoint = Endpoint(
            url=url,
            model=model,
            version=version,
            deadline_seconds=deadline_seconds,
            attempt_seconds=attempt_seconds,
            max_server_failures=max_server_failures,
            first_wait_seconds=first_wait_seconds,
        )
        self._keys = KeyFile(Path(key_file)) if key_file else None
        self._management = management.rstrip("/") if management else None
        self._ca_file = str(ca_file) if ca_file else None
        self._on_retry = on_retry

    def _http_options(self) -> dict[str, Any]:
        """Arguments of the httpx client; no proxy for a server on this machine."""
        trust_env = not self._endpoint.is_local
        own = ssl.create_default_context(cafile=self._ca_file) if self._ca_file else None
        return {
            "trust_env": trust_env,
            "verify": own or _tls_context(trust_env),
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=POOL_SIZE),
        }

    def _state(self, options: Options, trace: Trace, request_id: str | None) -> RequestState:
        """The state of a new request. Raises `BadOptionError` for options that are unknown or too long."""
        headers = option_headers(options or {})
        if sum(map(len, headers.values())) > _MAX_OPTION_CHARACTERS:
            raise BadOptionError(f"The options are too long: at most {_MAX_OPTION_CHARACTERS:,} characters.")
        headers |= dict(trace or {})
        return RequestState(self._endpoint, headers, self._keys, request_id, self._on_retry)

    def _probe_state(self, timeout_seconds: float) -> RequestState:
        """The state of a readiness check."""
        endpoint = replace(self._endpoint, deadline_seconds=timeout_seconds)
        return RequestState(endpoint, {}, self._keys, None)

    def _steps(self, state: RequestState) -> Steps:
        """The steps until there is an answer; raises as `Client.predict` does."""
        while True:
            try:
                return (yield from self._one(state))
            except AudioError as error:
                raise state.sign(error) from None
            except ServerError as error:
                seconds = state.backoff_seconds(error)
                if isinstance(error, TokenRefusedError):
                    yield Renewal(state.authorization)
            yield Pause(seconds)

    def _probe_steps(self, state: RequestState) -> Steps:
        """The steps of a readiness check: one attempt, two if the token was refused."""
        try:
            return (yield from self._one(state))
        except TokenRefusedError:
            yield Renewal(state.authorization)
        return (yield from self._one(state))

    def _one(self, state: RequestState) -> Steps:
        try:
            reply = yield Attempt(state.timeout_seconds, state.connect_seconds, state.next_headers())
        except TRANSPORT_ERRORS as error:
            raise unreachable(error) from error
        return read_reply(reply.status_code, reply.headers, reply.content)

"""The common part of `Client` and `AsyncClient`; it does no input or output."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import httpx

from audiocnn.client.retry import Endpoint, RequestState, read_reply, unreachable
from audiocnn.client.tokens import KeyFile
from audiocnn.errors import AudioError, ServerError, TokenRefusedError
from audiocnn.options import option_headers

Answer = dict[str, Any]
Options = Mapping[str, object] | None
Trace = Mapping[str, str] | None
Clip = str | os.PathLike[str] | bytes | bytearray | memoryview
C = TypeVar("C", bound=Clip)
Failure = AudioError | ServerError | OSError

RENEWAL_SECONDS = 5.0
POOL_SIZE = 64


@dataclass(frozen=True)
class Attempt:
    """Send the request now: the answer is an `httpx.Response`, or one of `TRANSPORT_ERRORS` is thrown."""

    timeout_seconds: float
    connect_seconds: float
    headers: dict[str, str]


@dataclass(frozen=True)
class Renewal:
    """Get another token than this one."""

    refused: str | None


@dataclass(frozen=True)
class Pause:
    """Wait before the next attempt."""

    seconds: float


Steps = Generator[Attempt | Renewal | Pause, Any, Answer]
TRANSPORT_ERRORS = (httpx.TransportError, httpx.DecodingError, TimeoutError)


def read_clip(clip: Clip) -> bytes:
    """The bytes, or those of the file whose path it is."""
    return bytes(clip) if isinstance(clip, bytes | bytearray | memoryview) else Path(clip).read_bytes()


class BaseClient:
    """Settings, and what to do next in a request; the clients do it."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        model: str = "audiocnn",
        version: str | None = None,
        deadline_seconds: float = 180.0,
        attempt_seconds: float = 75.0,
        max_server_failures: int = 5,
        key_file: str | Path | None = None,
        management: str | None = None,
        ca_file: str | Path | None = None,
        on_retry: Callable[[ServerError], None] | None = None,
    ) -> None:
        """Where to ask, and how patiently.

        `deadline_seconds` bounds a call with all its attempts and pauses, `attempt_seconds` one attempt's
        silence. `max_server_failures` is how often a worker may die or fail at one clip before its error
        is raised. `key_file` is TorchServe's `key_file.json`, if it asks for tokens; with the `management`
        address an expired key is renewed, without it the file is only read again. `ca_file` is the
        certificate to trust, for a server that made its own. `on_retry` is called with the error before
        every pause after which a clip is asked for again.
        """
        self._endpoint = Endpoint(
            url=url,
            model=model,
            version=version,
            deadline_seconds=deadline_seconds,
            attempt_seconds=attempt_seconds,
            max_server_failures=max_server_failures,
        )
        self._keys = KeyFile(Path(key_file)) if key_file else None
        self._management = management.rstrip("/") if management else None
        self._ca_file = str(ca_file) if ca_file else None
        self._on_retry = on_retry

    def _http_options(self) -> dict[str, Any]:
        """Of both kinds of httpx client; no proxy for a server on this machine."""
        return {
            "trust_env": not self._endpoint.is_local,
            "verify": ssl.create_default_context(cafile=self._ca_file) if self._ca_file else True,
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=POOL_SIZE),
        }

    def _state(self, options: Options, trace: Trace, request_id: str | None) -> RequestState:
        """A request that begins now. Raises `BadOptionError` for an option that does not exist."""
        headers = option_headers(options or {}) | dict(trace or {})
        return RequestState(self._endpoint, headers, self._keys, request_id, self._on_retry)

    def _probe_state(self, timeout_seconds: float) -> RequestState:
        """A request of a health check: no retries."""
        endpoint = replace(self._endpoint, deadline_seconds=timeout_seconds)
        return RequestState(endpoint, {}, self._keys, None)

    def _steps(self, state: RequestState) -> Steps:
        """What to do until there is an answer; raises what `Client.predict` raises."""
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
        """The same for a health check: one attempt, two if the token was refused."""
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

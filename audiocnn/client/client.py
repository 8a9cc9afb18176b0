"""The HTTP client that loses nothing: asks again where that is safe, and says clearly where it is not.

    client = Client("http://127.0.0.1:8080")
    answer = client.predict("dog.wav", top_k=3)
    for path, result in client.predict_many(paths):
        ...  # result is an answer or an exception

`audiocnn.client.async_client.AsyncClient` is the same with `await`. Both need neither torch
nor numpy. What is retried and how replies are read: `audiocnn.client.retry`.

A prediction changes nothing on the server, so asking twice is safe. Retried are a full queue, missing
workers, broken or refused connections, time-outs and failed workers, with growing random pauses, at
least as long as the server's `Retry-After`; of the 4xx nothing but a refused token, after its renewal.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

import requests

from audiocnn.client.retry import Endpoint, RequestState, read_reply, unreachable
from audiocnn.client.tokens import KeyFile
from audiocnn.errors import AudioError, ServerError, TokenRefusedError
from audiocnn.options import option_headers
from audiocnn.probe import probe_wav

Answer = dict[str, Any]
Trace = Mapping[str, str] | None
Clip = str | os.PathLike[str] | bytes | bytearray | memoryview
C = TypeVar("C", bound=Clip)
Failure = AudioError | ServerError | OSError

RENEWAL_SECONDS = 5.0
POOL_SIZE = 64


def read_clip(clip: Clip) -> bytes:
    """The bytes, or those of the file whose path it is."""
    return bytes(clip) if isinstance(clip, bytes | bytearray | memoryview) else Path(clip).read_bytes()


class Settings:
    """What both clients are constructed with."""

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
        self._connect()

    def _connect(self) -> None:
        raise NotImplementedError

    def _exchange(self, headers: Mapping[str, str], request_id: str | None = None) -> RequestState:
        return RequestState(self._endpoint, headers, self._keys, request_id, self._on_retry)


class Client(Settings):
    """Asks with requests; may be shared by threads."""

    def _connect(self) -> None:
        self._renewal = threading.Lock()
        self._session = requests.Session()
        self._session.trust_env = not self._endpoint.is_local
        self._session.verify = self._ca_file or True
        self._session.auth = lambda request: request  # else ~/.netrc would replace our token
        adapter = requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=POOL_SIZE)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def predict(
        self, clip: Clip, *, request_id: str | None = None, trace: Trace = None, **options: object
    ) -> Answer:
        """The answer for a clip, given as a path or as bytes.

        Options are those of the README (`top_k=3`, `classes=["dog", "cat"]`, ...). Raises an `AudioError`
        (with `code`) if the clip or an option is at fault, a `ServerError` if no answer came before
        the deadline, both with the `request_id`; `OSError` if the file cannot be read. `trace` are the
        headers `traceparent` and `tracestate` to pass on, see `audiocnn.tracing.trace_headers`.
        """
        return self._ask("predictions", clip, option_headers(options) | dict(trace or {}), request_id)

    def explain(
        self, clip: Clip, *, request_id: str | None = None, trace: Trace = None, **options: object
    ) -> Answer:
        """Where in time and frequency the score came from; arguments and errors as for `predict`."""
        return self._ask("explanations", clip, option_headers(options) | dict(trace or {}), request_id)

    def predict_many(
        self, clips: Iterable[C], *, concurrency: int = 8, **options: object
    ) -> Iterator[tuple[C, Answer | Failure]]:
        """Every clip with its answer or with what `predict` raised for it, in the order given.

        `concurrency` clips are asked for at a time. Reads the iterable as it goes and holds at most twice
        as many, so it may be endless. Raises `BadOptionError` at once for an option that does not exist.
        """
        return self._many(clips, concurrency, option_headers(options))

    def ready(self, *, timeout_seconds: float = 10.0) -> bool:
        """Whether a real prediction works now: one attempt with a short tone."""
        endpoint = replace(self._endpoint, deadline_seconds=timeout_seconds)
        exchange = RequestState(endpoint, {}, self._keys, None)
        for _ in range(2):
            try:
                self._attempt("predictions", probe_wav(), exchange)
                return True
            except TokenRefusedError:
                self._renew(exchange.authorization)
            except (AudioError, ServerError):
                break
        return False

    def _many(
        self, clips: Iterable[C], concurrency: int, headers: dict[str, str]
    ) -> Iterator[tuple[C, Answer | Failure]]:
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="audiocnn-client")
        pending: deque[tuple[C, Future[Answer | Failure]]] = deque()

        def ask(clip: Clip) -> Answer | Failure:
            try:
                return self._ask("predictions", clip, headers)
            except (AudioError, ServerError, OSError) as error:
                return error

        try:
            for clip in clips:
                pending.append((clip, pool.submit(ask, clip)))
                if len(pending) >= 2 * concurrency:
                    done, future = pending.popleft()
                    yield done, future.result()
            while pending:
                done, future = pending.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _ask(
        self, verb: str, clip: Clip, headers: Mapping[str, str], request_id: str | None = None
    ) -> Answer:
        audio = read_clip(clip)
        exchange = self._exchange(headers, request_id)
        while True:
            try:
                return self._attempt(verb, audio, exchange)
            except AudioError as error:
                raise exchange.sign(error) from None
            except ServerError as error:
                wait = exchange.backoff_seconds(error)
                if isinstance(error, TokenRefusedError):
                    self._renew(exchange.authorization)
            time.sleep(wait)

    def _attempt(self, verb: str, audio: bytes, exchange: RequestState) -> Answer:
        try:
            reply = self._session.post(
                self._endpoint.address(verb),
                data=audio,
                headers=exchange.next_headers(),
                timeout=(exchange.connect_seconds, exchange.timeout_seconds),
                allow_redirects=False,
            )
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            raise unreachable(error) from error
        return read_reply(reply.status_code, reply.headers, reply.content)

    def _renew(self, refused: str | None) -> None:
        """Another key than the refused one, if there is a way; one thread at a time, for all."""
        if self._keys is None:
            return
        with self._renewal:
            if self._keys.reload(refused) or self._management is None:
                return
            path, headers = self._keys.renewal()
            try:
                self._session.get(self._management + path, headers=headers, timeout=RENEWAL_SECONDS)
            except requests.RequestException:
                return  # the next refusal tries again, or is raised
            self._keys.reload(refused)

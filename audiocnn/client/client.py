"""The HTTP client that loses nothing: asks again where that is safe, and says clearly where it is not.

    client = Client("http://127.0.0.1:8080")
    answer = client.predict("dog.wav", {"top_k": 3})
    for path, result in client.predict_many(paths):
        ...  # result is an answer or an exception

`audiocnn.client.async_client.AsyncClient` is the same with `await`. Both need neither torch
nor numpy. What is retried and how replies are read: `audiocnn.client.retry`.

A prediction changes nothing on the server, so asking twice is safe. Retried are a full queue, missing
workers, broken or refused connections, time-outs and failed workers, with growing random pauses, at
least as long as the server's `Retry-After`; of the 4xx nothing but a refused token, after its renewal.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import httpx

from audiocnn.client.base import (
    RENEWAL_SECONDS,
    TRANSPORT_ERRORS,
    Answer,
    Attempt,
    BaseClient,
    C,
    Clip,
    Failure,
    Options,
    Pause,
    Steps,
    Trace,
    read_clip,
)
from audiocnn.errors import AudioError, ServerError
from audiocnn.probe import probe_wav


class Client(BaseClient):
    """May be shared by threads.

    >>> with Client("http://127.0.0.1:8080") as client:
    ...     client.predict("dog.wav", {"top_k": 3})["predictions"][0]["class"]
    'dog'
    """

    def __init__(self, url: str = "http://127.0.0.1:8080", **settings: Any) -> None:
        super().__init__(url, **settings)
        self._renewal = threading.Lock()
        self._http = httpx.Client(**self._http_options())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(
        self, clip: Clip, options: Options = None, *, request_id: str | None = None, trace: Trace = None
    ) -> Answer:
        """The answer for a clip, given as a path or as bytes.

        `options` are those of docs/http-api.md: `{"top_k": 3, "classes": ["dog", "cat"]}`. Raises an
        `AudioError` (with `code`) if the clip or an option is at fault, a `ServerError` if no answer came
        before the deadline, both with the `request_id`; `OSError` if the file cannot be read. `trace` are the
        headers `traceparent` and `tracestate` to pass on, see `audiocnn.tracing.trace_headers`.
        """
        state = self._state(options, trace, request_id)
        return self._run(self._steps(state), "predictions", read_clip(clip))

    def explain(
        self, clip: Clip, options: Options = None, *, request_id: str | None = None, trace: Trace = None
    ) -> Answer:
        """Where in time and frequency the score came from; arguments and errors as for `predict`."""
        state = self._state(options, trace, request_id)
        return self._run(self._steps(state), "explanations", read_clip(clip))

    def predict_many(
        self, clips: Iterable[C], options: Options = None, *, concurrency: int = 8
    ) -> Iterator[tuple[C, Answer | Failure]]:
        """Every clip with its answer or with what `predict` raised for it, in the order given.

        `concurrency` clips are asked for at a time. Reads the iterable as it goes and holds at most twice
        as many, so it may be endless. Raises `BadOptionError` at once for an option that does not exist.
        """
        self._state(options, None, None)
        return self._many(clips, options, concurrency)

    def ready(self, *, timeout_seconds: float = 10.0) -> bool:
        """Whether a real prediction works now: one attempt with a short tone."""
        try:
            self._run(self._probe_steps(self._probe_state(timeout_seconds)), "predictions", probe_wav())
        except (AudioError, ServerError):
            return False
        return True

    def _many(
        self, clips: Iterable[C], options: Options, concurrency: int
    ) -> Iterator[tuple[C, Answer | Failure]]:
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="audiocnn-client")
        pending: deque[tuple[C, Future[Answer | Failure]]] = deque()

        def ask(clip: Clip) -> Answer | Failure:
            try:
                return self.predict(clip, options)
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

    def _run(self, steps: Steps, verb: str, audio: bytes) -> Answer:
        """Do what the steps say, until they have an answer."""
        try:
            step = next(steps)
            while True:
                if not isinstance(step, Attempt):
                    time.sleep(step.seconds) if isinstance(step, Pause) else self._renew(step.refused)
                    step = next(steps)
                    continue
                try:
                    reply = self._post(verb, audio, step)
                except TRANSPORT_ERRORS as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            return dict(end.value)

    def _post(self, verb: str, audio: bytes, attempt: Attempt) -> httpx.Response:
        timeout = httpx.Timeout(attempt.timeout_seconds, connect=attempt.connect_seconds)
        address = self._endpoint.address(verb)
        return self._http.post(address, content=audio, headers=attempt.headers, timeout=timeout)

    def _renew(self, refused: str | None) -> None:
        """Another key than the refused one, if there is a way; one thread at a time, for all."""
        if self._keys is None:
            return
        with self._renewal:
            if self._keys.reload(refused) or self._management is None:
                return
            path, headers = self._keys.renewal()
            try:
                self._http.get(self._management + path, headers=headers, timeout=RENEWAL_SECONDS)
            except httpx.TransportError:
                return  # the next refusal tries again, or is raised
            self._keys.reload(refused)

"""HTTP client of TorchServe with retries. Imports neither torch nor numpy.

    client = Client("http://127.0.0.1:8080")
    answer = client.predict("dog.wav", {"top_k": 3})
    for path, result in client.predict_many(paths):
        ...  # result is an answer or an exception

`audiocnn.client.async_client.AsyncClient` is the same with `await`.

Predictions are idempotent, so a retry is safe. Retried until the deadline: a full queue, missing or failed
workers, connection errors and time-outs, with exponential back-off and jitter, at least `Retry-After`. Of
the 4xx only a refused token is retried, after its renewal. The rules are in `audiocnn.client.retry`.
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
    """Thread-safe.

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
        """Classify a clip, given as a path or as bytes.

        `options` are those of docs/http-api.md: `{"top_k": 3, "classes": ["dog", "cat"]}`. `trace` are the
        headers `traceparent` and `tracestate` to pass on, see `audiocnn.tracing.trace_headers`. Raises an
        `AudioError` (with `code`) for an invalid clip or option, a `ServerError` if there was no answer
        before the deadline, both with `request_id`; `OSError` for a file that cannot be read.
        """
        state = self._state(options, trace, request_id)
        return self._run(self._steps(state), "predictions", read_clip(clip))

    def explain(
        self, clip: Clip, options: Options = None, *, request_id: str | None = None, trace: Trace = None
    ) -> Answer:
        """The prediction with class activation maps; arguments and errors as for `predict`."""
        state = self._state(options, trace, request_id)
        return self._run(self._steps(state), "explanations", read_clip(clip))

    def predict_many(
        self, clips: Iterable[C], options: Options = None, *, concurrency: int = 8
    ) -> Iterator[tuple[C, Answer | Failure]]:
        """Yield each clip with its answer or the exception of `predict`, in order.

        Sends `concurrency` requests at a time and reads at most `2 * concurrency` clips ahead, so `clips` may
        be infinite. Raises `BadOptionError` at once for an unknown option.
        """
        self._state(options, None, None)
        return self._many(clips, options, concurrency)

    def ready(self, *, timeout_seconds: float = 10.0) -> bool:
        """Whether a prediction of a short tone succeeds now; not retried."""
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

        def predict(clip: Clip) -> Answer | Failure:
            try:
                return self.predict(clip, options)
            except (AudioError, ServerError, OSError) as error:
                return error

        try:
            for clip in clips:
                pending.append((clip, pool.submit(predict, clip)))
                if len(pending) >= 2 * concurrency:
                    done, future = pending.popleft()
                    yield done, future.result()
            while pending:
                done, future = pending.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _run(self, steps: Steps, verb: str, audio: bytes) -> Answer:
        """Run the steps; returns the answer."""
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
        """Replace the refused key, if possible; one thread renews it for all."""
        if self._keys is None:
            return
        with self._renewal:
            if self._keys.reload(refused) or self._management is None:
                return
            path, headers = self._keys.renewal()
            try:
                self._http.get(self._management + path, headers=headers, timeout=RENEWAL_SECONDS)
            except httpx.TransportError:
                return  # the next refusal is retried or raised
            self._keys.reload(refused)

"""`audiocnn.Client` with `await`, for one asyncio event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
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


class AsyncClient(BaseClient):
    """Same methods as `Client`.

    >>> async with AsyncClient("http://127.0.0.1:8080") as client:
    ...     await client.predict("dog.wav", {"top_k": 3})
    """

    def __init__(self, url: str = "http://127.0.0.1:8080", **settings: Any) -> None:
        super().__init__(url, **settings)
        self._renewal = asyncio.Lock()
        self._http = httpx.AsyncClient(**self._http_options())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def predict(
        self, clip: Clip, options: Options = None, *, request_id: str | None = None, trace: Trace = None
    ) -> Answer:
        """As `Client.predict`."""
        state = self._state(options, trace, request_id)
        return await self._run(self._steps(state), "predictions", await _content(clip))

    async def explain(
        self, clip: Clip, options: Options = None, *, request_id: str | None = None, trace: Trace = None
    ) -> Answer:
        """As `Client.explain`."""
        state = self._state(options, trace, request_id)
        return await self._run(self._steps(state), "explanations", await _content(clip))

    def predict_many(
        self, clips: Iterable[C], options: Options = None, *, concurrency: int = 8
    ) -> AsyncIterator[tuple[C, Answer | Failure]]:
        """As `Client.predict_many`, for `async for`."""
        self._state(options, None, None)
        return self._many(clips, options, concurrency)

    async def ready(self, *, timeout_seconds: float = 10.0) -> bool:
        """As `Client.ready`."""
        steps = self._probe_steps(self._probe_state(timeout_seconds))
        try:
            await self._run(steps, "predictions", probe_wav())
        except (AudioError, ServerError):
            return False
        return True

    async def _many(
        self, clips: Iterable[C], options: Options, concurrency: int
    ) -> AsyncIterator[tuple[C, Answer | Failure]]:
        slots = asyncio.Semaphore(concurrency)
        pending: deque[tuple[C, asyncio.Task[Answer | Failure]]] = deque()

        async def predict(clip: Clip) -> Answer | Failure:
            async with slots:
                try:
                    return await self.predict(clip, options)
                except (AudioError, ServerError, OSError) as error:
                    return error

        try:
            for clip in clips:
                pending.append((clip, asyncio.create_task(predict(clip))))
                if len(pending) >= 2 * concurrency:
                    done, task = pending.popleft()
                    yield done, await task
            while pending:
                done, task = pending.popleft()
                yield done, await task
        finally:
            for _, task in pending:
                task.cancel()

    async def _run(self, steps: Steps, verb: str, audio: bytes) -> Answer:
        """As `Client._run`."""
        try:
            step = next(steps)
            while True:
                if not isinstance(step, Attempt):
                    await (
                        asyncio.sleep(step.seconds) if isinstance(step, Pause) else self._renew(step.refused)
                    )
                    step = next(steps)
                    continue
                try:
                    reply = await self._post(verb, audio, step)
                except TRANSPORT_ERRORS as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            return dict(end.value)

    async def _post(self, verb: str, audio: bytes, attempt: Attempt) -> httpx.Response:
        timeout = httpx.Timeout(attempt.timeout_seconds, connect=attempt.connect_seconds)
        address = self._endpoint.address(verb)
        async with asyncio.timeout(attempt.timeout_seconds):
            return await self._http.post(address, content=audio, headers=attempt.headers, timeout=timeout)

    async def _renew(self, refused: str | None) -> None:
        """As `Client._renew`."""
        if self._keys is None:
            return
        async with self._renewal:
            if self._keys.reload(refused) or self._management is None:
                return
            path, headers = self._keys.renewal()
            try:
                await self._http.get(self._management + path, headers=headers, timeout=RENEWAL_SECONDS)
            except httpx.TransportError:
                return
            self._keys.reload(refused)


async def _content(clip: Clip) -> bytes:
    """As `read_clip`; a file is read in another thread."""
    return clip if isinstance(clip, bytes) else await asyncio.to_thread(read_clip, clip)

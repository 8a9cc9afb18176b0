"""`audiocnn.client.Client` with `await`, on httpx: for one event loop of asyncio."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from typing import Self

import httpx

from audiocnn.client.client import (
    POOL_SIZE,
    RENEWAL_SECONDS,
    Answer,
    C,
    Clip,
    Failure,
    Settings,
    Trace,
    read_clip,
)
from audiocnn.client.retry import RequestState, read_reply, unreachable
from audiocnn.errors import AudioError, ServerError, TokenRefusedError
from audiocnn.options import option_headers
from audiocnn.probe import probe_wav


class AsyncClient(Settings):
    """Its methods are those of `Client`."""

    def _connect(self) -> None:
        self._renewal = asyncio.Lock()
        self._http = httpx.AsyncClient(
            trust_env=not self._endpoint.is_local,
            verify=ssl.create_default_context(cafile=self._ca_file) if self._ca_file else True,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=POOL_SIZE),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def predict(
        self, clip: Clip, *, request_id: str | None = None, trace: Trace = None, **options: object
    ) -> Answer:
        """As `Client.predict`."""
        return await self._ask("predictions", clip, option_headers(options) | dict(trace or {}), request_id)

    async def explain(
        self, clip: Clip, *, request_id: str | None = None, trace: Trace = None, **options: object
    ) -> Answer:
        """As `Client.explain`."""
        return await self._ask("explanations", clip, option_headers(options) | dict(trace or {}), request_id)

    def predict_many(
        self, clips: Iterable[C], *, concurrency: int = 8, **options: object
    ) -> AsyncIterator[tuple[C, Answer | Failure]]:
        """As `Client.predict_many`, for `async for`."""
        return self._many(clips, concurrency, option_headers(options))

    async def ready(self, *, timeout_seconds: float = 10.0) -> bool:
        """As `Client.ready`."""
        endpoint = replace(self._endpoint, deadline_seconds=timeout_seconds)
        exchange = RequestState(endpoint, {}, self._keys, None)
        for _ in range(2):
            try:
                await self._attempt("predictions", probe_wav(), exchange)
                return True
            except TokenRefusedError:
                await self._renew(exchange.authorization)
            except (AudioError, ServerError):
                break
        return False

    async def _many(
        self, clips: Iterable[C], concurrency: int, headers: dict[str, str]
    ) -> AsyncIterator[tuple[C, Answer | Failure]]:
        slots = asyncio.Semaphore(concurrency)
        pending: deque[tuple[C, asyncio.Task[Answer | Failure]]] = deque()

        async def ask(clip: Clip) -> Answer | Failure:
            async with slots:
                try:
                    return await self._ask("predictions", clip, headers)
                except (AudioError, ServerError, OSError) as error:
                    return error

        try:
            for clip in clips:
                pending.append((clip, asyncio.create_task(ask(clip))))
                if len(pending) >= 2 * concurrency:
                    done, task = pending.popleft()
                    yield done, await task
            while pending:
                done, task = pending.popleft()
                yield done, await task
        finally:
            for _, task in pending:
                task.cancel()

    async def _ask(
        self, verb: str, clip: Clip, headers: Mapping[str, str], request_id: str | None = None
    ) -> Answer:
        audio = await asyncio.to_thread(read_clip, clip)
        exchange = self._exchange(headers, request_id)
        while True:
            try:
                return await self._attempt(verb, audio, exchange)
            except AudioError as error:
                raise exchange.sign(error) from None
            except ServerError as error:
                wait = exchange.backoff_seconds(error)
                if isinstance(error, TokenRefusedError):
                    await self._renew(exchange.authorization)
            await asyncio.sleep(wait)

    async def _attempt(self, verb: str, audio: bytes, exchange: RequestState) -> Answer:
        timeout = exchange.timeout_seconds
        try:
            async with asyncio.timeout(timeout):
                reply = await self._http.post(
                    self._endpoint.address(verb),
                    content=audio,
                    headers=exchange.next_headers(),
                    timeout=httpx.Timeout(timeout, connect=exchange.connect_seconds),
                )
        except (httpx.TransportError, httpx.DecodingError, TimeoutError) as error:
            raise unreachable(error) from error
        return read_reply(reply.status_code, reply.headers, reply.content)

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

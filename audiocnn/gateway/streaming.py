"""The WebSocket `/ws/predict`: sound in, an answer for every hop of it out.

    -> {"sample_rate": 48000, "hop_seconds": 1.0, "top_k": 3}      a text frame, first
    <- {"type": "ready", ...}
    -> float32 samples, little-endian, mono                        binary frames of any size up to 1 MiB
    <- {"type": "answer", "end": 1.0, "predictions": [...], ...}   one a hop
    <- {"type": "detection", "class": "siren", "start": ..., ...}  with `detections`, for every event
    -> {"end": true}                                               what is left is answered, then 1000

docs/gateway.md has the fields and the close codes. Here: who may open a stream, and how it ends;
`stream_session` is what happens in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal

from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from audiocnn.config import Config
from audiocnn.errors import AudioError, ServerError
from audiocnn.gateway.auth import AccessControl, error_response, key_in, request_id_in
from audiocnn.gateway.backend import Backend
from audiocnn.gateway.errors import GatewayError, body_of
from audiocnn.gateway.metrics import Metrics
from audiocnn.gateway.model_info import ModelInfo
from audiocnn.gateway.origins import note_refusal
from audiocnn.gateway.settings import Settings
from audiocnn.gateway.stream_protocol import (
    BAD_START,
    FAILED,
    GOING_AWAY,
    MAX_HOP_SECONDS,
    MAX_SAMPLE_RATE,
    MIN_HOP_SECONDS,
    MIN_SAMPLE_RATE,
    NORMAL,
    TOO_MANY,
    TRY_LATER,
    UNAUTHORIZED,
    RefusedError,
    Start,
    StreamState,
    read_json,
    receive_before,
    say_goodbye,
)
from audiocnn.gateway.stream_session import StreamSession
from audiocnn.tracing import TRACEPARENT, trace_headers, trace_id

log = logging.getLogger("audiocnn.gateway.streaming")

Converse = Callable[[WebSocket, StreamState], Awaitable[None]]
End = Callable[[WebSocket, RefusedError], Awaitable[None]]


class Streams:
    """All streams of a gateway: how many there are, and whose turn it is to ask TorchServe."""

    def __init__(
        self,
        settings: Settings,
        access: AccessControl,
        client: Backend,
        model: ModelInfo,
        metrics: Metrics,
    ) -> None:
        self.settings = settings
        self.access = access
        self.client = client
        self.model = model
        self.metrics = metrics
        self.turns = asyncio.Semaphore(settings.stream_in_flight)
        self.num_open = 0  # their key is checked
        self.num_starting = 0  # those that have shown no key yet

    def limits(self) -> dict[str, Any]:
        """For `GET /config`."""
        return {
            "min_sample_rate": MIN_SAMPLE_RATE,
            "max_sample_rate": MAX_SAMPLE_RATE,
            "min_hop_seconds": MIN_HOP_SECONDS,
            "max_hop_seconds": MAX_HOP_SECONDS,
            "window_seconds": self.model.frontend.clip_seconds,
            "smoothing_seconds": self.settings.stream_smoothing_seconds,
            "idle_seconds": self.settings.stream_idle_seconds,
            "max_streams": self.settings.max_streams,
        }

    async def serve(
        self, socket: WebSocket, converse: Converse | None = None, end: End = say_goodbye
    ) -> None:
        """One connection from its opening to its end; a page of a foreign origin gets HTTP 403.

        `converse` is what happens in between, `end` how an error is told; None: the protocol of this module.
        """
        try:
            self.access.check_origin(socket.headers.get("origin"))
        except GatewayError as error:
            await self.refuse(socket, error)
            return
        await socket.accept()
        began = time.monotonic()
        state = StreamState(request_id_in(socket.headers), trace_headers(socket.headers))
        try:
            await (converse or self._converse)(socket, state)
            await socket.close(NORMAL)
        except RefusedError as refusal:
            state.close_code, state.code = refusal.close_code, refusal.code
            await end(socket, refusal)
        except WebSocketDisconnect:
            state.close_code = GOING_AWAY
        except Exception:
            log.exception("a stream failed", extra={"request_id": state.request_id})
            state.close_code, state.code = FAILED, GatewayError.code
            failed = RefusedError(FAILED, GatewayError.code, "The gateway failed at this stream.")
            await end(socket, failed)
        finally:
            self._finish(state, socket, time.monotonic() - began)

    async def refuse(self, socket: WebSocket, error: GatewayError) -> None:
        """Answer the opening of a stream with an HTTP error."""
        request_id, origin = request_id_in(socket.headers), socket.headers.get("origin")
        note_refusal(self.metrics, error, "WEBSOCKET", request_id, origin=origin)
        await socket.send_denial_response(error_response(error, request_id))

    async def _converse(self, socket: WebSocket, state: StreamState) -> None:
        start = await self._start(socket)
        with self.place("num_open"):
            config = await self._config() if start.detections else None
            await StreamSession(self, socket, start, state, config).run()

    async def _config(self) -> Config:
        """Classes and thresholds of the served model; raises `RefusedError`."""
        try:
            config = await self.model.config()
        except (AudioError, ServerError) as error:
            problem = body_of(error)["error"]
            raise RefusedError(TRY_LATER, problem["code"], problem["message"]) from error
        if config is None:
            message = "detections: the served model does not tell its thresholds; export its archive again."
            raise RefusedError(BAD_START, "bad_start", message)
        return config

    def _finish(self, state: StreamState, socket: WebSocket, seconds: float) -> None:
        """Count and log a stream that is over."""
        self.metrics.stream_end(state.close_code)
        if state.code:
            self.metrics.error(state.code)
        log.log(
            logging.WARNING if state.close_code == FAILED else logging.INFO,
            "stream %d",
            state.close_code,
            extra={
                "request_id": state.request_id,
                "trace_id": trace_id(state.trace.get(TRACEPARENT)),
                "client": socket.client.host if socket.client else None,
                "route": socket.scope["path"],
                "hops": state.hops,
                "skipped": state.skipped,
                "code": state.code,
                "seconds": round(seconds, 1),
            },
        )

    @contextlib.contextmanager
    def place(self, counter: Literal["num_open", "num_starting"]) -> Iterator[None]:
        """One of `MAX_STREAMS` places; each of the two kinds has so many of its own."""
        if getattr(self, counter) >= self.settings.max_streams:
            raise RefusedError(TRY_LATER, "busy", "As many streams as can be held are open: try later.")
        setattr(self, counter, getattr(self, counter) + 1)
        try:
            yield
        finally:
            setattr(self, counter, getattr(self, counter) - 1)

    def _check_key(self, key: str | None) -> None:
        try:
            self.access.check_key(key)
        except GatewayError as error:
            raise RefusedError(UNAUTHORIZED, error.code, str(error)) from None

    async def _first_frame(self, socket: WebSocket) -> str | bytes:
        seconds = self.settings.stream_start_seconds
        return await receive_before(socket, seconds, otherwise="The first frame did not come in time.")

    async def _start(self, socket: WebSocket) -> Start:
        """The first frame, its key checked: before the frame if a header has a key."""
        if names := ", ".join(socket.query_params)[:100]:
            raise RefusedError(BAD_START, "bad_start", f"Send {names} in the first frame, not in the query.")
        key = key_in(socket.headers)
        if key:
            self._check_key(key)
            first = await self._first_frame(socket)
        else:
            with self.place("num_starting"):
                first = await self._first_frame(socket)
        if not isinstance(first, str):
            raise RefusedError(BAD_START, "bad_start", "The first frame must be JSON text with sample_rate.")
        try:
            start = Start.model_validate(read_json(first))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "the first frame"
            raise RefusedError(BAD_START, "bad_start", f"{where}: {problem['msg']}.") from None
        self.admit(socket, key or start.api_key)
        return start

    def admit(self, socket: WebSocket, key: str | None) -> None:
        """Check the key and charge the caller's rate; raises `RefusedError`."""
        self._check_key(key)
        try:
            self.access.rate.acquire(self.access.caller(key, socket.client.host if socket.client else None))
        except GatewayError as error:
            raise RefusedError(TOO_MANY, error.code, str(error)) from None

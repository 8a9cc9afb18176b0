"""The WebSocket `/ws/predict`: sound in, an answer for every hop of it out.

    -> {"sample_rate": 48000, "hop_seconds": 1.0, "top_k": 3}      a text frame, first
    <- {"type": "ready", ...}
    -> float32 samples, little-endian, mono                        binary frames of any size up to 1 MiB
    <- {"type": "answer", "end": 1.0, "predictions": [...], ...}   one a hop
    <- {"type": "detection", "class": "siren", "start": ..., ...}  with `detections`, for every event
    -> {"end": true}                                               what is left is answered, then 1000

One task receives, one answers, so that inference never keeps sound waiting. The one that answers takes
the newest window when its turn comes: hops that passed meanwhile are counted in `skipped`, not queued.
docs/gateway.md has the fields and the close codes.
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
from audiocnn.detections import window_seconds
from audiocnn.errors import AudioError, ServerError
from audiocnn.gateway.auth import AccessControl, error_response, key_in, request_id_in
from audiocnn.gateway.backend import Backend
from audiocnn.gateway.errors import GatewayError, body_of
from audiocnn.gateway.metrics import Metrics
from audiocnn.gateway.model_info import ALL_CLASSES, ModelInfo
from audiocnn.gateway.origins import note_refusal
from audiocnn.gateway.settings import Settings
from audiocnn.gateway.stream_audio import BadSoundError, ExponentialAverage, RingBuffer
from audiocnn.gateway.stream_detections import StreamDetector
from audiocnn.gateway.stream_protocol import (
    BAD_DATA,
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
    run_together,
    say_goodbye,
    send_before,
)
from audiocnn.labels import describe
from audiocnn.tracing import TRACEPARENT, trace_headers, trace_id

log = logging.getLogger("audiocnn.gateway.streaming")

AHEAD_SECONDS = 10.0  # of sound that may come faster than real time before we stop reading
EVENTS_AHEAD_SECONDS = 4.0  # with detections: every window of it is answered


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
            request_id, origin = request_id_in(socket.headers), socket.headers.get("origin")
            note_refusal(self.metrics, error, "WEBSOCKET", request_id, origin=origin)
            await socket.send_denial_response(error_response(error, request_id))
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

    async def _converse(self, socket: WebSocket, state: StreamState) -> None:
        start = await self._start(socket)
        with self.place("num_open"):
            config = await self._config() if start.detections else None
            await Stream(self, socket, start, state, config).run()

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


class Stream:
    """One stream that has begun."""

    def __init__(
        self,
        streams: Streams,
        socket: WebSocket,
        start: Start,
        state: StreamState,
        config: Config | None = None,
    ) -> None:
        """`config` of the served model, if events are to be sent."""
        frontend = streams.model.frontend
        self._streams = streams
        self._socket = socket
        self._start = start
        self._state = state
        self._sound = RingBuffer(
            input_rate=start.sample_rate,
            sample_rate=frontend.sample_rate,
            window_seconds=frontend.clip_seconds,
            kept_seconds=2 * EVENTS_AHEAD_SECONDS + window_seconds(config) if config else 0.0,
        )
        self._ahead_seconds = EVENTS_AHEAD_SECONDS if config else AHEAD_SECONDS
        self._events = StreamDetector(config, self._sound, self._ask, self._send) if config else None
        self._window_seconds = frontend.clip_seconds
        self._smoothed = ExponentialAverage(streams.settings.stream_smoothing_seconds)
        self._due = asyncio.Event()
        self._is_ending = False
        self._hop = self._answered_hop = 0  # the last one that is due, and that was answered
        self._due_at = 0.0  # loop time at which the last hop became due
        self._answered_at = 0.0  # seconds of sound at the last answer

    async def run(self) -> None:
        """Until the caller ends the stream or leaves."""
        await self._send(
            {
                "type": "ready",
                "request_id": self._state.request_id,
                **self._start.model_dump(exclude={"api_key"}),
                "window_seconds": self._window_seconds,
            }
        )
        events = [self._events.run()] if self._events else []
        await run_together(self._receive_sound(), self._answer_hops(), *events)

    async def _receive_sound(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            frame = await receive_before(self._socket, self._streams.settings.stream_idle_seconds)
            if isinstance(frame, str):
                self._end(frame)
                return
            try:
                self._sound.push(frame)
            except BadSoundError as error:
                raise RefusedError(
                    BAD_DATA, "not_finite_audio" if "NaN" in str(error) else "bad_frame", str(error)
                ) from None
            if self._events:
                self._events.sound_came()
            hop = int(self._sound.seconds / self._start.hop_seconds + 1e-9)
            if hop > self._hop:
                self._hop, self._due_at = hop, loop.time()
                self._due.set()
            # The socket is left unread for a while: TCP tells a sender that is too fast.
            ahead = self._sound.seconds - (loop.time() - began)
            await asyncio.sleep(max(0.0, ahead - self._ahead_seconds))

    def _end(self, text: str) -> None:
        """Answer what is left, if it is more than the last answer covered."""
        if read_json(text) != {"end": True}:
            raise RefusedError(BAD_START, "bad_frame", 'After the first frame comes sound, or {"end": true}.')
        self._is_ending = True
        if self._events:
            self._events.end()
        if self._sound.seconds > self._hop * self._start.hop_seconds + 1e-9:
            self._hop, self._due_at = self._hop + 1, asyncio.get_running_loop().time()
        self._due.set()

    async def _answer_hops(self) -> None:
        while not (self._is_ending and self._answered_hop == self._hop):
            await self._due.wait()
            self._due.clear()
            if self._hop == self._answered_hop:
                continue
            async with self._streams.turns:
                answer = await self._answer()
            await self._send(answer)  # the turn is over: a caller that does not read delays no other

    async def _answer(self) -> dict[str, Any]:
        """The answer to the newest window, or why there is none; the stream goes on."""
        hop, due_at, end = self._hop, self._due_at, self._sound.seconds
        level, wav = self._sound.take_level(), self._sound.wav()
        state, metrics = self._state, self._streams.metrics
        passed = hop - self._answered_hop - 1
        state.hops, state.skipped = hop, state.skipped + passed
        self._answered_hop = hop
        head = {"hop": hop, "start": round(max(0.0, end - self._window_seconds), 3), "end": round(end, 3)}
        try:
            answer = await self._streams.client.predict(
                wav or b"",
                {"top_k": ALL_CLASSES},
                request_id=f"{state.request_id}-{hop}",
                trace=state.trace,
            )
        except (AudioError, ServerError) as error:
            state.skipped += 1
            metrics.hop(skipped=passed, lag_seconds=None)
            metrics.failure(error)
            return {"type": "error", **head, **body_of(error), "skipped": state.skipped}
        confidences = self._smoothed.update(answer["predictions"], end - self._answered_at)
        self._answered_at = end
        warnings = answer["warnings"]
        if self._sound.is_too_loud:
            warnings = [*warnings, "Samples are beyond full scale, which is 1; they were clipped."]
        lag_seconds = asyncio.get_running_loop().time() - due_at
        metrics.hop(skipped=passed, lag_seconds=lag_seconds)
        return {
            "type": "answer",
            **head,
            "predictions": [
                {"class": name, "confidence": round(confidence, 6), "emoji": describe(name).emoji}
                for name, confidence in confidences[: self._start.top_k]
            ],
            "is_unknown": answer["is_unknown"],
            "is_silent": answer["is_silent"],
            "warnings": warnings,
            "level_dbfs": round(level, 1),
            "lag_seconds": round(lag_seconds, 3),
            "skipped": state.skipped,
        }

    async def _ask(self, wav: bytes, suffix: str) -> dict[str, Any]:
        """All classes of a window of the events; counts its failure."""
        request_id = f"{self._state.request_id}-{suffix}"
        options = {"top_k": ALL_CLASSES}
        try:
            async with self._streams.turns:
                return await self._streams.client.predict(
                    wav, options, request_id=request_id, trace=self._state.trace
                )
        except (AudioError, ServerError) as error:
            self._streams.metrics.failure(error)
            raise

    async def _send(self, content: dict[str, Any]) -> None:
        await send_before(self._socket, content, self._streams.settings.stream_idle_seconds)

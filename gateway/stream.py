"""The WebSocket `/ws/predict`: sound in, an answer for every hop of it out.

    -> {"sample_rate": 48000, "hop_seconds": 1.0, "top_k": 3}      a text frame, first
    <- {"type": "ready", ...}
    -> float32 samples, little-endian, mono                        binary frames of any size up to 1 MiB
    <- {"type": "answer", "end": 1.0, "predictions": [...], ...}   one a hop
    -> {"end": true}                                               what is left is answered, then 1000

One task receives, one answers, so that inference never keeps sound waiting. The one that answers takes
the newest window when its turn comes: hops that passed meanwhile are counted in `skipped`, not queued.
docs/gateway.md has the fields and the close codes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from audiocnn.async_client import AsyncClient
from audiocnn.errors import AudioError, ServerError
from audiocnn.labels import describe
from gateway.errors import GatewayError, body_of
from gateway.guard import Door, request_id_in
from gateway.model import ALL_CLASSES, Served
from gateway.page_key import key_of
from gateway.settings import Settings
from gateway.sound import BadSound, NewestWindow, Smoothed

log = logging.getLogger("gateway.stream")

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 8_000, 192_000  # Hz: what microphones and sound cards have
MIN_HOP_SECONDS, MAX_HOP_SECONDS = 0.1, 10.0
_AHEAD_SECONDS = 10.0  # of sound that may come faster than real time before we stop reading
_MAX_CONTROL_LENGTH = 4096
_GOODBYE_SECONDS = 2.0

NORMAL, GOING_AWAY, BAD_DATA, TRY_LATER = 1000, 1001, 1007, 1013
BAD_START, UNAUTHORIZED, IDLE, TOO_MANY = 4400, 4401, 4408, 4429


class Start(BaseModel):
    """The first frame."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    sample_rate: Annotated[int, Field(ge=MIN_SAMPLE_RATE, le=MAX_SAMPLE_RATE)]
    hop_seconds: Annotated[float, Field(ge=MIN_HOP_SECONDS, le=MAX_HOP_SECONDS)] = 1.0
    top_k: Annotated[int, Field(ge=1, le=1000)] = 3
    api_key: str | None = None  # browsers cannot send headers with a WebSocket


class Refused(Exception):
    """The stream ends with a JSON frame that says why, and a close code."""

    def __init__(self, close_code: int, code: str, message: str) -> None:
        super().__init__(message)
        self.close_code = close_code
        self.body = {"type": "error", "error": {"code": code, "message": message}}


class Streams:
    """All streams of a gateway: how many there are, and whose turn it is to ask TorchServe."""

    def __init__(self, settings: Settings, door: Door, client: AsyncClient, model: Served) -> None:
        self.settings = settings
        self.door = door
        self.client = client
        self.model = model
        self.turns = asyncio.Semaphore(settings.stream_in_flight)
        self._open = 0

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

    async def serve(self, socket: WebSocket) -> None:
        """One connection from its opening to its end; a page of a foreign origin gets HTTP 403."""
        try:
            self.door.check_origin(socket.headers.get("origin"))
        except GatewayError:
            await socket.close()
            return
        await socket.accept()
        self._open += 1
        try:
            if self._open > self.settings.max_streams:
                raise Refused(TRY_LATER, "busy", "As many streams as can be held are open: try later.")
            stream = Stream(self, socket, await self._start(socket))
            await stream.run()
            await socket.close(NORMAL)
        except Refused as refusal:
            await _say_goodbye(socket, refusal)
        except WebSocketDisconnect:
            pass
        except Exception:
            log.exception("a stream failed")
            await _say_goodbye(socket, Refused(1011, "internal_error", "The gateway failed at this stream."))
        finally:
            self._open -= 1

    async def _start(self, socket: WebSocket) -> Start:
        """The first frame, its key checked."""
        try:
            async with asyncio.timeout(self.settings.stream_start_seconds):
                first = await _receive(socket)
        except TimeoutError:
            raise Refused(IDLE, "idle", "The first frame did not come in time.") from None
        if not isinstance(first, str):
            raise Refused(BAD_START, "bad_start", "The first frame must be JSON text with sample_rate.")
        try:
            start = Start.model_validate(_json(first))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "the first frame"
            raise Refused(BAD_START, "bad_start", f"{where}: {problem['msg']}.") from None
        key = key_of(socket.headers) or start.api_key
        try:
            self.door.check_key(key)
            self.door.rate.charge(self.door.caller(key, socket.client.host if socket.client else None))
        except GatewayError as error:
            close_code = UNAUTHORIZED if error.status == 401 else TOO_MANY
            raise Refused(close_code, error.code, str(error)) from None
        return start


class Stream:
    """One stream that has begun."""

    def __init__(self, streams: Streams, socket: WebSocket, start: Start) -> None:
        frontend = streams.model.frontend
        self._streams = streams
        self._socket = socket
        self._start = start
        self._request_id = request_id_in(socket.headers)
        self._sound = NewestWindow(
            input_rate=start.sample_rate,
            sample_rate=frontend.sample_rate,
            window_seconds=frontend.clip_seconds,
        )
        self._window_seconds = frontend.clip_seconds
        self._smoothed = Smoothed(streams.settings.stream_smoothing_seconds)
        self._due = asyncio.Event()
        self._is_ending = False
        self._hop = self._answered_hop = 0  # the last one that is due, and that was answered
        self._due_at = 0.0  # loop time at which the last hop became due
        self._answered_at = 0.0  # seconds of sound at the last answer
        self._skipped = 0

    async def run(self) -> None:
        """Until the caller ends the stream or leaves."""
        await self._send(
            {
                "type": "ready",
                "request_id": self._request_id,
                **self._start.model_dump(exclude={"api_key"}),
                "window_seconds": self._window_seconds,
            }
        )
        answering = asyncio.create_task(self._answer_hops())
        receiving = asyncio.create_task(self._receive_sound())
        try:
            await asyncio.wait({answering, receiving}, return_when=asyncio.FIRST_EXCEPTION)
            for task in (receiving, answering):
                if task.done():
                    task.result()
        finally:
            for task in (receiving, answering):
                task.cancel()
            await asyncio.gather(receiving, answering, return_exceptions=True)

    async def _receive_sound(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            try:
                async with asyncio.timeout(self._streams.settings.stream_idle_seconds):
                    frame = await _receive(self._socket)
            except TimeoutError:
                raise Refused(IDLE, "idle", "Nothing came for too long.") from None
            if isinstance(frame, str):
                self._end(frame)
                return
            try:
                self._sound.push(frame)
            except BadSound as error:
                raise Refused(
                    BAD_DATA, "not_finite_audio" if "NaN" in str(error) else "bad_frame", str(error)
                ) from None
            hop = int(self._sound.seconds / self._start.hop_seconds + 1e-9)
            if hop > self._hop:
                self._hop, self._due_at = hop, loop.time()
                self._due.set()
            # The socket is left unread for a while: TCP tells a sender that is too fast.
            ahead = self._sound.seconds - (loop.time() - began)
            await asyncio.sleep(max(0.0, ahead - _AHEAD_SECONDS))

    def _end(self, text: str) -> None:
        """Answer what is left, if it is more than the last answer heard."""
        if _json(text) != {"end": True}:
            raise Refused(BAD_START, "bad_frame", 'After the first frame comes sound, or {"end": true}.')
        self._is_ending = True
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
            await self._send(answer)  # the turn is over: a caller who does not read holds up nobody

    async def _answer(self) -> dict[str, Any]:
        """The answer to the newest window, or why there is none; the stream goes on."""
        hop, due_at, end = self._hop, self._due_at, self._sound.seconds
        level, wav = self._sound.take_level(), self._sound.wav()
        self._skipped += hop - self._answered_hop - 1
        self._answered_hop = hop
        head = {"hop": hop, "start": round(max(0.0, end - self._window_seconds), 3), "end": round(end, 3)}
        try:
            answer = await self._streams.client.predict(
                wav or b"", request_id=f"{self._request_id}-{hop}", top_k=ALL_CLASSES
            )
        except (AudioError, ServerError) as error:
            self._skipped += 1
            return {"type": "error", **head, **body_of(error), "skipped": self._skipped}
        confidences = self._smoothed.update(answer["predictions"], end - self._answered_at)
        self._answered_at = end
        warnings = answer["warnings"]
        if self._sound.is_too_loud:
            warnings = [*warnings, "Samples are beyond full scale, which is 1; they were clipped."]
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
            "lag_seconds": round(asyncio.get_running_loop().time() - due_at, 3),
            "skipped": self._skipped,
        }

    async def _send(self, content: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._streams.settings.stream_idle_seconds):
                await self._socket.send_text(orjson.dumps(content).decode())
        except TimeoutError:
            raise Refused(IDLE, "idle", "The answers are not read.") from None


async def _receive(socket: WebSocket) -> str | bytes:
    """The next frame; raises `WebSocketDisconnect`."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000))
    text = message.get("text")
    return text if text is not None else message.get("bytes") or b""


def _json(text: str) -> object:
    try:
        return orjson.loads(text) if len(text) <= _MAX_CONTROL_LENGTH else None
    except ValueError:
        return None


async def _say_goodbye(socket: WebSocket, refusal: Refused) -> None:
    # They may be gone already, or not read.
    with contextlib.suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
        async with asyncio.timeout(_GOODBYE_SECONDS):
            if socket.application_state == WebSocketState.CONNECTED:
                await socket.send_text(orjson.dumps(refusal.body).decode())
                await socket.close(refusal.close_code)

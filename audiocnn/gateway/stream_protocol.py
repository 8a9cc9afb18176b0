"""The frames of a stream that are text, and how a stream ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 8_000, 192_000  # Hz: what microphones and sound cards have
MIN_HOP_SECONDS, MAX_HOP_SECONDS = 0.1, 10.0
_MAX_CONTROL_LENGTH = 4096
_GOODBYE_SECONDS = 2.0

NORMAL, GOING_AWAY, BAD_DATA, FAILED, TRY_LATER = 1000, 1001, 1007, 1011, 1013
BAD_START, UNAUTHORIZED, IDLE, TOO_MANY = 4400, 4401, 4408, 4429


class Start(BaseModel):
    """The first frame."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    sample_rate: Annotated[int, Field(ge=MIN_SAMPLE_RATE, le=MAX_SAMPLE_RATE)]
    hop_seconds: Annotated[float, Field(ge=MIN_HOP_SECONDS, le=MAX_HOP_SECONDS)] = 1.0
    top_k: Annotated[int, Field(ge=1, le=1000)] = 3
    detections: bool = False  # a frame when an event begins and when it ends
    api_key: str | None = None  # browsers cannot send headers with a WebSocket


class RefusedError(Exception):
    """The stream ends with a JSON frame that says why, and a close code."""

    def __init__(self, close_code: int, code: str, message: str) -> None:
        super().__init__(message)
        self.close_code, self.code = close_code, code
        self.body = {"type": "error", "error": {"code": code, "message": message}}


@dataclass
class StreamState:
    """What is known of a stream from its opening to its end."""

    request_id: str
    trace: dict[str, str]
    hops: int = 0  # that became due
    skipped: int = 0  # of them never answered
    close_code: int = NORMAL
    code: str | None = None  # of the error that ended it


async def receive(socket: WebSocket) -> str | bytes:
    """The next frame; raises `WebSocketDisconnect`."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000))
    text = message.get("text")
    return text if text is not None else message.get("bytes") or b""


def read_json(text: str) -> object:
    """What a text frame says; None if that is no JSON."""
    try:
        return orjson.loads(text) if len(text) <= _MAX_CONTROL_LENGTH else None
    except ValueError:
        return None


async def receive_before(
    socket: WebSocket, seconds: float, *, otherwise: str = "Nothing came for too long."
) -> str | bytes:
    """The next frame; raises `RefusedError` if none comes in time, `WebSocketDisconnect`."""
    try:
        async with asyncio.timeout(seconds):
            return await receive(socket)
    except TimeoutError:
        raise RefusedError(IDLE, "idle", otherwise) from None


async def send_before(socket: WebSocket, content: dict[str, Any], seconds: float) -> None:
    """Send JSON text; raises `RefusedError` if the caller does not read in time."""
    try:
        async with asyncio.timeout(seconds):
            await socket.send_text(orjson.dumps(content).decode())
    except TimeoutError:
        raise RefusedError(IDLE, "idle", "The answers are not read.") from None


async def run_together(*work: Coroutine[Any, Any, None]) -> None:
    """Run until all are done or one fails, whose exception is raised; the others are cancelled."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def say_goodbye(socket: WebSocket, refusal: RefusedError, body: dict[str, Any] | None = None) -> None:
    """Send the body, the refusal's own by default, and close."""
    # They may be gone already, or not read.
    with contextlib.suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
        async with asyncio.timeout(_GOODBYE_SECONDS):
            if socket.application_state == WebSocketState.CONNECTED:
                await socket.send_text(orjson.dumps(body or refusal.body).decode())
                await socket.close(refusal.close_code)

"""uvicorn's protocols with bounds on connections per address, headers, and unread replies.

Everything here holds before a request has a key, so nothing here depends on what the request says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Any

import orjson
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol

from audiocnn.gateway.connection_limit import ConnectionLimit
from audiocnn.gateway.settings import Settings

MAX_FRAME_BYTES = 1 << 20
MAX_HEAD_BYTES = 1 << 16  # request line and headers; one read, 256 KiB at most, may come on top
_MAX_FIRST_FRAME_BYTES = 1 << 14  # of a stream that has shown no key yet
_MAX_PONG_BYTES = 1 << 16  # that a stream leaves unread


def _error_reply(status: str, code: str, message: str, more: str = "") -> bytes:
    """A whole reply; `more` are further header lines."""
    body = orjson.dumps({"error": {"code": code, "message": message}})
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return (head + more + "Connection: close\r\n\r\n").encode() + body


_TOO_MANY = _error_reply(
    "503 Service Unavailable",
    "busy",
    "This address has too many open connections: close some, then ask again.",
    "Retry-After: 1\r\n",
)
_TOO_LARGE = _error_reply(
    "431 Request Header Fields Too Large", "bad_request", f"Send at most {MAX_HEAD_BYTES} bytes of headers."
)


class _BoundedHttp(HttpToolsProtocol):
    """Closes connections whose head, reply or silence takes too long, or whose head is too large."""

    settings: Settings
    limit: ConnectionLimit
    _is_counted = False
    _running: RequestResponseCycle | None = None
    _in_head = True  # bytes that arrive now are headers, or trailers
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _reply_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _set_send_timeout(transport, self.settings.upload_seconds)
        self._is_counted = self.limit.take(_host(self.client))
        if self._is_counted:
            self._begin_head()
        else:
            transport.write(_TOO_MANY)
            transport.close()

    def data_received(self, data: bytes) -> None:
        idle_timer = self.timeout_keep_alive_task
        super().data_received(data)
        if idle_timer and not self.timeout_keep_alive_task and self._is_idle():
            # Empty lines are no request: the time of the silence goes on.
            self.timeout_keep_alive_task = self.loop.call_at(
                idle_timer.when(), self.timeout_keep_alive_handler
            )
        self._head_bytes = self._head_bytes + len(data) if self._in_head else 0
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self.transport.write(_error_reply("400 Bad Request", "bad_request", msg))
        self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle  # `self.cycle` is the newest request, which may wait behind this one
        super()._start_asgi_task(cycle, app)

    def _is_idle(self) -> bool:
        is_answered = self.cycle is not None and self.cycle.response_complete
        return is_answered and not self._in_head and not self.transport.is_closing()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_timer:  # else it is a trailer, which is ignored
            super().on_header(name, value)

    def on_headers_complete(self) -> Any:
        self._end_head()
        return super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self._in_head = True  # what follows the last chunk is trailers

    def on_body(self, body: bytes) -> None:
        self._in_head = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = False
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reply_timer = self.loop.call_later(self.settings.upload_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._reply_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        if self._running and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)
        _cancel(self._reply_timer)
        if self._is_counted:
            self.limit.give_back(_host(self.client))

    def _begin_head(self) -> None:
        self._end_head()
        self._in_head = True
        self._head_timer = self.loop.call_later(self.settings.header_seconds, self.transport.close)

    def _end_head(self) -> None:
        _cancel(self._head_timer)
        self._head_timer, self._in_head = None, False


class _BoundedWebSocket(WebSocketsSansIOProtocol):
    """Takes over a counted connection of `_BoundedHttp`; its first frame is small."""

    limit: ConnectionLimit

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.conn = _SmallFirst(max_size=_MAX_FIRST_FRAME_BYTES, logger=logging.getLogger("uvicorn.error"))

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc and not self.handshake_initiated:  # uvicorn leaves it open, unanswered
            reason = self.conn.handshake_exc.__cause__ or self.conn.handshake_exc
            message = f"No WebSocket can be opened: {reason}."
            self.transport.write(_error_reply("400 Bad Request", "bad_request", message))
            self.transport.close()

    def handle_ping(self) -> None:
        super().handle_ping()
        if self.transport.get_write_buffer_size() > _MAX_PONG_BYTES:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.limit.give_back(_host(self.client))


def protocols(settings: Settings) -> tuple[type[HttpToolsProtocol], type[WebSocketsSansIOProtocol]]:
    """The protocol classes of HTTP and of WebSockets for one server; they share its `ConnectionLimit`."""
    shared = {"settings": settings, "limit": ConnectionLimit(settings)}
    return type("Http", (_BoundedHttp,), shared), type("WebSocket", (_BoundedWebSocket,), shared)


class _SmallFirst(ServerProtocol):
    """Frames may be large after the first message, which must be small."""

    def recv_frame(self, frame: Frame) -> None:
        super().recv_frame(frame)
        if frame.fin and frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            self.max_message_size = MAX_FRAME_BYTES


def _host(client: tuple[str, int] | None) -> str:
    return client[0] if client else ""


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer:
        timer.cancel()


def _set_send_timeout(transport: asyncio.Transport, seconds: float) -> None:
    """Have the kernel close a connection whose other end takes nothing for so long, a closing one too."""
    connection = transport.get_extra_info("socket")
    if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * seconds))

"""ASGI, around everything: the name that is asked for, and the body that is sent, of every request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from contextvars import ContextVar
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from audiocnn.gateway.auth import error_response, request_id_in
from audiocnn.gateway.errors import MisdirectedRequestError, UploadTimeoutError
from audiocnn.gateway.metrics import Metrics
from audiocnn.gateway.origins import note_refusal
from audiocnn.gateway.page.static_files import FOLDER as PAGE_FOLDER
from audiocnn.gateway.settings import Settings

log = logging.getLogger("gateway")

_DRAIN_SECONDS = 2.0

_NOTHING = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_PAGE_POLICY = (
    f"{_NOTHING}; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src blob:; "
    "connect-src 'self'; manifest-src 'self'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_DOCS_POLICY = (  # Swagger's page starts itself with a script inside it
    "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'; "
    "script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'"
)
_HOST = re.compile(r"\[([0-9a-f:.]+)\](?::\d*)?|([^:\[\]/@\s]+)(?::\d*)?", re.IGNORECASE)


class HostMiddleware:
    """Answers 421 to a `Host` that is not ours.

    A page whose name is pointed at this machine after it was loaded (DNS rebinding) is of one origin with
    us, so no check of origins stops it; but its browser sends the page's name. Addresses cannot be rebound.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._hosts = settings.hosts
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or stream."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if all(map(self._is_ours, headers.getlist("host"))):  # programs of HTTP/1.0 may send none
            await self._app(scope, receive, send)
            return
        error = MisdirectedRequestError("This name is not one of this server: add it to ALLOWED_HOSTS.")
        reply = error_response(error, request_id := request_id_in(headers))
        reply.headers["X-Request-Id"] = request_id
        method = scope.get("method", "GET")
        note_refusal(self._metrics, error, method, request_id, what="a foreign host")
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(reply)
        else:
            await reply(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        name = (match[1] or match[2]).lower() if match else ""
        return name in self._hosts or "*" in self._hosts or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


class HeadMiddleware:
    """Answers `HEAD` wherever there is a `GET`, with its status and headers; uvicorn leaves out the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or stream."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        inner = {**scope, "method": "GET"}
        try:
            await self._app(inner, receive, send)
        finally:
            scope["route"] = inner.get("route")


class SecurityHeadersMiddleware:
    """Says to browsers what a reply may load and run: the page its own files, all else nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or stream."""
        path = scope.get("path", "")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _policy_of(path)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _policy_of(path: str) -> str:
    if path == "/" or path.startswith(f"{PAGE_FOLDER}/"):
        return _PAGE_POLICY
    if path.startswith("/docs"):
        return _DOCS_POLICY
    return _NOTHING


class Body:
    """The body of one request: knows how much of it was read; all of it must come in time."""

    def __init__(self, receive: Receive, headers: Headers, seconds: float) -> None:
        has_one = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        self.is_read = not has_one
        self._receive = receive
        self._is_awaited = "expect" in headers  # the caller waits for "100 Continue", which a read sends
        self._seconds = seconds
        self._deadline = asyncio.get_running_loop().time() + seconds

    async def receive(self) -> Message:
        """The next message of the connection; raises `UploadTimeoutError`."""
        if self.is_read:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise UploadTimeoutError(f"The body did not arrive within {self._seconds:g} s.") from None
        self._is_awaited = False
        self.is_read = not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Read on for a moment: many clients look at the reply only after they have sent everything."""
        with contextlib.suppress(TimeoutError, UploadTimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not (self.is_read or self._is_awaited):
                    await self.receive()

    async def until_gone(self) -> None:
        """Return when the connection is closed; the body must have been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


_body: ContextVar[Body] = ContextVar("body")


async def until_caller_is_gone() -> None:
    """Return when the caller of the request under way has closed its connection; the body must be read."""
    await _body.get().until_gone()


class BodyMiddleware:
    """A request whose body was not read to its end loses its connection, whatever its method.

    Without it a slow or endless upload has no deadline.
    """

    def __init__(self, app: ASGIApp, upload_seconds: float) -> None:
        self._app = app
        self._seconds = upload_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = Body(receive, Headers(scope=scope), self._seconds)
        _body.set(body)

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and not body.is_read:
                await body.drain()
                if not body.is_read:
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, body.receive, send_and_close)

"""The page asks for a key when keys are set, once: a cookie carries it to uploads, answers and streams.

Gradio's own log-in wants a name as well, and its cookie would not open `/ws/predict`.
"""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from audiocnn.gateway.auth import AccessControl, error_response, key_in
from audiocnn.gateway.errors import GatewayError, UnauthorizedError
from audiocnn.gateway.words import friendly

COOKIE = "audiocnn_key"
_MAX_FORM_BYTES = 4096
_FORM = (Path(__file__).parent / "key.html").read_text(encoding="utf-8")


def key_of(headers: Headers) -> str | None:
    """The key in a header, else the one in the page's cookie."""
    if key := key_in(headers):
        return key
    # Not http.cookies: in this Python it takes the square of the length of what is in quotes.
    pairs = (pair.strip().partition("=") for pair in headers.get("cookie", "").split(";"))
    values = [value for name, _, value in pairs if name == COOKIE]
    try:
        return base64.urlsafe_b64decode(values[0].strip('"')).decode() if values else None
    except ValueError:  # no base64, or no text
        return None


def admit(door: AccessControl, request: Request) -> None:
    """Count one clip of this caller; raises `GatewayError` without a key or above the rate."""
    key = key_of(request.headers)
    door.check_key(key)
    door.rate.charge(door.caller(key, request.client.host if request.client else None))


class LoginMiddleware:
    """ASGI, around the page and all that it loads: lets pass who has a key, else shows a form."""

    def __init__(self, app: ASGIApp, door: AccessControl) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or self._is_known(key_of(Headers(scope=scope))):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        await (await self._answer(request))(scope, receive, send)

    def _is_known(self, key: str | None) -> bool:
        try:
            self._door.check_key(key)
        except GatewayError:
            return False
        return True

    async def _answer(self, request: Request) -> Response:
        """The form; after a right key the page, with a cookie that scripts cannot read."""
        if "text/html" not in request.headers.get("accept", ""):
            return error_response(
                UnauthorizedError("Load the page again, and type in a key."), request.state.request_id
            )
        if request.method != "POST":
            return _form("", 401)
        self._door.rate.charge(self._door.caller(None, request.client.host if request.client else None))
        key = await _posted_key(request)
        if not self._is_known(key):
            return _form("This is not one of the keys.", 401)
        reply = RedirectResponse(request.url.path, 303)
        reply.set_cookie(
            COOKIE,
            base64.urlsafe_b64encode(key.encode()).decode(),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return reply


async def _posted_key(request: Request) -> str:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM_BYTES:
            return ""
    return parse_qs(body.decode("ascii", "replace")).get("key", [""])[0].strip()


def _form(problem: str, status: int) -> Response:
    title, _ = friendly("unauthorized")
    return HTMLResponse(_FORM.format(title=escape(title), problem=escape(problem)), status)

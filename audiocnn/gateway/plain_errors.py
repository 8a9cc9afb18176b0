"""Errors of other protocols: `{"error": "code: message"}` below `/v2` and `/hf`.

Whatever refuses a request there (routes, keys, limits, the framework), the error has this shape.
"""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import BaseModel, Field
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from audiocnn.gateway import schemas

PREFIXES = ("/v2", "/hf")


class PlainError(BaseModel):
    """An error as Triton, KServe and Hugging Face's endpoints write it."""

    error: str = Field(examples=["unsupported_format: The bytes are in no known audio container. ..."])


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: what can go wrong."""
    return {status: row | {"model": PlainError} for status, row in schemas.errors(*statuses).items()}


class PlainErrorMiddleware:
    """Rewrites the JSON errors of the gateway for the addresses of other protocols."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or stream."""
        parts = scope.get("path", "").split("/", 2)
        if scope["type"] != "http" or f"/{parts[1] if len(parts) > 1 else ''}" not in PREFIXES:
            await self._app(scope, receive, send)
            return
        start: Message | None = None  # of an error, until its body is complete
        body = b""

        async def rewrite(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start" and message["status"] >= 400:
                start = message
                return
            if start is None or message["type"] != "http.response.body":
                await send(message)
                return
            body += message.get("body", b"")
            if not message.get("more_body", False):
                content = plain(body)
                MutableHeaders(scope=start)["Content-Length"] = str(len(content))
                await send(start)
                await send({"type": "http.response.body", "body": content})

        await self._app(scope, receive, rewrite)


def plain(body: bytes) -> bytes:
    """The same error in the plain shape; what is no error of ours stays as it is."""
    try:
        error = orjson.loads(body)["error"]
        return orjson.dumps({"error": f"{error['code']}: {error['message']}"})
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return body

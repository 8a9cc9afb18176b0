"""Who may ask, and how often: request ids, origins, keys, rates, and no error without a JSON body."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from audiocnn.errors import AudioError, ServerError
from audiocnn.gateway import server_timing
from audiocnn.gateway.connection_limit import counted_address
from audiocnn.gateway.errors import (
    ForbiddenOriginError,
    GatewayError,
    Known,
    NotReadyError,
    RateLimitedError,
    UnauthorizedError,
    body_of,
    status_of,
)
from audiocnn.gateway.metrics import GONE, Metrics, route_label
from audiocnn.gateway.page.static_files import FOLDER as PAGE_FOLDER
from audiocnn.gateway.settings import Settings
from audiocnn.tracing import REQUEST_ID, TRACEPARENT, printable_id, trace_headers, trace_id

log = logging.getLogger("gateway")

OPEN_PATHS = (  # for probes and readers: need no key
    "/",
    "/docs",
    "/favicon.ico",
    "/health",
    "/openapi.json",
    "/ready",
    "/ui",
    "/ui/",
    "/v2/health/live",
    "/v2/health/ready",
)
DOCS_ASSETS = "/docs-assets"
OPEN_FOLDERS = (f"{DOCS_ASSETS}/", f"{PAGE_FOLDER}/")  # files only
# Asked every few seconds: logged if they fail.
QUIET_PATHS = ("/health", "/ready", "/metrics", "/v2/health/live", "/v2/health/ready")
MAX_ORIGIN = 200  # characters of an origin that are repeated in errors and logs
_MAX_CALLERS = 10_000


class TokenBucket:
    """A token bucket per caller: `per_minute` requests, as many at once as fit into ten seconds."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_minute / 60
        self._burst = max(1.0, per_minute / 6)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # caller: tokens left, when

    def acquire(self, caller: str) -> None:
        """Take a request off the caller's bucket; raises `RateLimitedError` if it is empty."""
        if not self._per_second:
            return
        left = self._left(caller)
        refused = left < 1
        self._put(caller, left if refused else left - 1)
        if refused:
            wait = (1 - left) / self._per_second
            raise RateLimitedError(f"Too many requests: ask again in {wait:.0f} s or more.", wait)

    def debit(self, caller: str, count: int) -> None:
        """Take so many more off, below zero too: a batch passes, and the caller waits afterwards."""
        if self._per_second:
            self._put(caller, self._left(caller) - count)

    def _left(self, caller: str) -> float:
        now = self._clock()
        left, then = self._buckets.get(caller, (self._burst, now))
        return min(self._burst, left + (now - then) * self._per_second)

    def _put(self, caller: str, left: float) -> None:
        self._buckets[caller] = (left, self._clock())
        self._buckets.move_to_end(caller)
        if len(self._buckets) > _MAX_CALLERS:  # forget the caller that was silent for longest
            self._buckets.popitem(last=False)


class AccessControl:
    """The checks that every request and every stream passes."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.rate = TokenBucket(settings.rate_limit_per_minute)

    def check_origin(self, origin: str | None) -> None:
        """Browsers say which page asks; programs say nothing and pass."""
        allowed = self._settings.origins
        if origin is not None and origin not in allowed and "*" not in allowed:
            raise forbidden_origin(origin)

    def check_key(self, key: str | None) -> None:
        """Raises `UnauthorizedError` for a key that is none of ours, if there are any."""
        digests = self._settings.key_digests
        digest = hashlib.sha256((key or "").encode("utf-8", "surrogateescape")).digest()
        matches = [hmac.compare_digest(digest, each) for each in digests]  # all of them, always
        if digests and not any(matches):
            raise UnauthorizedError("Send a key in the header X-API-Key, or Authorization: Bearer.")

    def caller(self, key: str | None, host: str | None) -> str:
        """Whose rate a request counts for; asked after `check_key`, so a key is a real one."""
        if key and self._settings.key_digests:
            return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        return counted_address(host or "")


def forbidden_origin(origin: str) -> ForbiddenOriginError:
    """The error for pages of an origin that may not ask."""
    return ForbiddenOriginError(f"Pages of {origin[:MAX_ORIGIN]} may not ask: add it to ALLOWED_ORIGINS.")


def key_in(headers: Headers) -> str | None:
    """The key that a request carries."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else None)


def request_id_in(headers: Headers) -> str:
    """The caller's `X-Request-Id` as far as it can be printed, else a new one."""
    return printable_id(headers.get(REQUEST_ID, "")) or str(uuid.uuid4())


def error_response(error: Known, request_id: str) -> Response:
    """The error as JSON, with its status and headers."""
    status, headers = status_of(error)
    content = orjson.dumps(body_of(error) | {"request_id": request_id})
    return Response(content, status_code=status, headers=headers, media_type="application/json")


class AccessMiddleware:
    """ASGI middleware around all routes of HTTP; a stream asks the `AccessControl` itself."""

    def __init__(self, app: ASGIApp, access: AccessControl, metrics: Metrics) -> None:
        self._app = app
        self._access = access
        self._metrics = metrics
        self._routes: frozenset[str] = frozenset()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, and log it in one line."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = request_id_in(headers)
        state = scope.setdefault("state", {})
        state["request_id"], state["trace"] = request_id, trace_headers(headers)
        path = scope["path"]  # a mounted application may change it
        began, status, timing = time.perf_counter(), 0, server_timing.begin()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                sent = MutableHeaders(scope=message)
                sent["X-Request-Id"] = request_id
                if times := timing.header():
                    sent[server_timing.HEADER] = times
            await send(message)

        try:
            self._admit(scope, headers)
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = status or GONE
        except (GatewayError, AudioError, ServerError) as error:
            state["code"] = body_of(error)["error"]["code"]
            await error_response(error, request_id)(scope, receive, send_with_id)
        except asyncio.CancelledError:  # the server stops
            state["code"] = NotReadyError.code
            if not status:
                stopped = NotReadyError("The gateway stops: ask again.")
                await error_response(stopped, request_id)(scope, receive, send_with_id)
        except Exception:
            log.exception("a request failed", extra={"request_id": request_id})
            state["code"] = GatewayError.code
            if not status:
                failed = GatewayError("The gateway failed; its log has the request id and the reason.")
                await error_response(failed, request_id)(scope, receive, send_with_id)
        self._finish(scope, path, status or GONE, time.perf_counter() - began)

    def _finish(self, scope: Scope, path: str, status: int, seconds: float) -> None:
        """Count and log a request that is over. What callers do wrong is no warning of the server's."""
        if not self._routes:  # all are declared by now
            self._routes = frozenset(getattr(route, "path", "") for route in scope["app"].routes)
        matched = getattr(scope.get("route"), "path", path)  # with the names of its parameters
        route, state = route_label(path, matched, self._routes, OPEN_FOLDERS), scope["state"]
        self._metrics.request(route, scope["method"], status, seconds)
        if code := state.get("code"):
            self._metrics.error(code)
        is_quiet = route in QUIET_PATHS and status < 400
        quoted = scope["raw_path"].decode("ascii", "replace")  # no line breaks into the log
        log.log(
            logging.DEBUG if is_quiet else logging.WARNING if status >= 500 else logging.INFO,
            "%s %s %d",
            scope["method"],
            quoted,
            status,
            extra={
                "request_id": state["request_id"],
                "trace_id": trace_id(state["trace"].get(TRACEPARENT)),
                "client": scope["client"][0] if scope.get("client") else None,
                "route": route,
                "status": status,
                "code": code,
                "origin": Headers(scope=scope).get("origin", "")[:MAX_ORIGIN] if status == 403 else None,
                "ms": round(1000 * seconds, 1),
            },
        )

    def _admit(self, scope: Scope, headers: Headers) -> None:
        if scope["path"] == "/health":
            return
        self._access.check_origin(headers.get("origin"))
        if scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_FOLDERS):
            return
        key = key_in(headers)
        self._access.check_key(key)
        if scope["path"] == "/metrics":  # a scrape does not count for a caller's rate
            return
        caller = self._access.caller(key, scope["client"][0] if scope.get("client") else None)
        self._access.rate.acquire(caller)
        scope["state"]["caller"] = caller

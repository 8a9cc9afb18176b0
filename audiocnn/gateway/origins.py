"""Pages of other origins (CORS): what a browser may send us, and a trace of what was refused."""

from __future__ import annotations

import logging

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from audiocnn.gateway.auth import MAX_ORIGIN, error_response, forbidden_origin, request_id_in
from audiocnn.gateway.errors import BadRequestError, GatewayError
from audiocnn.gateway.metrics import OTHER, Metrics
from audiocnn.gateway.settings import Settings
from audiocnn.options import HEADERS

log = logging.getLogger("gateway")

METHODS = ("GET", "HEAD", "POST", "PUT")


class OriginMiddleware(CORSMiddleware):
    """Starlette's, but a refused preflight gets an error of ours, is counted and logged."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        super().__init__(
            app,
            allow_origins=settings.origins,
            allow_methods=METHODS,
            allow_headers=["X-API-Key", "Authorization", "X-Request-Id", "Content-Type", *HEADERS],
            expose_headers=["X-Request-Id", "Retry-After", "Server-Timing"],
        )
        self._metrics = metrics

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to `OPTIONS`."""
        reply = super().preflight_response(request_headers)
        if reply.status_code < 400:
            return reply
        origin, request_id = request_headers["origin"], request_id_in(request_headers)
        error: GatewayError = forbidden_origin(origin)
        if self.is_allowed_origin(origin):
            names = ", ".join(sorted(self.allow_headers))
            error = BadRequestError(f"A page may use {', '.join(METHODS)}, and the headers {names}.")
        refused = error_response(error, request_id)
        refused.headers["X-Request-Id"] = request_id
        for name, value in reply.headers.items():
            if name.startswith("access-control-") or name == "vary":
                refused.headers[name] = value
        note_refusal(self._metrics, error, "OPTIONS", request_id, origin=origin)
        return refused


def note_refusal(
    metrics: Metrics,
    error: GatewayError,
    method: str,
    request_id: str,
    *,
    what: str | None = None,
    origin: str | None = None,
) -> None:
    """Count and log a request that no route sees; `what` is the log's text, the refused method by default."""
    metrics.error(error.code)
    metrics.request(OTHER, method, error.status, 0.0)
    extra = {
        "request_id": request_id,
        "route": OTHER,
        "status": error.status,
        "code": error.code,
        "origin": origin[:MAX_ORIGIN] if origin else None,
    }
    log.info("%s %d", what or f"{method} refused", error.status, extra=extra)

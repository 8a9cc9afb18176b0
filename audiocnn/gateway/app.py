"""The application: routes, live streams and the page, behind one guard."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.websockets import WebSocket

from audiocnn import __version__
from audiocnn.gateway.auth import DOCS_ASSETS, AccessMiddleware, error_response
from audiocnn.gateway.compat import add_compat_routes
from audiocnn.gateway.embedding import add_embedding_route
from audiocnn.gateway.errors import FRAMEWORK_CODES, GatewayError, NotFoundError
from audiocnn.gateway.hugging_face import add_hugging_face_routes
from audiocnn.gateway.middleware import (
    BodyMiddleware,
    HeadMiddleware,
    HostMiddleware,
    SecurityHeadersMiddleware,
)
from audiocnn.gateway.open_inference import add_open_inference_routes
from audiocnn.gateway.openapi import describe_app, operation_id
from audiocnn.gateway.origins import OriginMiddleware
from audiocnn.gateway.page.static_files import add_page
from audiocnn.gateway.plain_errors import PlainErrorMiddleware
from audiocnn.gateway.routes import add_metrics_route, add_predict_routes, add_reading_routes
from audiocnn.gateway.service import PredictionService
from audiocnn.gateway.settings import Settings

DESCRIPTION = """Names the sounds in a clip. Errors are `{"error": {"code", "message"}, "request_id"}`; a
request may bring its own `X-Request-Id`. If keys are set, send one as `X-API-Key` or `Authorization: Bearer`.
Live streams: the WebSocket `/ws/predict`, see docs/gateway.md."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The ASGI application; settings come from the environment unless given."""
    settings = settings or Settings()
    gateway = PredictionService(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    app = FastAPIOffline(  # /docs with its scripts from here, not from somebody's network
        title="AudioCNN Serve",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
        static_url=DOCS_ASSETS,
        servers=[{"url": "/", "description": "this gateway"}],
        generate_unique_id_function=operation_id,
    )
    describe_app(app, settings)
    app.state.metrics = gateway.metrics
    app.add_middleware(HeadMiddleware)
    app.add_middleware(AccessMiddleware, access=gateway.access, metrics=gateway.metrics)
    # Each is around those before it: refusals of the guard carry these headers too.
    app.add_middleware(OriginMiddleware, settings=settings, metrics=gateway.metrics)
    app.add_middleware(SecurityHeadersMiddleware)
    app.add_middleware(HostMiddleware, settings=settings, metrics=gateway.metrics)
    app.add_middleware(PlainErrorMiddleware)
    app.add_middleware(BodyMiddleware, upload_seconds=settings.upload_seconds)
    add_error_handlers(app)
    add_reading_routes(app, gateway)
    add_predict_routes(app, gateway)
    add_embedding_route(app, gateway)
    add_open_inference_routes(app, gateway)
    add_hugging_face_routes(app, gateway)
    if settings.metrics_port is None:
        add_metrics_route(app, gateway)

    @app.websocket("/ws/predict")
    async def stream(socket: WebSocket) -> None:
        await gateway.streams.serve(socket)

    add_compat_routes(app, gateway)
    add_page(app)

    @app.websocket("/{path:path}")
    async def no_stream(socket: WebSocket) -> None:
        await gateway.streams.refuse(socket, NotFoundError("There is no stream here: see docs/gateway.md."))

    return app


def add_error_handlers(app: FastAPI) -> None:
    """What the framework refuses, in the same shape as the rest."""

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        known = GatewayError(f"{error.detail}: see /docs for what there is.")
        known.status = error.status_code
        known.code = FRAMEWORK_CODES.get(error.status_code, "bad_request")
        request.state.code = known.code
        reply = error_response(known, request.state.request_id)
        reply.headers.update(error.headers or {})
        if error.status_code == 405:  # Starlette names the methods of the first route only
            routes = [route for route in app.routes if route.matches(request.scope)[0] is not Match.NONE]
            methods = {method for route in routes for method in getattr(route, "methods", ())}
            reply.headers["Allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
        return reply

"""The API of the Environmental-Audio project below `/compat/environmental-audio/`, answered by our model.

Its page runs unchanged with that address as `VITE_API_BASE`. docs/compatibility.md has the fields.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.websockets import WebSocket

from audiocnn.errors import AudioError, ServerError
from audiocnn.gateway.compat_shapes import (
    SPECTROGRAM,
    PredictParameters,
    SpectrogramParameters,
    spectrogram_object,
    to_reply,
)
from audiocnn.gateway.compat_stream import serve_stream
from audiocnn.gateway.errors import GatewayError, body_of, status_of
from audiocnn.gateway.routes import json_reply
from audiocnn.gateway.service import PredictionService

PREFIX = "/compat/environmental-audio"


class DetailRoute(APIRoute):
    """Errors as `{"detail": "text"}`; 422 for a parameter out of range."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """Around FastAPI's handler of the route."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError as error:
                problem = error.errors()[0]
                return _detail(f"{problem['loc'][-1]}: {problem['msg']}", 422)
            except (GatewayError, AudioError, ServerError) as error:
                request.state.code = body_of(error)["error"]["code"]
                status, headers = status_of(error)
                reply = _detail(str(error), 400 if status == 415 else status)
                reply.headers.update(headers)
                return reply

        return handle


def _detail(text: str, status: int) -> Response:
    reply = json_reply({"detail": text})
    reply.status_code = status
    return reply


def add_compat_routes(app: FastAPI, gateway: PredictionService) -> None:
    """All addresses of that project."""
    router = APIRouter(prefix=PREFIX, route_class=DetailRoute, include_in_schema=False)

    @router.get("/health")
    async def health() -> Response:
        return json_reply({"status": "ok"})

    @router.get("/labels")
    async def labels() -> Response:
        return json_reply({"labels": [row["name"] for row in await gateway.model.labels()]})

    @router.get("/config")
    async def config() -> Response:
        frontend = gateway.model.frontend
        shown = {"duration": frontend.clip_seconds, "n_mels": frontend.n_mels}
        return json_reply(shown | {"stream_duration": None, "stream_n_mels": None})

    @router.post("/predict")
    async def predict(request: Request, query: Annotated[PredictParameters, Query()]) -> Response:
        frontend = gateway.model.frontend
        more = {"windows": True} if query.reduce_payload else {"windows": True, **SPECTROGRAM}
        answer = await _ask(gateway, request, {"top_k": query.top_k, **more})
        warnings = [*answer["warnings"], *query.warnings(frontend)]
        return json_reply(to_reply(answer, frontend) | {"warnings": warnings})

    @router.post("/spectrogram")
    async def spectrogram(request: Request, query: Annotated[SpectrogramParameters, Query()]) -> Response:
        frontend = gateway.model.frontend
        answer = await _ask(gateway, request, {"top_k": 1, **SPECTROGRAM})
        warnings = [*answer["warnings"], *query.warnings(frontend)]
        return json_reply(spectrogram_object(answer["clip_spectrogram"], frontend) | {"warnings": warnings})

    app.include_router(router)

    @app.websocket(f"{PREFIX}/ws/predict")
    async def stream(socket: WebSocket) -> None:
        await serve_stream(gateway.streams, socket)


async def _ask(gateway: PredictionService, request: Request, options: dict[str, Any]) -> dict[str, Any]:
    async with contextlib.AsyncExitStack() as stack:
        form = await gateway.form(request, stack)
        state = request.state
        return await gateway.predict(form.only_file(), state.request_id, options, state.trace)

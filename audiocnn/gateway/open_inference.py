"""The Open Inference Protocol (v2) at `/v2`, as KServe, Triton, OpenVINO Model Server and MLServer speak it.

docs/clients.md has the models, their tensors and examples of clients.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request
from starlette.responses import JSONResponse, Response

from audiocnn import __version__
from audiocnn.gateway.plain_errors import responses
from audiocnn.gateway.service import PredictionService
from audiocnn.gateway.tensor_models import TensorModels
from audiocnn.gateway.tensors import EXTENSIONS, InferReply, ModelMetadata, ServerMetadata

ModelName = Annotated[str, Path(examples=["audiocnn", "audiocnn-waveform"])]
TAGS: list[str | Enum] = ["open inference protocol"]
_EXAMPLE = {
    "inputs": [{"name": "audio", "shape": [1, 1], "datatype": "BYTES", "data": ["UklGRg..."]}],
    "outputs": [{"name": "label"}, {"name": "score"}],
    "parameters": {"top_k": 3},
}
INFER_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/InferRequest"},
                "example": _EXAMPLE,
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def add_open_inference_routes(app: FastAPI, gateway: PredictionService) -> None:
    """`/v2` and what is below it."""
    _add_server_routes(app, gateway)
    _add_model_routes(app, gateway, TensorModels(gateway))


def _add_server_routes(app: FastAPI, gateway: PredictionService) -> None:
    @app.get(
        "/v2", tags=TAGS, name="v2_server", response_model=ServerMetadata, responses=responses(401, 403, 429)
    )
    async def server() -> Response:
        """The server's name, version and extensions."""
        return JSONResponse({"name": "audiocnn-serve", "version": __version__, "extensions": EXTENSIONS})

    @app.get("/v2/health/live", tags=TAGS, name="v2_live", response_model=dict[str, bool])
    async def live() -> Response:
        """The gateway runs. Needs no key."""
        return JSONResponse({"live": True})

    @app.get(
        "/v2/health/ready",
        tags=TAGS,
        name="v2_ready",
        response_model=dict[str, bool],
        responses=responses(403, 503),
    )
    async def ready() -> Response:
        """A real prediction works. Needs no key."""
        await gateway.check_ready()
        return JSONResponse({"ready": True})


def _add_model_routes(app: FastAPI, gateway: PredictionService, models: TensorModels) -> None:
    reading = responses(401, 403, 404, 429, 502, 503)
    asking = responses(400, 401, 403, 404, 408, 413, 415, 429, 502, 503)

    async def metadata(name: ModelName, request: Request) -> Response:
        """Versions, inputs and outputs of a model."""
        return JSONResponse(await models.metadata(name, request.path_params.get("version")))

    async def model_ready(name: ModelName, request: Request) -> Response:
        """A real prediction of this model works."""
        models.find(name)
        await models.version(request.path_params.get("version"))
        await gateway.check_ready()
        return JSONResponse({"name": name, "ready": True})

    async def config(name: ModelName, request: Request) -> Response:
        """Triton's model configuration: largest batch, tensors, class names and sample rate."""
        return JSONResponse(await models.config(name, request.path_params.get("version")))

    async def infer(name: ModelName, request: Request) -> Response:
        """Classify a batch: sound files (BYTES), or waveforms at the model's sample rate (FP32)."""
        return await models.infer(request, name, request.path_params.get("version"))

    # The addresses with a version do the same and are left out of the document.
    for version in ("", "/versions/{version}"):
        path = "/v2/models/{name}" + version
        more: dict[str, Any] = {"tags": TAGS, "include_in_schema": not version}
        app.get(path, name="v2_model", response_model=ModelMetadata, responses=reading, **more)(metadata)
        app.get(f"{path}/ready", name="v2_model_ready", responses=reading, **more)(model_ready)
        app.get(f"{path}/config", name="v2_model_config", responses=reading, **more)(config)
        app.post(
            f"{path}/infer",
            name="v2_infer",
            response_model=InferReply,
            responses=asking,
            openapi_extra=INFER_BODY,
            **more,
        )(infer)

"""Hugging Face's shape of audio classification: what `huggingface_hub.InferenceClient` sends and reads."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import orjson
from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from audiocnn.errors import BadOptionError
from audiocnn.gateway import plain_errors
from audiocnn.gateway.multipart import JSON_COPIES, json_limit, read_all, receiving, too_large
from audiocnn.gateway.service import PredictionService, check_is_file, given_options
from audiocnn.gateway.settings import Settings
from audiocnn.options import OPTIONS
from audiocnn.request_body import read_base64, read_json_object

_TOP_K: dict[str, Any] = OPTIONS["top_k"]


class ClassificationParameters(BaseModel):
    """Scores are calibrated probabilities already: only the model's own function can be asked for."""

    model_config = ConfigDict(extra="forbid")

    top_k: Annotated[int, Field(ge=1, le=_TOP_K["maximum"])] | None = None
    function_to_apply: Literal["softmax", "sigmoid"] | None = None


class ClassificationRequest(BaseModel):
    """A sound file in base64 and parameters; a sound file alone is sent as the body itself."""

    model_config = ConfigDict(extra="forbid")

    inputs: str = Field(description="a sound file in base64", json_schema_extra={"format": "byte"})
    parameters: ClassificationParameters | None = None


class LabelScore(BaseModel):
    """A class and its confidence."""

    label: str = Field(examples=["dog"])
    score: float = Field(ge=0, le=1, examples=[0.93])


def read_request(body: bytes, settings: Settings, activation: str) -> tuple[bytes, int | None]:
    """Audio and `top_k`, if it has one, of a JSON body; raises `AudioError` or `UploadTooLargeError`.

    `activation` is the function that the model applies to its logits.
    """
    try:
        asked = ClassificationRequest.model_validate(read_json_object(body))
    except ValidationError as error:
        problem = error.errors()[0]
        raise BadOptionError(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}.") from None
    parameters = asked.parameters or ClassificationParameters()
    if parameters.function_to_apply not in (None, activation):
        raise BadOptionError(
            f"function_to_apply={parameters.function_to_apply} is not possible: the scores of this model are "
            f"calibrated probabilities by {activation}. Leave it out, or send {activation}."
        )
    audio = read_base64(asked.inputs, "inputs")
    if len(audio) > settings.max_upload_bytes:
        raise too_large(settings)
    return audio, parameters.top_k


def add_hugging_face_routes(app: FastAPI, gateway: PredictionService) -> None:
    """`POST /hf/audio-classification`."""
    settings = gateway.settings

    @app.post(
        "/hf/audio-classification",
        name="hf_audio_classification",
        tags=["hugging face"],
        response_model=list[LabelScore],
        responses=plain_errors.responses(400, 401, 403, 408, 413, 415, 429, 502, 503),
        openapi_extra=BODY,
    )
    async def audio_classification(request: Request) -> Response:
        """Name the sounds in one file: its bytes, or JSON with base64 and parameters.

        `InferenceClient(base_url=".../hf/audio-classification").audio_classification("clip.wav")`.
        """
        top_k = given_options(request, ("top_k",)).get("top_k", _TOP_K["default"])
        is_json = request.headers.get("content-type", "").lower().startswith("application/json")
        if not is_json:
            check_is_file(request)
        limit, copies = (json_limit(settings), JSON_COPIES) if is_json else (settings.max_upload_bytes, 1)
        async with receiving(request, settings, gateway.budget, max_bytes=limit, copies=copies) as chunks:
            audio = await read_all(chunks)
            if is_json:
                audio, own = await asyncio.to_thread(read_request, audio, settings, gateway.model.activation)
                top_k = own or top_k
            state = request.state
            answer = await gateway.predict(audio, state.request_id, {"top_k": top_k}, state.trace)
        rows = [{"label": row["class"], "score": row["confidence"]} for row in answer["predictions"]]
        return Response(orjson.dumps(rows), media_type="application/json")


BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"schema": {"$ref": "#/components/schemas/ClassificationRequest"}},
        },
    }
}

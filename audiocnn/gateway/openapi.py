"""The OpenAPI document: keys, operation ids that do not change, and examples of answers and errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from audiocnn.gateway.auth import OPEN_PATHS
from audiocnn.gateway.hugging_face import ClassificationRequest
from audiocnn.gateway.settings import Settings
from audiocnn.gateway.tensors import InferRequest

SECURITY_SCHEMES = {
    "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "Bearer": {"type": "http", "scheme": "bearer"},
}
# Bodies that routes read themselves.
_BODIES = (InferRequest, ClassificationRequest)

_PREDICTIONS = [
    {"class": "church_bells", "confidence": 0.995536},
    {"class": "cow", "confidence": 0.000617},
]
_ANSWER: dict[str, Any] = {
    "predictions": _PREDICTIONS,
    "is_unknown": False,
    "is_silent": False,
    "warnings": [],
    "duration": 5.0,
    "model": {"name": "audiocnn", "version": "1.0", "sha256": "be3ad1894ea1"},
    "request_id": "0c5a1f7e-5d0c-4c0e-9a40-2f3cf0a1d7b5",
}
_UNSUPPORTED = {
    "code": "unsupported_format",
    "message": "The bytes are in no known audio container. Send WAV, FLAC, Ogg, MP3, AIFF, M4A, AAC or WebM.",
}
# Answers by the id of their operation.
ANSWERS: dict[str, Any] = {
    "predict": _ANSWER,
    "embed": {
        "embedding": [0.31, 0.0, 1.274],
        "dimension": 256,
        **{name: _ANSWER[name] for name in ("is_silent", "warnings", "duration", "model", "request_id")},
    },
    "predict_batch": {
        "results": [
            {"file": "church_bells.wav", "predictions": _PREDICTIONS},
            {"file": "notes.txt", "error": _UNSUPPORTED},
        ],
        "request_id": _ANSWER["request_id"],
    },
    "hf_audio_classification": [{"label": row["class"], "score": row["confidence"]} for row in _PREDICTIONS],
    "v2_infer": {
        "model_name": "audiocnn",
        "model_version": "1.0",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [1, 2], "data": ["church_bells", "cow"]},
            {"name": "score", "datatype": "FP32", "shape": [1, 2], "data": [0.995536, 0.000617]},
        ],
    },
}
# Code and message by status.
ERRORS: dict[str, tuple[str, str]] = {
    "400": ("bad_option", "top_k='0' is not possible: it must be a whole number from 1."),
    "401": ("unauthorized", "Send a key in the header X-API-Key, or Authorization: Bearer."),
    "403": ("forbidden_origin", "Pages of this origin may not ask: add it to ALLOWED_ORIGINS."),
    "404": ("not_found", "There is no model 'dogs': audiocnn and audiocnn-waveform are served."),
    "408": ("upload_timeout", "The body did not arrive within 60 s."),
    "413": (
        "upload_too_large",
        "At most 40 MiB of audio in one request (MAX_UPLOAD_MB): send FLAC, or less.",
    ),
    "415": (_UNSUPPORTED["code"], _UNSUPPORTED["message"]),
    "429": ("rate_limited", "Too many requests: ask again in 2 s or more."),
    "502": ("server_failed", "The server failed at this request: 500 Worker died."),
    "503": ("busy", "As many requests as can be held are waiting: ask again."),
}


def operation_id(route: APIRoute) -> str:
    """The name of the route's function; a method that is an alias (`PUT`) is added to it."""
    method = min(route.methods or {"GET"})
    return route.name if method in ("GET", "POST") else f"{route.name}_{method.lower()}"


def describe_app(app: FastAPI, settings: Settings) -> None:
    """Complete the document that `app.openapi` makes from the routes."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            complete(generate(), needs_key=bool(settings.api_keys))
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def complete(document: dict[str, Any], *, needs_key: bool) -> None:
    """Add schemas of bodies, security and examples to a document, in place."""
    components = document.setdefault("components", {})
    components["securitySchemes"] = SECURITY_SCHEMES
    _, found = models_json_schema(
        [(model, "validation") for model in _BODIES], ref_template="#/components/schemas/{model}"
    )
    schemas = components.setdefault("schemas", {})
    schemas.update(found["$defs"])
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    keys: list[dict[str, Any]] = [{name: []} for name in SECURITY_SCHEMES]
    document["security"] = keys if needs_key else [*keys, {}]
    for path, operation in _operations(document):
        operation["responses"].pop("422", None)  # no route leaves its checks to the framework
        if path in OPEN_PATHS:
            operation["security"] = []
        _add_examples(operation)


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            yield path, operation


def _add_examples(operation: dict[str, Any]) -> None:
    for status, reply in operation["responses"].items():
        content = reply.get("content", {}).get("application/json")
        if content is None:
            continue
        if status == "200" and (answer := ANSWERS.get(operation["operationId"].removesuffix("_put"))):
            content["example"] = answer
        elif status in ERRORS:
            content["example"] = _error(content["schema"]["$ref"], *ERRORS[status])


def _error(schema: str, code: str, message: str) -> dict[str, Any]:
    if schema.endswith("/PlainError"):
        return {"error": f"{code}: {message}"}
    return {"error": {"code": code, "message": message}, "request_id": _ANSWER["request_id"]}

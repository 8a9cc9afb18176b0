"""The addresses: bodies in, `PredictionService` asked, replies out.

Replies are TorchServe's, plus what a route adds; they are sent as bytes, not through response models.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from enum import Enum
from typing import Any

import orjson
from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from audiocnn.errors import AudioError, BadOptionError, ServerError
from audiocnn.gateway import schemas, visualization
from audiocnn.gateway.errors import BadRequestError, BusyError, WrongMediaTypeError, body_of
from audiocnn.gateway.multipart import JSON_COPIES, Form, json_limit, read_all, receiving, too_large
from audiocnn.gateway.page.static_files import EXAMPLES, examples_in
from audiocnn.gateway.service import PredictionService, given_options
from audiocnn.gateway.settings import Settings
from audiocnn.options import TRUE_WORDS
from audiocnn.request_body import read_json_request

DEMO_OPTIONS = {"top_k": 3, "feature_maps": "json", "spectrogram": True, "waveform": True}


def json_reply(content: dict[str, Any]) -> Response:
    """JSON as orjson writes it."""
    return Response(orjson.dumps(content), media_type="application/json")


def read_request(body: bytes, settings: Settings) -> tuple[bytes, dict[str, Any]]:
    """Audio and options of a JSON body."""
    audio, options = read_json_request(body)
    if len(audio) > settings.max_upload_bytes:
        raise too_large(settings)
    return audio, options


def add_reading_routes(app: FastAPI, gateway: PredictionService) -> None:
    """`GET`: how the server is, and what it serves."""
    settings = gateway.settings

    @app.get("/health", tags=["server"], responses={200: {"model": schemas.StatusReply}})
    async def health() -> Response:
        """The gateway runs. Needs no key."""
        return json_reply({"status": "ok"})

    @app.get(
        "/ready",
        tags=["server"],
        responses={200: {"model": schemas.StatusReply}, **schemas.errors(403, 503)},
    )
    async def ready() -> Response:
        """A real prediction works. Needs no key; one probe a second answers for all who ask."""
        await gateway.check_ready()
        return json_reply({"status": "ready"})

    @app.get(
        "/labels",
        tags=["model"],
        responses={200: {"model": schemas.LabelsReply}, **schemas.errors(*schemas.GUARDED, 502, 503)},
    )
    async def labels() -> Response:
        """The classes of the served model, with emoji and group."""
        return json_reply({"labels": await gateway.model.labels()})

    @app.get(
        "/config",
        tags=["model"],
        responses={200: {"model": schemas.ConfigReply}, **schemas.errors(*schemas.GUARDED, 502, 503)},
    )
    async def config() -> Response:
        """The served model, its front end, and the limits of requests and streams."""
        names = schemas.Limits.model_fields
        class_names = [label["name"] for label in await gateway.model.labels()]
        return json_reply(
            await gateway.model.describe()
            | {
                "limits": {name: getattr(settings, name) for name in names},
                "stream": gateway.streams.limits(),
                "needs_key": bool(settings.api_keys),
                "examples": examples_in(EXAMPLES, class_names),
            }
        )


def add_metrics_route(app: FastAPI, gateway: PredictionService) -> None:
    """`GET /metrics`, where it has no address of its own."""

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(gateway.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def add_predict_routes(app: FastAPI, gateway: PredictionService) -> None:
    """Clips in, answers out."""
    failures = schemas.errors(*schemas.ASKED)
    tags: list[str | Enum] = ["predict"]
    predict_route: dict[str, Any] = {
        "tags": tags,
        "responses": {200: {"model": schemas.PredictReply}, **failures},
        "openapi_extra": schemas.clip_body(),
    }

    @app.put("/predict", **predict_route)
    @app.post("/predict", **predict_route)
    async def predict(request: Request) -> Response:
        """Name the sounds in one file: `curl -T clip.wav .../predict?top_k=3`, or `-F file=@clip.wav`.

        A body of `audio/*`, `application/octet-stream` or no declared type is the file itself. Options are
        query parameters or headers (`X-Top-K`), in a form also fields.
        """
        async with contextlib.AsyncExitStack() as stack:
            audio, options = await gateway.clip(request, stack)
            return json_reply(
                await gateway.predict(audio, request.state.request_id, options, request.state.trace)
            )

    @app.post(
        "/spectrogram",
        tags=tags,
        responses={200: {"model": schemas.SpectrogramReply, "content": {"image/png": {}}}, **failures},
        openapi_extra=schemas.form_body("file", more=schemas.FORMAT) | schemas.FORMAT_PARAMETER,
    )
    async def spectrogram(request: Request) -> Response:
        """The log-mel spectrogram that the network saw, with Hz and seconds, or `?format=png`."""
        return await answer_spectrogram(gateway, request)

    @app.post(
        "/inference",
        tags=tags,
        responses={200: {"model": schemas.PredictReply}, **failures},
        openapi_extra=schemas.json_body(),
    )
    async def inference(request: Request) -> Response:
        """Base64 in, everything out: top 3, all maps in [-1, 1], spectrogram and waveform.

        For the front ends of the projects that this one grew from; options change what is sent.
        """
        return await answer_inference(gateway, request)

    @app.post(
        "/predict_batch",
        tags=tags,
        responses={200: {"model": schemas.BatchReply}, **failures},
        openapi_extra=schemas.form_body("files", many=True),
    )
    async def predict_batch(request: Request) -> Response:
        """Several files with the same options: one answer or error each, in their order."""
        async with contextlib.AsyncExitStack() as stack:
            options = given_options(request)
            form = await gateway.form(request, stack)
            results = await answer_files(gateway, form, options | form.fields, request)
        return json_reply({"results": results, "request_id": request.state.request_id})


async def answer_spectrogram(gateway: PredictionService, request: Request) -> Response:
    """The spectrogram of the file of a form, as JSON or PNG."""
    async with contextlib.AsyncExitStack() as stack:
        given = given_options(request, schemas.FORMAT_NAMES)
        form = await gateway.form(request, stack, schemas.FORMAT_NAMES)
        output = _spectrogram_format(given | form.fields)
        options = {"spectrogram": True, "top_k": 1}
        state = request.state
        answer = await gateway.predict(form.only_file(), state.request_id, options, state.trace)
    if output == "png":
        png = await asyncio.to_thread(visualization.spectrogram_png, answer["input_spectrogram"])
        return Response(png, media_type="image/png")
    names = ("input_spectrogram", "duration", "warnings", "request_id")
    return json_reply({name: answer[name] for name in names})


def _spectrogram_format(options: Mapping[str, Any]) -> str:
    if unknown := options.keys() - schemas.FORMAT_NAMES:
        raise BadOptionError(f"There is no option {min(unknown)[:40]!r} here: only format.")
    output = str(options.get("format", "json"))
    if output not in ("json", "png"):
        raise BadOptionError(f"format={output[:40]!r} is not possible: it must be json or png.")
    return output


async def answer_inference(gateway: PredictionService, request: Request) -> Response:
    """The answer to JSON with base64, with all that a front end draws."""
    if not request.headers.get("content-type", "").lower().startswith("application/json"):
        raise WrongMediaTypeError('Send JSON: {"audio_data": "<base64>"}, Content-Type: application/json.')
    given, settings, state = given_options(request), gateway.settings, request.state
    async with receiving(
        request, settings, gateway.budget, max_bytes=json_limit(settings), copies=JSON_COPIES
    ) as chunks:
        body = await read_all(chunks)
        audio, options = await asyncio.to_thread(read_request, body, settings)
        has_maps = await gateway.model.has_feature_maps()
        wanted = DEMO_OPTIONS | ({} if has_maps else {"feature_maps": "none"}) | given | options
        wanted.setdefault("clip_spectrogram", str(wanted["spectrogram"]).strip().lower() in TRUE_WORDS)
        answer = await gateway.predict(audio, state.request_id, wanted, state.trace)
    return await asyncio.to_thread(_with_scaled_maps, answer)


def _with_scaled_maps(answer: dict[str, Any]) -> Response:
    whole = answer.pop("clip_spectrogram", None)
    if whole and len(answer.get("windows", ())) > 1:
        answer["input_spectrogram"] = whole
    if "visualization" in answer:
        answer["visualization"] = visualization.scaled_maps(answer["visualization"])
    return json_reply(answer)


async def answer_files(
    gateway: PredictionService, form: Form, options: dict[str, Any], request: Request
) -> list[dict[str, Any]]:
    """One answer or error for each file of a form, in their order."""
    form.check_names()
    if not form.files:
        raise BadRequestError(
            "Send sound files in fields named files: curl -F files=@a.wav -F files=@b.wav ..."
        )

    async def answer(number: int, file: tuple[str, str, bytes]) -> dict[str, Any]:
        _, file_name, audio = file
        request_id = f"{request.state.request_id}-{number}"
        try:
            result = await gateway.predict_counted(audio, request_id, options, request.state.trace)
        except (AudioError, ServerError, BusyError) as error:
            result = body_of(error) | {"request_id": request_id}
        return {"file": file_name, **result}

    results = await gateway.ask_each(form.files, answer, request.state.caller)
    problems = [row["error"] for row in results if row.get("error", {}).get("code") == BadOptionError.code]
    if len(problems) == len(results):  # it is the same option for all: not one file's fault
        raise BadOptionError(problems[0]["message"])
    return results

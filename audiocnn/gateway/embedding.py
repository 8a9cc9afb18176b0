"""`POST /embed`: the feature vector of a clip, and of its windows on request."""

from __future__ import annotations

import contextlib
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from audiocnn.gateway import schemas
from audiocnn.gateway.routes import json_reply
from audiocnn.gateway.service import PredictionService
from audiocnn.options import OPTIONS

EMBED_OPTIONS = {name: OPTIONS[name] for name in ("windows", "hop_seconds", "start", "end")}
_ASKED = {"embedding": True, "top_k": 1}
_KEPT = ("is_silent", "warnings", "duration", "model", "request_id")


def add_embedding_route(app: FastAPI, gateway: PredictionService) -> None:
    """`POST /embed`, and the same as `PUT` for `curl -T`."""
    route: dict[str, Any] = {
        "tags": ["predict"],
        "responses": {200: {"model": schemas.EmbedReply}, **schemas.errors(*schemas.ASKED)},
        "openapi_extra": schemas.clip_body(EMBED_OPTIONS),
    }

    @app.put("/embed", **route)
    @app.post("/embed", **route)
    async def embed(request: Request) -> Response:
        """The feature vector of one file, for search and clustering: `curl -T clip.wav .../embed`.

        Bodies are those of `/predict`. `windows=true` adds the vector of every window. 400 if the served
        model has no embedding: `embedding_size` in `GET /config` is null then.
        """
        async with contextlib.AsyncExitStack() as stack:
            audio, options = await gateway.clip(request, stack, tuple(EMBED_OPTIONS))
            state = request.state
            answer = await gateway.predict(audio, state.request_id, options | _ASKED, state.trace)
        return json_reply(embed_reply(answer))


def embed_reply(answer: dict[str, Any]) -> dict[str, Any]:
    """The reply of `/embed` from an answer with `embedding`: without classes."""
    reply = {"embedding": answer["embedding"], "dimension": len(answer["embedding"])}
    reply |= {name: answer[name] for name in _KEPT}
    rows = [row for row in answer.get("windows", ()) if "embedding" in row]
    if rows:
        reply["windows"] = [{name: row[name] for name in ("start", "end", "embedding")} for row in rows]
    return reply

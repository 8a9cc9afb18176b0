"""JSON request bodies: `{"audio_data": "<base64>"}` and options."""

from __future__ import annotations

import base64
import binascii
import json
import string
from collections.abc import Mapping
from typing import Any

from audiocnn.errors import BadBase64Error, BadOptionError

_MAX_JSON_VALUES = 10_000
_SPACES = string.whitespace.encode()  # in base64: line breaks


def read_json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; raises `BadOptionError` if there is none.

    Only the audio may be large: a body of ten million small values would take gigabytes to parse.
    """
    if sum(map(body.count, b"[{,:")) > _MAX_JSON_VALUES:
        raise BadOptionError(f"The JSON body has too many values: at most {_MAX_JSON_VALUES:,}.")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadOptionError(f"The body is not valid JSON: {str(error)[:80]}.") from error
    if not isinstance(content, dict):
        raise BadOptionError('The JSON body must be an object: {"audio_data": "<base64>"}.')
    return content


def read_base64(content: Mapping[str, Any]) -> bytes:
    """The clip in a JSON request, `audio_data` or `data`; raises `BadBase64Error`. None of them: no bytes."""
    text = content.get("audio_data", content.get("data", ""))
    if not isinstance(text, str):
        raise BadBase64Error("audio_data must be a string of base64.")
    if text.startswith("data:"):  # what a browser's FileReader writes in front
        text = text.partition(",")[2]
    try:
        # Not `text.split()`: of "AB AB ..." it makes a gigabyte of pieces.
        return base64.b64decode(text.encode("ascii").translate(None, _SPACES), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadBase64Error(f"audio_data is not base64: {error}.") from error

"""JSON request bodies: `{"audio_data": "<base64>"}` and options."""

from __future__ import annotations

import base64
import binascii
import json
import string
from collections.abc import Mapping
from typing import Any

from audiocnn.errors import BadBase64Error, BadOptionError, EmptyAudioError
from audiocnn.options import AUDIO_FIELDS, OPTION_NAMES, unknown_option

_MAX_JSON_VALUES = 10_000
_EXAMPLE = '{"audio_data": "<base64 of a sound file>"}'
_SPACES = string.whitespace.encode()  # in base64: line breaks
_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_ALPHABET = (string.ascii_letters + string.digits + "+/=").encode()


def read_json_request(body: bytes | Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Audio and options of a JSON body, or of its object; a key whose value is null is not given.

    Raises `BadOptionError`, `BadBase64Error` or `EmptyAudioError`.
    """
    content = body if isinstance(body, Mapping) else read_json_object(body)
    given = {name: value for name, value in content.items() if value is not None}
    if unknown := [name for name in given if name not in (*AUDIO_FIELDS, *OPTION_NAMES)]:
        raise unknown_option(*unknown)
    name = only_audio_field([name for name in given if name in AUDIO_FIELDS])
    audio = read_base64(given.pop(name, ""), name)
    if not audio:
        raise EmptyAudioError(f"The JSON has no audio. Send {_EXAMPLE}.")
    return audio, given


def only_audio_field(names: list[str]) -> str:
    """The one field of a request that has the sound; `file` if there is none.

    Raises `BadOptionError` for several: one of them would be ignored.
    """
    if len(names) > 1:
        raise BadOptionError(
            f"The sound was sent more than once: as {' and '.join(names)}. Send one of them."
        )
    return names[0] if names else AUDIO_FIELDS[0]


def read_json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; raises `BadOptionError` if there is none.

    Only the audio may be large: a body of ten million small values would take gigabytes to parse.
    """
    if not body.strip():
        raise EmptyAudioError(f"The body is empty. Send {_EXAMPLE}.")
    if sum(map(body.count, b"[{,:")) > _MAX_JSON_VALUES:
        raise BadOptionError(f"The JSON body has too many values: at most {_MAX_JSON_VALUES:,}.")
    try:
        content = json.loads(body, object_pairs_hook=_unique)
    except BadOptionError:
        raise
    except (ValueError, RecursionError) as error:
        raise BadOptionError(f"The body is not valid JSON: {str(error)[:80]}.") from error
    if not isinstance(content, dict):
        raise BadOptionError(f"The JSON body must be an object: {_EXAMPLE}.")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadOptionError(f"The JSON has the key {twice[:40]!r} more than once.")
    return content


def read_base64(text: object, name: str = "audio_data") -> bytes:
    """The bytes of standard or URL-safe base64, padded or not, or of a `data:` URL; spaces are skipped.

    Raises `BadBase64Error` that names the field, `name`.
    """
    if not isinstance(text, str):
        raise BadBase64Error(f"{name} must be a string of base64.")
    try:
        # Not `text.split()`: of "AB AB ..." it makes a gigabyte of pieces.
        data = _without_url(text, name).encode("ascii").translate(_FROM_URL_SAFE, _SPACES)
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except UnicodeEncodeError:
        raise BadBase64Error(f"{name} is not base64: it has letters that are not ASCII.") from None
    except binascii.Error as error:
        wrong = data.translate(None, _ALPHABET)[:1].decode()
        raise BadBase64Error(f"{name} is not base64: {f'it has {wrong!r}' if wrong else error}.") from None


def _without_url(text: str, name: str) -> str:
    """What follows `data:audio/wav;base64,`, as a browser's FileReader writes it; else the text."""
    start = text[:100].lstrip()
    if start[:5].lower() != "data:":
        return text
    head, comma, content = text.partition("base64,")
    if not comma or head.rpartition('"')[2].count(","):
        raise BadBase64Error(f"{name} is a data: URL without base64: send data:audio/wav;base64,...")
    return content

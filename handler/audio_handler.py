"""TorchServe's view of the model: a batch of requests in, a list of JSON answers out.

Everything about audio and the network is in `audiocnn`; here are only the three ways in which a
request can carry a clip and its options, and the status of every answer.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import torch
import yaml

from audiocnn import samples
from audiocnn.answer import render
from audiocnn.classifier import Classifier
from audiocnn.config import AudioLimits, Config
from audiocnn.errors import AudioError, BadOption
from audiocnn.options import Options
from audiocnn.protocol import HEADERS, read_base64

log = logging.getLogger(__name__)

MAX_ID_LENGTH = 128
AUDIO_FIELDS = ("data", "body", "audio_data")


class AudioHandler:
    """One worker. TorchServe calls `initialize` once and `handle` for every batch."""

    classifier: Classifier

    def initialize(self, context: Any) -> None:
        """Load the model on this worker's device and answer once, so the first request is not slow."""
        properties = context.system_properties
        folder = Path(properties["model_dir"])
        settings = yaml.safe_load((folder / "model-config.yaml").read_text(encoding="utf-8"))
        gpu = properties.get("gpu_id")
        device = "cpu" if gpu is None or not torch.cuda.is_available() else f"cuda:{gpu}"
        self.classifier = Classifier.load(
            folder / settings["model"],
            device=device,
            threads=int(os.environ.get("AUDIOCNN_THREADS", settings["threads"])),
            limits=AudioLimits(max_seconds=settings["max_seconds"]),
        )
        self.classifier.classify([samples.wav("rain")])

    def handle(self, batch: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer every request of a batch; one that is wrong gets its own status and hurts no other."""
        clips, options = [], []
        for number, fields in enumerate(batch):
            data, wish = read_request(fields, context.get_all_request_header(number), self.classifier.config)
            clips.append(data)
            options.append(wish)
        answers = []
        for number, result in enumerate(self.classifier.classify(clips, options)):
            request_id = request_id_of(context.get_all_request_header(number), context.get_request_id(number))
            context.set_response_content_type(number, "application/json")
            if isinstance(result, AudioError):
                context.set_response_status(result.status, result.code, number)
                log.warning("request %s: %d %s", request_id, result.status, result.code)
                answer = result.to_dict()
            else:
                answer = render(result, self.classifier.engine)
            answers.append(orjson.dumps(answer | {"request_id": request_id}))
        return answers


def read_request(
    fields: Mapping[str, Any], headers: Mapping[str, Any], config: Config
) -> tuple[bytes, Options | AudioError]:
    """Audio and options of one request; what is wrong with them comes back as the `AudioError`.

    `fields` is `{"body": bytes}` for a raw body, `{"body": object}` for JSON, and one entry per field
    for multipart. Options in the body win over headers (`X-Top-K`). What is posted to
    `/explanations/...` TorchServe marks with a header of its own.
    """
    try:
        given = _header_options(headers)
        body = fields.get("body")
        if isinstance(body, Mapping) or _is_json(headers):
            fields, audio = _from_json(body)
        else:
            audio = next((_bytes(fields[name]) for name in AUDIO_FIELDS if name in fields), b"")
        given |= {name: value for name, value in fields.items() if name not in AUDIO_FIELDS}
        options = Options.parse(given, config)
        return audio, replace(options, explain=_lowered(headers).get("explain") == "True")
    except AudioError as error:
        return b"", error


def _header_options(headers: Mapping[str, Any]) -> dict[str, object]:
    lowered = _lowered(headers)
    return {option: lowered[name] for name, option in HEADERS.items() if name in lowered}


def _lowered(headers: Mapping[str, Any]) -> dict[str, Any]:
    return {name.lower(): value for name, value in headers.items()}


def request_id_of(headers: Mapping[str, Any], own: str) -> str:
    """The client's `X-Request-Id` as far as it can be printed, else TorchServe's own id."""
    given = "".join(
        c for c in str(_lowered(headers).get("x-request-id", "")) if c.isascii() and c.isprintable()
    )
    return given[:MAX_ID_LENGTH] or own


def _is_json(headers: Mapping[str, Any]) -> bool:
    types = (str(value) for name, value in headers.items() if name.lower() == "content-type")
    return any(value.lower().startswith("application/json") for value in types)


def _from_json(body: Any) -> tuple[Mapping[str, Any], bytes]:
    """The object, and the audio decoded from the base64 in `audio_data` or `data`."""
    if isinstance(body, bytes | bytearray | str):
        try:
            body = orjson.loads(body)
        except ValueError as error:
            raise BadOption(f"The body is not valid JSON: {str(error)[:80]}.") from error
    if not isinstance(body, Mapping):
        raise BadOption('The JSON body must be an object: {"audio_data": "<base64>"}.')
    return body, read_base64(body)


def _bytes(value: Any) -> bytes:
    """TorchServe hands a part over as str or as a parsed object if its content type says text or JSON."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace")  # no audio, but it gets the same answer as any bytes
    if not isinstance(value, bytes | bytearray):
        raise BadOption("The field data must be the bytes of a sound file, not JSON.")
    return bytes(value)

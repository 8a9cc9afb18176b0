"""TorchServe handler: a batch of requests in, a list of JSON answers out.

It reads clips and options from raw bodies, multipart forms and JSON, and sets the status of each answer.
Decoding and classification are in `audiocnn`.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import torch
import yaml

from audiocnn import logs
from audiocnn.audio import synthetic
from audiocnn.classifier import Classifier, Timings
from audiocnn.config import AudioLimits, Config
from audiocnn.errors import AudioError, BadOptionError, BudgetExceededError, UnsupportedFormatError
from audiocnn.model.engine import BATCH_SIZES
from audiocnn.options import AUDIO_FIELDS, Options, options_in_headers
from audiocnn.request_body import only_audio_field, read_json_request
from audiocnn.tracing import REQUEST_ID, TRACEPARENT, printable_id, trace_id
from handler.metrics import NAMES, WorkerMetrics

log = logging.getLogger(__name__)

# Otherwise TorchServe's worker parses JSON bodies before the handler: 40 MB take a gigabyte of memory.
os.environ["TS_DECODE_INPUT_REQUEST"] = "false"

_NOT_IN_LABELS = re.compile(r"[|:,\s]")  # separators of TorchServe's metric lines


class AudioHandler:
    """The handler of one worker. TorchServe calls `initialize` once and `handle` for each batch."""

    classifier: Classifier
    batch_seconds: float  # wall time limit of a batch
    metrics: WorkerMetrics | None

    def initialize(self, context: Any) -> None:
        """Load the model on this worker's device and warm up every batch size."""
        configure_logging()
        properties = context.system_properties
        folder = Path(properties["model_dir"])
        settings = yaml.safe_load((folder / "model-config.yaml").read_text(encoding="utf-8"))
        gpu = properties.get("gpu_id")
        device = "cpu" if gpu is None or not torch.cuda.is_available() else f"cuda:{gpu}"
        self.classifier = Classifier.load(
            folder / settings["model"],
            device=device,
            threads=int(os.environ.get("AUDIOCNN_THREADS", settings["threads"])),
            limits=AudioLimits(max_seconds=settings["max_seconds"], isolate=True),
        )
        self.batch_seconds = float(os.environ.get("AUDIOCNN_BATCH_SECONDS", settings["batch_seconds"]))
        for size in BATCH_SIZES:
            self.classifier.predict_batch([synthetic.wav("rain")] * size)
        self.metrics = open_metrics(context, self.classifier.config)

    def handle(self, batch: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer the requests of a batch, as JSON. An invalid request gets its own status."""
        headers = [_lowered(context.get_all_request_header(number)) for number in range(len(batch))]
        ids = [request_id_of(own, context.get_request_id(number)) for number, own in enumerate(headers)]
        try:
            return self._answer(batch, headers, ids, context)
        except Exception:  # TorchServe logs it and answers the batch with 503
            log.error("a batch failed", extra={"request_ids": ids})
            if self.metrics:
                self.metrics.count_failure(len(batch))
            raise

    def _answer(
        self, batch: list[dict[str, Any]], headers: list[dict[str, Any]], ids: list[str], context: Any
    ) -> list[bytes]:
        began, timings = time.perf_counter(), Timings()
        config = self.classifier.config
        requests = [read_request(fields, own, config) for fields, own in zip(batch, headers, strict=True)]
        clips, options = [clip for clip, _ in requests], [each for _, each in requests]
        results = self.classifier.predict_batch(clips, options, timings, budget_seconds=self.batch_seconds)
        server_timing = server_timing_of(timings, 1000 * (time.perf_counter() - began))
        answers = []
        for number, result in enumerate(results):
            context.set_response_content_type(number, "application/json")
            context.set_response_header(number, "Server-Timing", server_timing)
            if "host" not in headers[number]:  # gRPC: else StreamPredictions waits for more and fails
                context.set_response_header(number, "ts_stream_next", "false")
            if isinstance(result, AudioError):
                context.set_response_status(result.status, result.code, number)
                if isinstance(result, BudgetExceededError):
                    context.set_response_header(number, "Retry-After", str(result.retry_after_seconds))
                log_refusal(result, ids[number], headers[number])
            answers.append(orjson.dumps(result.to_dict() | {"request_id": ids[number]}))
        if self.metrics:
            self.metrics.count(clips, results, timings)
        log_batch(ids, headers, timings, 1000 * (time.perf_counter() - began))
        return answers


def configure_logging() -> None:
    """Log to standard output, which TorchServe writes to model_log.log.

    The environment variables `LOG_FORMAT` (`json` or `text`) and `LOG_LEVEL` are those of the gateway.
    """
    handler = logs.handler_for(sys.stdout, os.environ.get("LOG_FORMAT") or "json")
    for logger in (log, logging.getLogger("audiocnn")):
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel((os.environ.get("LOG_LEVEL") or "INFO").upper())


def open_metrics(context: Any, config: Config) -> WorkerMetrics | None:
    """The worker's metrics; None if TorchServe's `metrics_config` does not declare all of them."""
    registry = getattr(context, "metrics", None)  # None in the archive's smoke test
    if registry is None:
        return None
    try:
        counters = {name: registry.get_metric(name) for name in NAMES}
    except Exception as error:  # a class of TorchServe's that cannot be imported here
        log.warning("no worker metrics: metrics_config should be handler/metrics.yaml: %s", error)
        return None
    own = [config.name, str(context.manifest["model"]["modelVersion"])]

    def emit(name: str, label: str | None, amount: float) -> None:
        more = [] if label is None else [_NOT_IN_LABELS.sub("_", label) or "_"]
        counters[name].add_or_update(amount, own + more)

    return WorkerMetrics(emit, config.class_names)


def trace_of(headers: Mapping[str, Any]) -> str | None:
    """The trace id of a request. TorchServe adds the fields of a form to the headers, as objects."""
    return trace_id(str(headers.get(TRACEPARENT, "")))


def log_refusal(error: AudioError, request_id: str, headers: Mapping[str, Any]) -> None:
    """Log an invalid request, at INFO: it is the client's error."""
    log.info(
        "request %s: %d %s",
        request_id,
        error.status,
        error.code,
        extra={
            "request_id": request_id,
            "trace_id": trace_of(headers),
            "status": error.status,
            "code": error.code,
        },
    )


def server_timing_of(timings: Timings, elapsed_ms: float) -> str:
    """The header `Server-Timing` (W3C) of all replies of a batch: milliseconds for the whole batch."""
    decode, log_mel, inference = map(sum, (timings.decode_ms, timings.log_mel_ms, timings.inference_ms))
    entries = {"decode": decode, "log-mel": log_mel, "inference": inference, "batch": elapsed_ms}
    return ", ".join(f"{name};dur={ms:.1f}" for name, ms in entries.items())


def log_batch(
    request_ids: list[str], headers: list[dict[str, Any]], timings: Timings, elapsed_ms: float
) -> None:
    """Log a batch in one line: its requests and its timings."""
    traces = [trace_of(own) for own in headers]
    log.info(
        "batch",
        extra={
            "request_ids": request_ids,
            "trace_ids": traces if any(traces) else None,
            "decode_ms": round(sum(timings.decode_ms), 2),
            "log_mel_ms": round(sum(timings.log_mel_ms), 2),
            "inference_ms": round(sum(timings.inference_ms), 2),
            "ms": round(elapsed_ms, 2),
        },
    )


def read_request(
    fields: Mapping[str, Any], headers: Mapping[str, Any], config: Config
) -> tuple[bytes, Options | AudioError]:
    """Audio and options of one request; an invalid request has no audio, and its `AudioError` as options.

    `fields` is `{"body": bytes}` for a raw body, `{"body": object}` for JSON, and one entry per field for
    multipart. Options in the body override headers (`X-Top-K`). TorchServe adds the header `explain` to
    requests for `/explanations/...`.
    """
    try:
        lowered = _lowered(headers)
        _check_encoding(lowered)
        given = options_in_headers(headers.items())
        body = fields.get("body")
        if isinstance(body, Mapping) or _is_json(headers):
            audio, own = read_json_request(body if isinstance(body, Mapping) else _bytes(body or b""))
        else:
            audio, own = _from_form(fields)
        return audio, Options.parse(given | own, config, explain=lowered.get("explain") == "True")
    except AudioError as error:
        return b"", error


def _check_encoding(lowered: Mapping[str, Any]) -> None:
    encoding = str(lowered.get("content-encoding", "identity"))
    if encoding.strip().lower() not in ("identity", ""):
        raise UnsupportedFormatError(
            f"Content-Encoding: {encoding[:20]} is not read here: send it uncompressed (the gateway: gzip)."
        )


def _from_form(fields: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """The sound and the options of a form, or of a raw body, which is the field `body`."""
    names = ("body", *AUDIO_FIELDS)
    name = only_audio_field([name for name in names if name in fields])
    return _bytes(fields.get(name, b"")), {key: value for key, value in fields.items() if key not in names}


def _lowered(headers: Mapping[str, Any]) -> dict[str, Any]:
    return {name.lower(): value for name, value in headers.items()}


def request_id_of(headers: Mapping[str, Any], own: str) -> str:
    """The client's `X-Request-Id` if it is printable, else TorchServe's id."""
    return printable_id(str(_lowered(headers).get(REQUEST_ID, ""))) or own


def _is_json(headers: Mapping[str, Any]) -> bool:
    types = (str(value) for name, value in headers.items() if name.lower() == "content-type")
    return any(value.lower().startswith("application/json") for value in types)


def _bytes(value: Any) -> bytes:
    """The bytes of a field; `BadOptionError` for a value that was parsed from JSON."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace")  # answered like any other bytes
    if not isinstance(value, bytes | bytearray):
        raise BadOptionError("The field of the sound must contain the bytes of a sound file, not JSON.")
    return bytes(value)

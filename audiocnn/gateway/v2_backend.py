"""A model server that speaks the Open Inference Protocol as the backend (`BACKEND=v2`).

    file -> waveform -> windows -> `POST /v2/models/NAME/infer` -> probabilities -> answer

Only the network runs there, on waveforms, or on log-mels if the model has the input `log_mel`. Decoding,
windows, calibration, pooling and detections are those of `audiocnn.classifier`, in threads, so answers are
the same as with TorchServe. Feature maps and evidence are a `BadOptionError`.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
from safetensors import safe_open

from audiocnn.arrays import FloatArray
from audiocnn.classifier import Classifier
from audiocnn.client.base import TRANSPORT_ERRORS
from audiocnn.client.retry import Endpoint, RequestState, server_error, unreachable
from audiocnn.config import SERVED_OUTPUTS, WEIGHTS, AudioLimits, Config
from audiocnn.errors import (
    AudioError,
    ModelFileError,
    RequestRefusedError,
    ServerBusyError,
    ServerError,
    ServerFailedError,
)
from audiocnn.gateway.settings import Settings
from audiocnn.gateway.tensor_client import read_response, write_request
from audiocnn.gateway.tensors import HEADER_LENGTH
from audiocnn.model.engine import CONFIG_KEY, FRONTEND_KEY, SHA256_KEY, Engine, pack_metadata
from audiocnn.model.waveform import INPUT, WaveformGraph
from audiocnn.options import Options, option_headers, options_in_headers
from audiocnn.probe import probe_wav

LOG_MEL = "log_mel"  # the input of exported files
_FRONTEND = "frontend."  # begins the names of its arrays in a checkpoint
_THREADS = 4  # requests at a time: each holds one decoded file, 106 MB at most, twice for a moment
_DECODE_SECONDS = 40.0
_request: ContextVar[RequestState] = ContextVar("request")  # the one that this thread answers


class _Probe(RequestState):
    """A request that is not sent again."""

    def backoff_seconds(self, error: ServerError) -> float:
        raise self.sign(error)


class RemoteModel:
    """See `audiocnn.model.waveform.Runnable`; the deadline is that of this thread's request."""

    def __init__(self, http: httpx.Client, endpoint: Endpoint, config: Config) -> None:
        """Read the model's metadata. Raises `ServerError`."""
        num_classes = len(config.class_names)
        self._sizes = {"probs": num_classes, "logits": num_classes, "embedding": config.num_features}
        self._http = http
        self._url = f"{endpoint.url.rstrip('/')}/v2/models/{endpoint.model}"
        self._is_binary = False  # until a reply has binary tensors
        described = self._send("GET", self._url).json()
        both = (*described.get("inputs", ()), *described.get("outputs", ()))
        self.shapes = {row["name"]: [n if n >= 0 else None for n in row["shape"]] for row in both}
        if not self.shapes:  # the protocol allows a server to know none
            self.shapes = {INPUT: [None, None], "probs": [None, None]}
        self.input_name = LOG_MEL if LOG_MEL in self.shapes else INPUT

    def parameters(self) -> dict[str, str]:
        """Those of the model configuration (a protocol extension); empty if the server has none."""
        try:
            content = self._send("GET", f"{self._url}/config").json()
            return {name: value["string_value"] for name, value in content.get("parameters", {}).items()}
        except (RequestRefusedError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def run(self, inputs: FloatArray, outputs: Sequence[str]) -> list[FloatArray]:
        """See `Runnable`. Raises `ServerError`, also for outputs of another shape or that are not finite."""
        request_id = _request.get().request_id
        body, headers = write_request(self.input_name, inputs, outputs, request_id, is_binary=self._is_binary)
        reply = self._send("POST", f"{self._url}/infer", content=body, headers=headers)
        self._is_binary = self._is_binary or HEADER_LENGTH in reply.headers
        try:
            arrays = read_response(reply.content, reply.headers.get(HEADER_LENGTH))
            return [self._checked(arrays[name], name, len(inputs)) for name in outputs]
        except (ValueError, KeyError) as error:
            raise ServerFailedError(f"{self._url}/infer answered something else: {error!r}") from error

    def _checked(self, array: FloatArray, name: str, count: int) -> FloatArray:
        expected = (count, self._sizes[name])
        if array.shape != expected or not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite and of shape {expected}, not {array.shape}")
        return array

    def _send(self, method: str, url: str, **request: Any) -> httpx.Response:
        """The successful reply, with retries until the request's deadline."""
        state = _request.get()
        while True:
            try:
                return self._send_once(state, method, url, **request)
            except ServerError as error:
                time.sleep(state.backoff_seconds(error))

    def _send_once(
        self,
        state: RequestState,
        method: str,
        url: str,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        timeout = httpx.Timeout(state.timeout_seconds, connect=state.connect_seconds)
        sent = state.next_headers() | dict(headers or {})
        try:
            reply = self._http.request(method, url, content=content, headers=sent, timeout=timeout)
        except TRANSPORT_ERRORS as error:
            raise unreachable(error) from error
        if not reply.is_success:
            raise server_error(reply.status_code, "", reply.text[:200], reply.headers)
        return reply


class LogMelGraph:
    """See `audiocnn.model.engine.Graph`: a model from log-mels to logits, as exported files are."""

    takes_waveform = uses_torch = False

    def __init__(self, model: RemoteModel, config: Config, metadata: dict[str, str]) -> None:
        """Raises `ModelFileError` if the model does not fit, or the arrays of the front end are not there."""
        frontend = config.frontend
        self.metadata, self.run = metadata, model.run
        self.output_names = tuple(name for name in SERVED_OUTPUTS if name in model.shapes)
        if model.shapes[LOG_MEL][1:] != [1, frontend.n_mels, frontend.num_frames]:
            raise ModelFileError(f"log_mel has the shape {model.shapes[LOG_MEL]}")
        if "logits" not in self.output_names:
            raise ModelFileError("there is no output logits")
        if FRONTEND_KEY not in metadata:
            raise ModelFileError(f"log_mel is computed here, which needs {WEIGHTS} beside MODEL_CONFIG_FILE")


class V2Backend:
    """See `audiocnn.gateway.backend.Backend`."""

    def __init__(
        self, settings: Settings, deadline_seconds: float, on_retry: Callable[[ServerError], None]
    ) -> None:
        self._endpoint = Endpoint(
            url=settings.v2_url,
            model=settings.v2_model,
            deadline_seconds=deadline_seconds,
            attempt_seconds=deadline_seconds,
            max_server_failures=1,
        )
        self._limits = AudioLimits(isolate=True, decode_seconds=min(_DECODE_SECONDS, deadline_seconds))
        self._config, self._metadata = read_model(settings.model_config_file)
        self._on_retry = on_retry
        self._classifier: Classifier | None = None  # until the server is asked, and after it failed
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="v2-backend")
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {settings.v2_token}"} if settings.v2_token else {},
            trust_env=not self._endpoint.is_local,
            verify=ssl.create_default_context(),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=_THREADS),
        )

    async def __aenter__(self) -> Self:
        """The server is not contacted before the first request."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections; requests under way fail."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._http.close()

    async def predict(
        self,
        clip: bytes,
        options: Mapping[str, object] | None = None,
        *,
        request_id: str | None = None,
        trace: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """See `Backend`."""
        given = options_in_headers(option_headers(options or {}).items())
        state = RequestState(self._endpoint, dict(trace or {}), None, request_id, self._on_retry)
        return await self._run(state, clip, given)

    async def ready(self, *, timeout_seconds: float) -> bool:
        """See `Backend`."""
        try:
            await self._run(_Probe(self._endpoint, {}, None, None), probe_wav(), {}, timeout_seconds)
        except (AudioError, ServerError):
            return False
        return True

    async def _run(
        self, state: RequestState, clip: bytes, given: Mapping[str, object], seconds: float | None = None
    ) -> dict[str, Any]:
        """The answer from one of the threads. One that is late goes on until its next step, unheard."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds or self._endpoint.deadline_seconds):
                return await loop.run_in_executor(self._threads, self._answer, state, clip, given)
        except TimeoutError as error:
            raise state.sign(unreachable(error)) from error

    def _answer(self, state: RequestState, clip: bytes, given: Mapping[str, object]) -> dict[str, Any]:
        _request.set(state)
        try:
            if state.seconds_left <= 0:
                raise ServerBusyError("other requests took all the time until the deadline")
            classifier = self._classifier or self._connect()
            result = classifier.predict(clip, Options.parse(given, classifier.config))
        except AudioError as error:
            raise state.sign(error) from None
        except ServerError as error:
            self._classifier = None  # it may be another model after a restart
            raise state.sign(error) from error.__cause__
        return result.to_dict() | {"request_id": state.request_id}

    def _connect(self) -> Classifier:
        """The classifier over the server's model. Raises `RequestRefusedError` if the model does not fit."""
        config = self._config
        model = RemoteModel(self._http, self._endpoint, config)
        parameters = model.parameters()
        names = parameters.get("class_names")
        if names is not None and json.loads(names) != list(config.class_names):
            raise RequestRefusedError("the server's model has other classes than MODEL_CONFIG_FILE")
        if config.num_features is None:
            model.shapes.pop("embedding", None)
        metadata = self._metadata | {SHA256_KEY: parameters.get("sha256", "")}
        try:
            graph = (LogMelGraph if model.input_name == LOG_MEL else WaveformGraph)(model, config, metadata)
        except ModelFileError as error:
            raise RequestRefusedError(
                f"MODEL_CONFIG_FILE does not fit the server's model: {error}"
            ) from error
        engine = Engine(Path(self._endpoint.model), threads=1, graph=graph)
        self._classifier = Classifier(engine, limits=self._limits)
        return self._classifier


def read_model(config_file: Path) -> tuple[Config, dict[str, str]]:
    """The configuration, and metadata as exported files carry them.

    With the weights of the checkpoint beside it, spectrograms are normalised as the network sees them.
    """
    config = Config.from_json(config_file.read_text(encoding="utf-8"))
    weights = config_file.with_name(WEIGHTS)
    if not weights.is_file():
        return config, {CONFIG_KEY: config.to_json()}
    with safe_open(weights, "np") as file:
        names = [name for name in file.keys() if name.startswith(_FRONTEND)]  # noqa: SIM118  no mapping
        return config, pack_metadata(
            config, {name.removeprefix(_FRONTEND): file.get_tensor(name) for name in names}
        )

"""What all routes share: the connections to the model server, places, budgets, and whether it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from audiocnn.errors import AudioError, BadOptionError, ServerError
from audiocnn.gateway import server_timing
from audiocnn.gateway.auth import AccessControl
from audiocnn.gateway.backend import Backend, open_backend
from audiocnn.gateway.errors import BusyError, GatewayError, NotReadyError, WrongMediaTypeError
from audiocnn.gateway.metrics import Metrics
from audiocnn.gateway.middleware import until_caller_is_gone
from audiocnn.gateway.model_info import ModelInfo
from audiocnn.gateway.multipart import Form, MemoryBudget, form_limit, read_all, read_form, receiving
from audiocnn.gateway.settings import MIB, Settings
from audiocnn.gateway.shared_call import SharedCall
from audiocnn.gateway.streaming import Streams
from audiocnn.options import OPTION_NAMES, options_in_headers, unknown_option

T = TypeVar("T")
Answer = TypeVar("Answer")

_CONCURRENCY = 8  # items of one request that wait for TorchServe at the same time
_READY_SECONDS = 1.0  # so long one probe answers for all
# Of a body that is the file itself, beside audio/* and video/*.
_RAW_TYPES = ("", "application/octet-stream", "binary/octet-stream", "application/ogg")


class PredictionService:
    """What the routes share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.access = AccessControl(settings)
        self.metrics = Metrics()
        self.budget = MemoryBudget(int(settings.max_buffered_mb * MIB))
        self._in_flight = 0
        self._long_clips = asyncio.Semaphore(settings.max_long_in_flight)
        self.metrics.gauge(
            "gateway_requests_in_flight", "Requests that wait for TorchServe", lambda: self._in_flight
        )
        self.metrics.gauge(
            "gateway_buffered_bytes", "Bytes of uploads held in memory", lambda: self.budget.held
        )
        self.metrics.gauge(
            "gateway_streams_open",
            "Live streams",
            lambda: self.streams.num_open if hasattr(self, "streams") else 0,
        )
        self._ready_at = -_READY_SECONDS
        self._probe = SharedCall(self._probe_once)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the connections to the model server, and close them."""
        async with self._backend(self.settings.deadline_seconds) as self.client:
            self.model = ModelInfo(self.client, self.settings)
            # Late answers to a stream are worth nothing: ask once or twice, then take newer sound.
            async with self._backend(5.0) as stream_client:
                self.streams = Streams(self.settings, self.access, stream_client, self.model, self.metrics)
                yield

    def _backend(self, deadline_seconds: float) -> Backend:
        return open_backend(self.settings, deadline_seconds, self.metrics.retry)

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """One of the places for requests that wait for TorchServe; raises `BusyError` if all are taken."""
        if self._in_flight >= self.settings.max_in_flight:
            raise BusyError("As many requests as can be held are waiting: ask again.")
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def predict(
        self, audio: bytes, request_id: str, options: dict[str, Any], trace: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """The model server's answer; raises `BadOptionError` for an option that does not exist."""
        async with self._turn(len(audio)):
            with self.slot(), server_timing.current().measured("backend"):
                self.metrics.upload_bytes.inc(len(audio))
                return await self.client.predict(audio, options, request_id=request_id, trace=trace)

    @contextlib.asynccontextmanager
    async def _turn(self, num_bytes: int) -> AsyncIterator[None]:
        """Long clips wait here for each other, or one batch of the model server has several of them, and
        short clips with them. Raises `BusyError` after `deadline_seconds`, `ClientDisconnect` if the caller
        has left."""
        if num_bytes < self.settings.long_clip_mb * MIB:
            yield
            return
        leaving = asyncio.create_task(until_caller_is_gone())  # it reads on, to notice a close
        try:
            async with asyncio.timeout(self.settings.deadline_seconds):
                with server_timing.current().measured("queue"):
                    await self._long_clips.acquire()
        except TimeoutError:
            raise BusyError("Too many long clips are waiting: ask again.") from None
        finally:
            has_left = leaving.done()
            leaving.cancel()
        try:
            if has_left:
                raise ClientDisconnect
            yield
        finally:
            self._long_clips.release()

    async def predict_counted(
        self, audio: bytes, request_id: str, options: dict[str, Any], trace: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """The same for what is no request of its own, so that its error is counted once."""
        try:
            return await self.predict(audio, request_id, options, trace)
        except (AudioError, ServerError, GatewayError) as error:
            self.metrics.failure(error)
            raise

    async def ask_each(
        self, items: Sequence[T], ask: Callable[[int, T], Awaitable[Answer]], caller: str
    ) -> list[Answer]:
        """`ask(number, item)` for every item of one request, a few at a time; the answers in their order.

        The first one was charged when the request was admitted; the others are charged here.
        """
        self.access.rate.debit(caller, len(items) - 1)
        slots = asyncio.Semaphore(_CONCURRENCY)

        async def in_turn(number: int, item: T) -> Answer:
            async with slots:
                return await ask(number, item)

        return await asyncio.gather(*(in_turn(number, item) for number, item in enumerate(items)))

    async def check_ready(self) -> None:
        """Raises `NotReadyError` unless a real prediction works, or did a second ago."""
        if time.monotonic() - self._ready_at >= _READY_SECONDS:
            await self._probe()

    async def _probe_once(self) -> None:
        if not await self.client.ready(timeout_seconds=self.settings.deadline_seconds):
            raise NotReadyError("A real prediction does not work now: is the model server running?")
        self._ready_at = time.monotonic()

    async def form(
        self, request: Request, stack: contextlib.AsyncExitStack, fields: Collection[str] = OPTION_NAMES
    ) -> Form:
        """The multipart body, whose parts named in `fields` are no sounds.

        What it holds of the budget is given back when the stack closes.
        """
        limit = form_limit(self.settings)
        chunks = await stack.enter_async_context(
            receiving(request, self.settings, self.budget, max_bytes=limit)
        )
        return await read_form(request, chunks, self.settings, fields)

    async def clip(
        self, request: Request, stack: contextlib.AsyncExitStack, names: Sequence[str] = OPTION_NAMES
    ) -> tuple[bytes, dict[str, object]]:
        """Audio and options of a request: the body is the file, or a form with the field `file`.

        What the body holds of the budget is given back when the stack closes. Raises `WrongMediaTypeError`
        for a body of another kind, `BadOptionError` for an option that is none of `names`.
        """
        options = given_options(request, names)
        if media_type(request) == "multipart/form-data":
            form = await self.form(request, stack)
            file = form.only_file()
            _check_names(form.fields, names)
            return file, options | form.fields
        check_is_file(request)
        limit = self.settings.max_upload_bytes
        chunks = await stack.enter_async_context(
            receiving(request, self.settings, self.budget, max_bytes=limit)
        )
        return await read_all(chunks), options


def media_type(request: Request) -> str:
    """The `Content-Type` without parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def check_is_file(request: Request) -> None:
    """Raises `WrongMediaTypeError` unless the body is declared as a file, or as nothing."""
    kind = media_type(request)
    if kind not in _RAW_TYPES and not kind.startswith(("audio/", "video/")):
        raise WrongMediaTypeError(
            f"A body of {kind[:60]} is not read here. Send the file itself as audio/*, video/* or "
            "application/octet-stream (curl -T clip.wav ...), a form (curl -F file=@clip.wav .../predict), "
            "or JSON with base64 to /inference."
        )


def given_options(request: Request, names: Sequence[str] = OPTION_NAMES) -> dict[str, object]:
    """The options in headers and query; the latter win. Raises `BadOptionError` that names what is none.

    `names` are the options that the address takes.
    """
    options = options_in_headers(request.headers.items())
    query = request.query_params.multi_items()
    _check_names([*options, *(name for name, _ in query)], names)
    counts = Counter(name for name, _ in query)
    if twice := [name for name in counts if counts[name] > 1]:
        raise BadOptionError(f"The query has {twice[0]} more than once.")
    return options | dict(query)


def _check_names(given: Iterable[str], names: Sequence[str]) -> None:
    if unknown := [name for name in dict.fromkeys(given) if name not in names]:
        if names is OPTION_NAMES:
            raise unknown_option(*unknown)
        taken = ", ".join(names) or "none"
        raise BadOptionError(f"There is no option {unknown[0][:40]!r} at this address. Options: {taken}.")

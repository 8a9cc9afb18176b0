"""The clients against a scripted server: retries, deadlines, options and tokens."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from audiocnn.client.async_client import AsyncClient
from audiocnn.client.client import Client
from audiocnn.config import Config
from audiocnn.errors import (
    AudioError,
    AudioTooLongError,
    BadOptionError,
    RequestRefusedError,
    ServerBusyError,
    ServerError,
    ServerFailedError,
    ServerUnreachableError,
    TokenRefusedError,
    UnsupportedFormatError,
)
from audiocnn.options import HEADERS, Options, options_in_headers
from tests.helpers.ports import free_ports
from tests.helpers.scripted_server import (
    BUSY,
    DIED,
    OK,
    RESET,
    SILENT,
    TOKEN,
    Ask,
    answers,
    ask_async,
    ask_sync,
    both,
    script,
    torchserve_error,
)

# --- what is asked again ---


@both
@pytest.mark.parametrize(
    "step",
    [
        BUSY,
        DIED,
        torchserve_error(500, "InternalServerException", "Worker died."),
        torchserve_error(503, "InternalServerException", "Prediction failed"),
        (502, {}, "<html>bad gateway</html>"),
        (200, {}, '{"predictions": [{"cla'),
        (200, {}, "[]"),
        RESET,
    ],
    ids=["busy", "507", "500", "503", "502", "half a JSON", "a list", "reset"],
)
def test_temporary_failures_are_retried(ask: Ask, step: Any) -> None:
    with script(step, step) as server:
        assert ask(server.url)["predictions"][0]["class"] == "dog"
    ids = {seen["x-request-id"] for seen in server.seen}
    assert len(server.seen) == 3
    assert len(ids) == 1


@both
@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ((400, {}, '{"error": {"code": "empty_audio", "message": "No bytes."}}'), AudioError),
        ((415, {}, '{"error": {"code": "unsupported_format", "message": "?"}}'), UnsupportedFormatError),
        ((413, {}, ""), AudioTooLongError),
        (torchserve_error(404, "ModelNotFoundException", "Model not found: audiocnn"), RequestRefusedError),
        (torchserve_error(405, "MethodNotAllowedException", "not allowed"), RequestRefusedError),
        ((302, {"Location": "/elsewhere"}, ""), RequestRefusedError),
        (TOKEN, TokenRefusedError),
        ((401, {}, ""), TokenRefusedError),
    ],
    ids=["400", "415", "413", "404", "405", "302", "token", "401"],
)
def test_permanent_errors_are_not_retried(ask: Ask, step: Any, expected: type[Exception]) -> None:
    with script(step) as server, pytest.raises(expected) as caught:
        ask(server.url, request_id="mine-1")
    assert len(server.seen) == 1
    assert server.seen[0]["x-request-id"] == "mine-1"
    assert caught.value.request_id == "mine-1"
    assert "mine-1" in "".join(caught.value.__notes__)


@both
def test_a_code_from_a_newer_server_is_kept(ask: Ask) -> None:
    step = (422, {}, '{"error": {"code": "new_code", "message": "New."}}')
    with script(step) as server, pytest.raises(AudioError, match="New") as caught:
        ask(server.url)
    assert (caught.value.code, caught.value.status) == ("new_code", 422)
    assert AudioError.code == "bad_audio"


@both
def test_a_clip_that_kills_workers_is_retried_a_few_times_only(ask: Ask) -> None:
    with script(*[DIED] * 10) as server, pytest.raises(ServerFailedError, match="Worker died") as caught:
        ask(server.url, max_server_failures=2)
    assert len(server.seen) == 3
    assert caught.value.status == 507


@both
def test_a_handler_that_raises_is_no_busy_server(ask: Ask) -> None:
    step = torchserve_error(503, "InternalServerException", "Prediction failed")
    with script(*[step] * 10) as server, pytest.raises(ServerFailedError, match="Prediction failed"):
        ask(server.url, max_server_failures=1)
    assert len(server.seen) == 2


@both
def test_a_busy_server_is_retried_until_the_deadline(ask: Ask) -> None:
    with script(*[BUSY] * 100) as server, pytest.raises(ServerBusyError, match="queue is full"):
        ask(server.url, deadline_seconds=0.6)
    assert 1 < len(server.seen) < 100


@both
def test_the_last_reply_is_told_where_the_deadline_cuts_off_an_attempt(ask: Ask) -> None:
    with script(BUSY, SILENT) as server, pytest.raises(ServerBusyError, match="queue is full"):
        ask(server.url, deadline_seconds=1.0)


@pytest.mark.parametrize(("ask", "form"), [(ask_sync, "date"), (ask_async, "seconds")])
def test_retry_after_is_honoured(ask: Ask, form: str) -> None:
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    status, _, body = BUSY
    with script((status, {"Retry-After": "1" if form == "seconds" else when}, body)) as server:
        ask(server.url)
    assert server.times[1] - server.times[0] >= 1.0


@both
def test_no_waiting_for_what_comes_after_the_deadline(ask: Ask) -> None:
    with script((503, {"Retry-After": "86400"}, "")) as server, pytest.raises(ServerBusyError):
        ask(server.url, deadline_seconds=3600)  # waiting for it would run into the time limit of the tests


@both
def test_a_request_without_a_reply_is_retried(ask: Ask) -> None:
    with script(SILENT) as server:
        assert ask(server.url, attempt_seconds=0.3)["predictions"]
    assert len(server.seen) == 2


@both
def test_an_unreachable_server_is_an_error(ask: Ask) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(ServerUnreachableError):
        ask(url, deadline_seconds=0.3)
    assert ask(url, verb="ready") is False


@both
def test_a_server_that_starts_late_is_retried(ask: Ask) -> None:
    (port,) = free_ports(1)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, f"http://127.0.0.1:{port}", deadline_seconds=30)
        time.sleep(0.2)
        assert not answer.done()
        with script(port=port):
            assert answer.result()["predictions"]


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="invalid address"):
        Client("localhost:8080")


# --- options and addresses ---


@both
def test_options_become_headers(ask: Ask) -> None:
    with script() as server:
        ask(
            server.url,
            verb="explain",
            version="2.0",
            top_k=3,
            classes=["dog", "cat"],
            evidence=True,
            class_="dog",
            layers=None,
        )
    (seen,) = server.seen
    assert seen["path"] == "/explanations/audiocnn/2.0"
    assert seen["content-type"] == "application/octet-stream"
    sent = {key: value for key, value in seen.items() if key in HEADERS}
    assert sent == {"x-top-k": "3", "x-classes": "dog,cat", "x-evidence": "True", "x-class": "dog"}


@both
def test_spaces_around_an_option_do_no_harm(ask: Ask) -> None:
    """HTTP libraries refuse such a header; the clip was asked for again and again until the deadline."""
    with script() as server:
        ask(server.url, top_k=" 3 ", classes="  ")
    (seen,) = server.seen
    assert (seen["x-top-k"], seen["x-classes"]) == ("3", "")


@both
def test_an_option_that_does_not_exist_is_named(ask: Ask) -> None:
    with script() as server, pytest.raises(BadOptionError, match="topk"):
        ask(server.url, topk=3)
    assert server.seen == []


@both
def test_options_that_no_header_holds_are_refused(ask: Ask) -> None:
    with script() as server, pytest.raises(BadOptionError, match="too long"):
        ask(server.url, classes=["rain"] * 2000)
    assert server.seen == []


@both
@pytest.mark.parametrize("name", ["gr\u00fcn", "a\r\nX-Evil: 1", "100 %41", 'Knock, "door"'])
def test_names_of_any_letters_arrive(ask: Ask, name: str) -> None:
    config = Config(class_names=(name, "dog"))
    with script() as server:
        ask(server.url, classes=[name, "dog"], class_=name)
    (seen,) = server.seen
    assert "x-evil" not in seen
    options = Options.parse(options_in_headers(seen.items()), config)
    assert (options.classes, options.class_name) == ((name, "dog"), name)


# --- many ---


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_many_come_in_order_with_their_errors(kind: str, tmp_path: Path) -> None:
    def by_size(headers: Any) -> Any:
        size = int(headers["Content-Length"])
        time.sleep(0.005 * (size % 3))  # the order of the replies is not that of the requests
        return (400, {}, '{"error": {"code": "empty_audio", "message": ""}}') if size == 7 else OK

    clips = [b"x" * size for size in range(1, 30)] + [tmp_path / "missing.wav"]
    with script(*[by_size] * 40) as server:
        pairs = answers(kind, server.url, clips, concurrency=4)
    assert [clip for clip, _ in pairs] == clips
    for clip, result in pairs:
        if clip == b"x" * 7:
            assert isinstance(result, AudioError)
        elif isinstance(clip, Path):
            assert isinstance(result, FileNotFoundError)
        else:
            assert result["predictions"][0]["class"] == "dog"


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_many_reads_no_further_than_it_must(kind: str) -> None:
    taken = itertools.count()
    clips = (b"x" for _ in taken)

    async def run(url: str) -> None:
        async with AsyncClient(url) as client:
            stream = client.predict_many(clips, concurrency=2)
            async for _ in stream:
                break
            await stream.aclose()  # type: ignore[attr-defined]

    with script() as server:
        if kind == "async":
            asyncio.run(run(server.url))
        else:
            with Client(server.url) as client:
                stream = client.predict_many(clips, concurrency=2)
                next(stream)
                stream.close()  # type: ignore[attr-defined]
    assert next(taken) <= 6


# --- tokens ---


def write_keys(path: Path, inference: str) -> None:
    path.write_text(json.dumps({"inference": {"key": inference}, "API": {"key": "api"}}))


@both
def test_a_new_key_in_the_file_is_used(ask: Ask, tmp_path: Path) -> None:
    keys = tmp_path / "key_file.json"
    write_keys(keys, "old")

    def renewed_meanwhile(headers: Any) -> Any:
        assert headers["Authorization"] == "Bearer old"
        write_keys(keys, "new")
        return TOKEN

    with script(renewed_meanwhile) as server:
        assert ask(server.url, key_file=keys)["predictions"]
    assert server.seen[-1]["authorization"] == "Bearer new"


@both
def test_a_key_that_stays_refused_is_an_error(ask: Ask, tmp_path: Path) -> None:
    with script(*[TOKEN] * 10) as server, pytest.raises(TokenRefusedError):
        ask(server.url, key_file=tmp_path / "missing.json", management=server.url)
    assert len(server.seen) == 3
    assert not any("authorization" in seen for seen in server.seen)


def test_the_error_tree_is_one() -> None:
    for cls in (
        ServerBusyError,
        ServerFailedError,
        ServerUnreachableError,
        TokenRefusedError,
        RequestRefusedError,
    ):
        assert issubclass(cls, ServerError)
    assert not issubclass(ServerError, AudioError)

"""The client: against a server that misbehaves by script, and against a real TorchServe."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from audiocnn import samples
from audiocnn.async_client import AsyncClient
from audiocnn.client import Client
from audiocnn.errors import (
    AudioError,
    AudioTooLong,
    BadOption,
    RequestRefused,
    ServerBusy,
    ServerError,
    ServerFailed,
    ServerUnreachable,
    TokenRefused,
    UnsupportedFormat,
)
from audiocnn.protocol import HEADERS, probe_wav
from tests.conftest import ROOT, Server, free_ports, running_server, server_settings, wait_until

OK = (200, {}, json.dumps({"predictions": [{"class": "dog", "confidence": 0.9}]}))


def torchserve_error(status: int, kind: str, message: str) -> tuple[int, dict[str, str], str]:
    return status, {}, json.dumps({"code": status, "type": kind, "message": message})


BUSY = torchserve_error(503, "ServiceUnavailableException", 'Model "audiocnn" has no worker to serve ...')
DIED = torchserve_error(507, "InternalServerException", "Worker died.")
TOKEN = torchserve_error(400, "InvalidKeyException", "Token Authorization failed.")
RESET = "reset"
SILENT = "silent"


class Script(ThreadingHTTPServer):
    """Answers every request with the next step of a script, then with 200; remembers what it got."""

    daemon_threads = True

    def __init__(self, *steps: Any, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Step)
        self.steps = list(steps)
        self.seen: list[dict[str, str]] = []
        self.times: list[float] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Step(BaseHTTPRequestHandler):
    server: Script
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append({key.lower(): value for key, value in self.headers.items()})
        self.server.seen[-1]["path"] = self.path
        self.server.times.append(time.monotonic())
        step = self.server.steps.pop(0) if self.server.steps else OK
        if callable(step):
            step = step(self.headers)
        if step == RESET:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            self.rfile.close()
            self.wfile = open(os.devnull, "wb")  # noqa: SIM115
            return
        if step == SILENT:
            time.sleep(2)
            self.close_connection = True
            return
        status, headers, body = step
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        data = body.encode()
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def script(*steps: Any, port: int = 0) -> Iterator[Script]:
    with Script(*steps, port=port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask_sync(url: str, *, verb: str = "predict", clip: Any = b"sound", **arguments: Any) -> Any:
    settings = {key: arguments.pop(key) for key in tuple(arguments) if key in SETTINGS}
    with Client(url, **settings) as client:
        return getattr(client, verb)(clip, **arguments) if verb != "ready" else client.ready(**arguments)


def ask_async(url: str, *, verb: str = "predict", clip: Any = b"sound", **arguments: Any) -> Any:
    settings = {key: arguments.pop(key) for key in tuple(arguments) if key in SETTINGS}

    async def run() -> Any:
        async with AsyncClient(url, **settings) as client:
            if verb == "ready":
                return await client.ready(**arguments)
            return await getattr(client, verb)(clip, **arguments)

    return asyncio.run(run())


SETTINGS = {"deadline_seconds", "attempt_seconds", "max_server_failures", "key_file", "management", "version"}
Ask = Callable[..., Any]
both = pytest.mark.parametrize("ask", [ask_sync, ask_async], ids=["sync", "async"])


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
def test_a_passing_failure_is_asked_again(ask: Ask, step: Any) -> None:
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
        ((415, {}, '{"error": {"code": "unsupported_format", "message": "?"}}'), UnsupportedFormat),
        ((413, {}, ""), AudioTooLong),
        (torchserve_error(404, "ModelNotFoundException", "Model not found: audiocnn"), RequestRefused),
        (torchserve_error(405, "MethodNotAllowedException", "not allowed"), RequestRefused),
        ((302, {"Location": "/elsewhere"}, ""), RequestRefused),
        (TOKEN, TokenRefused),
        ((401, {}, ""), TokenRefused),
    ],
    ids=["400", "415", "413", "404", "405", "302", "token", "401"],
)
def test_what_will_not_pass_is_raised_at_once(ask: Ask, step: Any, expected: type[Exception]) -> None:
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
def test_a_clip_that_kills_workers_is_given_up(ask: Ask) -> None:
    with script(*[DIED] * 10) as server, pytest.raises(ServerFailed, match="Worker died") as caught:
        ask(server.url, max_server_failures=2)
    assert len(server.seen) == 3
    assert caught.value.status == 507


@both
def test_a_handler_that_raises_is_no_busy_server(ask: Ask) -> None:
    step = torchserve_error(503, "InternalServerException", "Prediction failed")
    with script(*[step] * 10) as server, pytest.raises(ServerFailed, match="Prediction failed"):
        ask(server.url, max_server_failures=1)
    assert len(server.seen) == 2


@both
def test_a_busy_server_is_asked_until_the_deadline(ask: Ask) -> None:
    began = time.monotonic()
    with script(*[BUSY] * 100) as server, pytest.raises(ServerBusy, match="queue is full"):
        ask(server.url, deadline_seconds=1.5)
    assert time.monotonic() - began < 2.5
    assert len(server.seen) > 3
    pauses = [b - a for a, b in itertools.pairwise(server.times)]
    assert pauses[0] < 0.3  # 0.05 to 0.1 s, and what a busy machine adds


@both
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(ask: Ask, form: str) -> None:
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    status, _, body = BUSY
    with script((status, {"Retry-After": "1" if form == "seconds" else when}, body)) as server:
        ask(server.url)
    assert server.times[1] - server.times[0] >= 1.0


@both
def test_no_waiting_for_what_comes_after_the_deadline(ask: Ask) -> None:
    began = time.monotonic()
    with script((503, {"Retry-After": "60"}, "")) as server, pytest.raises(ServerBusy):
        ask(server.url, deadline_seconds=10)
    assert time.monotonic() - began < 5


@both
def test_a_silent_server_is_asked_again(ask: Ask) -> None:
    with script(SILENT) as server:
        assert ask(server.url, attempt_seconds=0.5)["predictions"]
    assert len(server.seen) == 2


@both
def test_nobody_there(ask: Ask) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    began = time.monotonic()
    with pytest.raises(ServerUnreachable):
        ask(url, deadline_seconds=1)
    assert time.monotonic() - began < 2
    assert ask(url, verb="ready") is False


@both
def test_a_server_that_starts_late_is_waited_for(ask: Ask) -> None:
    (port,) = free_ports(1)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, f"http://127.0.0.1:{port}", deadline_seconds=30)
        time.sleep(0.5)
        assert not answer.done()
        with script(port=port):
            assert answer.result()["predictions"]


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="is no address"):
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
@pytest.mark.parametrize("options", [{"topk": 3}, {"classes": "gr\u00fcn"}, {"class_": "a\r\nX-Evil: 1"}])
def test_an_option_that_cannot_be_sent_is_named(ask: Ask, options: dict[str, Any]) -> None:
    with script() as server, pytest.raises(BadOption, match=next(iter(options)).rstrip("_")):
        ask(server.url, **options)
    assert server.seen == []


# --- many ---


def answers(kind: str, url: str, clips: Any, **options: Any) -> list[tuple[Any, Any]]:
    if kind == "sync":
        with Client(url) as client:
            return list(client.predict_many(clips, **options))

    async def run() -> list[tuple[Any, Any]]:
        async with AsyncClient(url) as client:
            return [pair async for pair in client.predict_many(clips, **options)]

    return asyncio.run(run())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_many_come_in_order_with_their_errors(kind: str, tmp_path: Path) -> None:
    def by_size(headers: Any) -> Any:
        size = int(headers["Content-Length"])
        time.sleep(0.02 * (size % 3))  # the order of the replies is not that of the requests
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
    with script(*[TOKEN] * 10) as server, pytest.raises(TokenRefused):
        ask(server.url, key_file=tmp_path / "missing.json", management=server.url)
    assert len(server.seen) == 3
    assert not any("authorization" in seen for seen in server.seen)


# --- a real TorchServe ---


@both
def test_predictions(ask: Ask, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "rain.wav"
    path.write_bytes(samples.wav("rain"))
    for clip in (path, str(path), path.read_bytes()):
        answer = ask(server.inference, clip=clip, top_k=3)
        assert answer["predictions"][0]["class"] == "rain"
        assert len(answer["predictions"]) == 3
    assert ask(server.inference, clip=path, evidence=True)["evidence"]
    assert ask(server.inference, verb="ready") is True
    assert ask(server.inference, verb="explain", clip=path)["predictions"]


@both
@pytest.mark.parametrize(
    ("clip", "options", "code"),
    [
        (b"", {}, "empty_audio"),
        (b"no sound at all", {}, "unsupported_format"),
        (probe_wav(), {"top_k": 0}, "bad_option"),
        (bytes(50_000_000), {}, "audio_too_long"),
    ],
)
def test_errors_by_code(ask: Ask, server: Server, clip: bytes, options: dict[str, Any], code: str) -> None:
    with pytest.raises(AudioError) as caught:
        ask(server.inference, clip=clip, **options)
    assert caught.value.code == code
    assert caught.value.request_id


@both
def test_a_version_that_does_not_exist(ask: Ask, server: Server) -> None:
    with pytest.raises(RequestRefused, match=r"9\.0"):
        ask(server.inference, clip=probe_wav(), version="9.0")


def numbered_clips(count: int) -> list[bytes]:
    """The synthetic sounds, each with a tail of its own, so that an answer can be told from another's."""
    sounds = [samples.wav(name) for name in samples.SOUNDS]
    return [sounds[number % len(sounds)] + bytes([number % 256]) * number for number in range(count)]


def classes(results: list[tuple[Any, Any]]) -> list[str]:
    for _, result in results:
        if isinstance(result, Exception):
            raise result
    return [result["predictions"][0]["class"] for _, result in results]


def workers(server: Server) -> list[dict[str, Any]]:
    (model,) = requests.get(f"{server.management}/models/audiocnn", timeout=10).json()
    return model["workers"]


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own, whose workers are killed."""
    with running_server(tmp_path_factory.mktemp("fragile"), server_settings()) as running:
        yield running


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_killed_workers_lose_nothing(kind: str, fragile: Server) -> None:
    clips = numbered_clips(400)  # seconds of work, of which the workers live 0.3
    expected = classes(answers(kind, fragile.inference, clips[:5])) * 80
    assert len(set(expected)) > 1
    assert wait_until(lambda: all(worker["status"] == "READY" for worker in workers(fragile)), 60)
    pids = [worker["pid"] for worker in workers(fragile)]
    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(answers, kind, fragile.inference, clips, concurrency=8)
        time.sleep(0.3)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert not results.done()
        assert classes(results.result()) == expected


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_killed_and_restarted_server_loses_nothing(kind: str, tmp_path: Path) -> None:
    """200 requests; all of TorchServe is killed after the first of them, and started on the same ports."""
    settings = server_settings()
    clips = numbered_clips(200)
    with ThreadPoolExecutor(1) as pool:
        with running_server(tmp_path / "first", settings) as first:
            expected = classes(answers(kind, first.inference, clips[:5])) * 40
            results = pool.submit(answers, kind, first.inference, clips, concurrency=8)
            time.sleep(0.3)
            for process in psutil.Process(first.process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            first.process.wait(timeout=30)
            assert not results.done()
        with running_server(tmp_path / "second", settings):
            assert classes(results.result(timeout=300)) == expected


@contextmanager
def torchserve_with_tokens(folder: Path) -> Iterator[dict[str, str]]:
    """TorchServe as it comes, with tokens; its key file is in `folder`."""
    settings = server_settings(minWorkers=1, maxWorkers=1) | {"disable_token_authorization": "false"}
    settings["model_store"] = str(ROOT / settings["model_store"])
    config = folder / "config.properties"
    config.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "LOG_LOCATION"), str(folder))
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    command = ["torchserve", "--start", "--foreground", "--ts-config", str(config), "--no-config-snapshots"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        yield settings
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            if child.name() == "java":
                child.terminate()
        process.wait(timeout=30)


def test_torchserves_token_is_read_and_renewed(tmp_path: Path) -> None:
    keys = tmp_path / "key_file.json"
    with torchserve_with_tokens(tmp_path) as settings:
        url, management = settings["inference_address"], settings["management_address"]
        assert wait_until(keys.is_file, 60)
        for ask in (ask_sync, ask_async):
            answer = ask(url, clip=samples.wav("rain"), key_file=keys, deadline_seconds=120)
            assert answer["predictions"][0]["class"] == "rain"
            with pytest.raises(TokenRefused, match="Token Authorization failed"):
                ask(url, clip=probe_wav())
            content = json.loads(keys.read_text())
            content["inference"]["key"] = "expired"
            keys.write_text(json.dumps(content))
            assert ask(url, verb="ready", key_file=keys) is False
            assert ask(url, clip=probe_wav(), key_file=keys, management=management)["predictions"]
            assert json.loads(keys.read_text())["inference"]["key"] != "expired"


def test_the_error_tree_is_one() -> None:
    for cls in (ServerBusy, ServerFailed, ServerUnreachable, TokenRefused, RequestRefused):
        assert issubclass(cls, ServerError)
    assert not issubclass(ServerError, AudioError)

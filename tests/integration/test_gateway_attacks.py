"""Attacks on the gateway by a caller without a key: each one runs against a real gateway on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import resource
import socket
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import httpx
import psutil
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.helpers.gateways import KEY, TLS, RunningGateway, running_gateway
from tests.helpers.paths import ROOT
from tests.helpers.scripted_server import OK, script
from tests.helpers.waiting import wait_until

C = TypeVar("C")
NOBODY = "http://127.0.0.1:1"  # what is refused here needs no TorchServe
RAIN = (ROOT / "samples" / "rain.wav").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture(scope="module")
def gateway(folder: Path) -> Iterator[RunningGateway]:
    """Without keys, impatient."""
    settings = {"tmpdir": folder, "header_seconds": 1, "upload_seconds": 2, "deadline_seconds": 1}
    with running_gateway(folder, NOBODY, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """With a key, impatient."""
    settings = {"api_keys": KEY, "header_seconds": 1, "upload_seconds": 2, "stream_start_seconds": 2}
    with running_gateway(tmp_path_factory.mktemp("locked"), NOBODY, **settings) as running:
        yield running


def raw(gateway: RunningGateway, *parts: bytes, seconds: float = 20) -> bytes:
    """What comes back for these bytes until the gateway closes; `TimeoutError` if it does not."""
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.settimeout(seconds)
        with contextlib.suppress(ConnectionError):  # closed before all parts were sent: the reply says why
            for part in parts:
                connection.sendall(part)
        return to_the_end(connection)


def to_the_end(connection: socket.socket) -> bytes:
    received = b""
    try:
        while data := connection.recv(1 << 16):
            received += data
    except ConnectionResetError:
        pass
    return received


def is_alive(gateway: RunningGateway) -> bool:
    """`/health` answers soon: nothing holds the event loop."""
    reply = httpx.get(gateway.url + "/health", timeout=5, trust_env=False, verify=TLS)
    return reply.status_code == 200


# --- the page ---


OLD = "/ui/gradio_api"  # where a page that stored uploads had its addresses
STATIC = [
    "/page/",
    "/page/..",
    "/page/../auth.py",
    "/page/%2e%2e/auth.py",
    "/page/..%2fauth.py",
    "/page/%2fetc%2fpasswd",
    "/page//etc/passwd",
    "/page/__init__.py",
    "/page/static_files.py",
    "/page/__pycache__",
    "/page/%00",
    "/page/main.js%00.html",
    "/page/main.js/",
    "/examples/../config.properties",
    "/examples/%2e%2e%2fconfig.wav",
    "/examples/..%2f..%2fetc%2fpasswd.wav",
    "/examples/%00.wav",
    "/examples/*.wav",
    "/examples/.wav",
    "//etc/passwd",
    "/ui/../config.properties",
    "/ui/config",
    "/ui/manifest.json",
    f"{OLD}/info",
    f"{OLD}/file=/etc/passwd",
    f"{OLD}/file=/proc/self/environ",
    f"{OLD}/file=http://127.0.0.1:1/x.png",
    f"{OLD}/deep_link?session_hash=s1",
    f"{OLD}/queue/data?session_hash=s1",
    f"{OLD}/proxy=http://127.0.0.1:1/",
]


@pytest.mark.parametrize("path", STATIC)
def test_there_are_no_files_but_those_of_the_page(gateway: RunningGateway, path: str) -> None:
    reply = raw(gateway, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert reply.startswith(b"HTTP/1.1 404"), reply[:400]
    assert b"not_found" in reply


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/stdin", "/etc/passwd", "/proc/self/environ"])
def test_no_request_names_a_file(gateway: RunningGateway, path: str) -> None:
    """An event of the old page had a device without an end hashed, and any file copied and sent."""
    data = {"path": path, "meta": {"_type": "gradio.FileData"}}
    event = {"data": [data], "fn_index": 5, "session_hash": "s"}
    assert gateway.post(f"{OLD}/queue/join", json=event).status_code == 404
    for query in ({"path": path}, {"file": f"@{path}"}, {"data": f"file://{path}"}):
        reply = gateway.post("/predict", params=query, content=RAIN)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "bad_option")
    assert is_alive(gateway)


def test_nothing_is_uploaded_to_the_page(gateway: RunningGateway, folder: Path) -> None:
    before = set(folder.rglob("*"))
    for _ in range(3):
        for path in (f"{OLD}/upload", f"{OLD}/queue/join", f"{OLD}/run/x", "/ui/login", "/page/x.js"):
            reply = gateway.post(path, files={"files": ("x.html", b"<script>1</script>")})
            assert reply.status_code in (404, 405), path
        assert gateway.post("/predict", content=RAIN).status_code == 503  # there is no TorchServe
    assert set(folder.rglob("*")) == before


def test_whatever_is_sent_back_is_not_run(gateway: RunningGateway) -> None:
    """A link to any address of ours runs no foreign script as a page of our origin."""
    script = "<script>alert(1)</script>"
    for path in (f"/{script}", f"/page/{script}", f"/predict?{script}=1", f"/examples/{script}.wav"):
        for reply in (gateway.get(path), gateway.post(path, content=RAIN)):
            assert reply.headers["Content-Type"] == "application/json"
            assert reply.headers["X-Content-Type-Options"] == "nosniff"
            assert reply.headers["Content-Security-Policy"].startswith("default-src 'none'")


# --- which name is asked for ---


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """With names of its own."""
    settings = {"allowed_hosts": "audio.example, Gateway", "allowed_origins": "https://sounds.example:8443"}
    with running_gateway(tmp_path_factory.mktemp("named"), NOBODY, **settings) as running:
        yield running


PATHS = [
    "/health",
    "/ready",
    "/labels",
    "/",
    "/page/main.js",
    "/ui",
    "/docs",
    "/openapi.json",
    "/metrics",
    "/nothing",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_foreign_name_reads_nothing(gateway: RunningGateway, path: str) -> None:
    """What a page does whose name was pointed at us after it was loaded (DNS rebinding)."""
    for host in (
        "rebound.example",
        f"rebound.example:{gateway.port}",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
    ):
        reply = gateway.get(path, headers={"Host": host})
        assert (reply.status_code, reply.json()["error"]["code"]) == (421, "misdirected_request")
        assert reply.json()["request_id"] == reply.headers["X-Request-Id"]
    assert gateway.post("/predict", files={"file": RAIN}, headers={"Host": "x"}).status_code == 421
    assert gateway.post("/predict", content=RAIN, headers={"Host": "x"}).status_code == 421


def test_a_foreign_name_has_no_preflight_and_no_stream(gateway: RunningGateway) -> None:
    own = {"Origin": f"http://localhost:{gateway.port}", "Access-Control-Request-Method": "POST"}
    reply = httpx.options(gateway.url + "/predict", headers=own | {"Host": "x.example"}, trust_env=False)
    assert reply.status_code == 421
    with pytest.raises(InvalidStatus) as caught:
        asyncio.run(open_stream(f"ws://127.0.0.1:{gateway.port}/ws/predict", Host="rebound.example"))
    assert caught.value.response.status_code == 421


async def open_stream(url: str, **headers: str) -> None:
    async with connect(url, proxy=None, additional_headers=headers):
        pass


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "[::1]", "10.1.2.3:80"]
)
def test_addresses_and_localhost_are_asked_for(gateway: RunningGateway, host: str) -> None:
    assert gateway.get("/health", headers={"Host": host}).status_code == 200


def test_names_that_were_allowed(named: RunningGateway) -> None:
    for host in ("audio.example", "AUDIO.example:443", "gateway:8000", "sounds.example", "localhost"):
        assert named.get("/health", headers={"Host": host}).status_code == 200
    for host in ("example", "x.audio.example", "audio.example.evil", ""):
        assert named.get("/health", headers={"Host": host}).status_code == 421


def test_one_of_two_names_is_foreign(gateway: RunningGateway) -> None:
    reply = raw(
        gateway, b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    )
    assert reply.startswith((b"HTTP/1.1 421", b"HTTP/1.1 400"))


# --- client addresses ---


def statuses(gateway: RunningGateway, count: int = 8, **headers: str) -> list[int]:
    """Of requests that each say they come from another address."""
    return [
        gateway.get("/config", headers={"X-Forwarded-For": f"192.0.2.{n}"} | headers).status_code
        for n in range(count)
    ]


def test_a_client_cannot_choose_the_address_that_is_counted(tmp_path: Path) -> None:
    with running_gateway(tmp_path, NOBODY, rate_limit_per_minute=6, deadline_seconds=0.1) as gateway:
        assert statuses(gateway)[1:] == [429] * 7


def test_a_proxy_that_was_named_tells_callers_apart(tmp_path: Path) -> None:
    settings = {
        "rate_limit_per_minute": 6,
        "deadline_seconds": 0.1,
        "trusted_proxies": "10.0.0.0/8, 127.0.0.1",
    }
    with running_gateway(tmp_path, NOBODY, **settings) as gateway:
        assert 429 not in statuses(gateway)
        # What the caller wrote in front of the proxy's own entry does not count.
        forged = [
            gateway.get("/config", headers={"X-Forwarded-For": f"192.0.2.{n}, 203.0.113.9"}).status_code
            for n in range(4)
        ]
        assert forged[1:] == [429] * 3


# --- connections left open ---


REQUESTS = [
    ("GET", "/health"),
    ("HEAD", "/health"),
    ("OPTIONS", "/predict"),
    ("DELETE", "/predict"),
    ("GET", "/nothing"),
    ("GET", "/labels"),
    ("GET", "/"),
    ("GET", "/page/style.css"),
    ("GET", "/ui"),
    ("PUT", "/page/style.css"),
    ("PATCH", "/metrics"),
]


LENGTHS = ["Content-Length: 10", "Transfer-Encoding: chunked"]


def test_a_body_that_is_not_read(locked: RunningGateway) -> None:
    """One byte of it after the reply, then silence: on many connections at once, for each one waits."""

    def reply(case: tuple[tuple[str, str], str]) -> bytes:
        (method, path), length = case
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\n{length}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", locked.port)) as connection:
            connection.settimeout(20)
            connection.sendall(head.encode())
            received = connection.recv(1 << 16)
            with contextlib.suppress(OSError):
                connection.sendall(b"1")
            return received + to_the_end(connection)

    for case, received in at_once(reply, list(itertools.product(REQUESTS, LENGTHS))):
        assert received.startswith(b"HTTP/1.1 "), case
        assert b"connection: close" in received.lower(), case


def at_once(reply: Callable[[C], bytes], cases: Sequence[C]) -> list[tuple[C, bytes]]:
    """The replies to cases that each take seconds of waiting."""
    with ThreadPoolExecutor(len(cases)) as pool:
        return list(zip(cases, pool.map(reply, cases), strict=True))


def test_a_preflight_with_a_body_that_stops(locked: RunningGateway) -> None:
    head = f"OPTIONS /predict HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost:{locked.port}\r\n"
    head += "Access-Control-Request-Method: POST\r\nContent-Length: 9\r\n\r\n1"
    assert b"connection: close" in raw(locked, head.encode()).lower()


FORMS = [
    ("/predict", "audio/wav", ""),
    ("/predict", "audio/wav", f"X-API-Key: {KEY}\r\n"),
    ("/predict", "application/octet-stream", f"X-API-Key: {KEY}\r\n"),
    ("/predict", "multipart/form-data; boundary=b", f"X-API-Key: {KEY}\r\n"),
    ("/inference", "application/json", f"X-API-Key: {KEY}\r\n"),
]


def test_a_form_that_stops(locked: RunningGateway) -> None:
    def reply(case: tuple[str, str, str]) -> bytes:
        path, kind, more = case
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{more}"
        head += f"Content-Type: {kind}\r\nContent-Length: 100\r\n\r\n-"
        return raw(locked, head.encode())

    for case, received in at_once(reply, FORMS):
        assert received.startswith((b"HTTP/1.1 408", b"HTTP/1.1 401")), case


def test_a_connection_that_does_nothing_more(locked: RunningGateway) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for _, received in at_once(lambda parts: raw(locked, *parts), [(request,), (request, b"\r\n")]):
        assert received.count(b"HTTP/1.1 200") == 1


def test_a_whole_unread_body_keeps_the_connection(locked: RunningGateway) -> None:
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc"
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert raw(locked, one, last).count(b"HTTP/1.1 200") == 2


def num_connections(gateway: RunningGateway) -> int:
    return sum(
        each.laddr.port == gateway.port and each.status != psutil.CONN_LISTEN
        for each in psutil.Process(gateway.process.pid).net_connections("tcp")
    )


def test_unread_replies(locked: RunningGateway) -> None:
    """Megabytes asked for and left lying: neither they nor their connection are held."""
    asset = b"GET /docs-assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", locked.port))
        connection.sendall(asset * 20)
        assert wait_until(lambda: num_connections(locked) > 0, 5)
        assert wait_until(lambda: num_connections(locked) == 0, 30)


@pytest.mark.parametrize("tail", [b"", b"\r\n" * 2])
def test_a_head_of_any_size(locked: RunningGateway, tail: bytes) -> None:
    process = psutil.Process(locked.process.pid)
    before = process.memory_info().rss
    with socket.create_connection(("127.0.0.1", locked.port)) as connection:
        connection.settimeout(20)
        with contextlib.suppress(OSError):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Large: ")
            connection.sendall(b"x" * (64 << 20) + tail)
        assert b"HTTP/1.1 200" not in to_the_end(connection)
    assert is_alive(locked)
    assert process.memory_info().rss - before < 20 << 20


def test_a_million_headers_behind_a_body(gateway: RunningGateway) -> None:
    """Trailers of a chunked body are headers too."""
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    head += b"Content-Type: multipart/form-data; boundary=b\r\n\r\n0\r\n"
    process = psutil.Process(gateway.process.pid)
    before = process.memory_info().rss
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.settimeout(20)
        with contextlib.suppress(OSError):
            connection.sendall(head)
            for _ in range(100):
                connection.sendall(b"x: y\r\n" * 10_000)
        to_the_end(connection)
    assert process.memory_info().rss - before < 20 << 20


def test_a_cookie_is_not_read(locked: RunningGateway) -> None:
    """Its parser took the square of the length once; now there is none, and no key in a cookie."""
    for cookie in ('audiocnn_key="' + "\\" * 50_000 + '"', f"audiocnn_key={KEY}"):
        assert locked.get("/labels", headers={"Cookie": cookie}).status_code in (401, 431)


def test_a_tag_list_made_to_be_slow(gateway: RunningGateway) -> None:
    tags = ",".join(['"x"'] * 15_000)
    for path in ("/", "/page/main.js"):
        assert gateway.get(path, headers={"If-None-Match": tags}).status_code == 200
    assert is_alive(gateway)


def test_so_many_connections_of_one_address(tmp_path: Path) -> None:
    with running_gateway(tmp_path, NOBODY, max_connections_per_address=5, header_seconds=60) as gateway:
        assert wait_until(lambda: num_connections(gateway) == 0, 20)
        with contextlib.ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port)))
            assert wait_until(lambda: num_connections(gateway) == 5, 10)
            reply = raw(gateway, b"")
            assert reply.startswith(b"HTTP/1.1 503")
            assert b'"busy"' in reply
        assert wait_until(lambda: is_served(gateway), 10)
        asyncio.run(streams_count_too(gateway))
        assert wait_until(lambda: is_served(gateway), 10)


def is_served(gateway: RunningGateway) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return gateway.get("/health").status_code == 200
    return False


async def streams_count_too(gateway: RunningGateway) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(connect(gateway.stream, proxy=None))
        with pytest.raises(InvalidStatus) as caught:
            async with connect(gateway.stream, proxy=None):
                pass
        assert caught.value.response.status_code == 503


# --- streams ---


async def refusal(gateway: RunningGateway, *frames: str | bytes, **headers: str) -> int | None:
    """The close code."""
    async with connect(gateway.stream, proxy=None, additional_headers=headers) as stream:
        with contextlib.suppress(ConnectionClosed):
            for frame in frames:
                await stream.send(frame)
            async with asyncio.timeout(20):
                async for _ in stream:
                    pass
        return stream.close_code


def test_streams_without_a_key_take_no_place(tmp_path: Path) -> None:
    async def scene(gateway: RunningGateway) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(6):
                await stack.enter_async_context(connect(gateway.stream, proxy=None))
            key = {"X-API-Key": KEY}
            async with connect(gateway.stream, proxy=None, additional_headers=key) as mine:
                await mine.send('{"sample_rate": 44100}')
                assert json.loads(await asyncio.wait_for(mine.recv(), 20))["type"] == "ready"
            # Connections without a key yet wait up to the limit.
            assert await refusal(gateway) == 1013
        assert await refusal(gateway, **{"X-API-Key": "x" * 40}) == 4401  # not a frame is waited for

    settings = {"api_keys": KEY, "max_streams": 6, "stream_start_seconds": 30}
    with running_gateway(tmp_path, NOBODY, **settings) as gateway:
        asyncio.run(scene(gateway))


def test_a_first_frame_is_small(locked: RunningGateway) -> None:
    """A megabyte from each connection without a key would be a gigabyte."""
    assert asyncio.run(refusal(locked, b"x" * 100_000)) == 1009
    assert asyncio.run(refusal(locked, "x" * 5000)) == 4400


# --- between the gateway and TorchServe ---


SMUGGLED = [
    b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    b"Content-Length: 5, 5\r\n\r\nabcde",
    b"Content-Length: +5\r\n\r\nabcde",
    b"Content-Length: 5 5\r\n\r\nabcde",
    b"Content-Length: -1\r\n\r\n",
    b"Content-Length: 99999999999999999999999\r\n\r\n",
    b"Content-Length : 5\r\n\r\nabcde",
    b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n5;\r\nabcdeX\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n0\r\n\r\n",
    b"X-Top-K: 1\r\n folded: 2\r\nContent-Length: 0\r\n\r\n",
    b"X-A: b\rX-Top-K: 1\r\n\r\n",
    b"X-A: b\x00c\r\n\r\n",
]


@pytest.mark.parametrize("rest", SMUGGLED)
def test_a_request_that_two_servers_read_differently(gateway: RunningGateway, rest: bytes) -> None:
    """It is refused, and what is behind it on the connection is no request."""
    head = b"POST /labels HTTP/1.1\r\nHost: localhost\r\n"
    reply = raw(gateway, head + rest, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert reply.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431")), reply[:200]
    assert reply.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("request_line", ["NONSENSE", "FOO /predict HTTP/1.1", "GET /predict HTTP/9.9"])
def test_what_is_no_http_gets_an_error_in_json(gateway: RunningGateway, request_line: str) -> None:
    head, _, body = raw(gateway, f"{request_line}\r\nHost: localhost\r\n\r\n".encode()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "bad_request"


UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
UPGRADE += "dGhlIHNhbXBsZSBub25jZQ==\r\n"


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("POST", "Content-Length: 3\r\n"),
        ("GET", "Content-Length: 3\r\n"),
        ("GET", "Transfer-Encoding: chunked\r\n"),
        ("GET", f"Cookie: {'c' * 10_000}\r\n"),
        ("GET", "X-Many: y\r\n" * 200),
    ],
)
def test_a_stream_that_cannot_open_is_told_and_closed(
    gateway: RunningGateway, method: str, headers: str
) -> None:
    head = f"{method} /ws/predict HTTP/1.1\r\nHost: localhost\r\n{headers}{UPGRADE}\r\n"
    head, _, body = raw(gateway, head.encode()).decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "bad_request"


def test_a_stream_at_an_address_without_one(gateway: RunningGateway) -> None:
    head = f"GET /nothing HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n"
    head, _, body = raw(gateway, head.encode()).decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 404 ")
    assert json.loads(body)["error"]["code"] == "not_found"


def test_torchserve_sees_one_request_of_ours_for_each(tmp_path: Path) -> None:
    """Whatever a caller names options, files and ids: nothing of it becomes a header or a request."""
    evil = "1\r\nX-Evil: 1\r\n\r\nDELETE /models/audiocnn HTTP/1.1\r\n"
    with script(*[OK] * 100) as torchserve, running_gateway(tmp_path, torchserve.url) as gateway:
        file = {"file": (f'a"; name="x{evil}.wav', RAIN)}
        values = ({"top_k": evil}, {"classes": "a\nb"}, {"class": "a\x85b"}, {"layers": "a\u2028b"})
        for data, status in (({evil: "1"}, 400), *((data, 200) for data in values)):
            for given in ({"files": {"file": RAIN}, "data": data}, {"content": RAIN, "params": data}):
                assert gateway.post("/predict", **given).status_code == status, data  # type: ignore[arg-type]
        assert len(torchserve.seen) == 2 * len(values)
        assert gateway.post("/predict", files=file).status_code in (200, 400)
        ids = [b"a\tb", b"\xff\xfe", b"x" * 5000, b"../../models?url=x", b"a b"]
        for value in ids:
            headers = {b"X-Request-Id": value, b"Traceparent": value, b"Tracestate": value}
            assert gateway.post("/predict", files={"file": RAIN}, headers=headers).status_code == 200
        hop = {"X-Evil": "1", "Expect": "", "TE": "trailers", "X-Forwarded-For": "1.1.1.1", "Cookie": "a=b"}
        assert gateway.post("/predict", files={"file": RAIN}, headers=hop).status_code == 200
        ours = {
            "host",
            "accept",
            "accept-encoding",
            "connection",
            "user-agent",
            "content-type",
            "content-length",
        }
        for seen in torchserve.seen:
            assert seen["path"] == "/predictions/audiocnn"
            options = {"x-top-k", "x-classes", "x-class", "x-layers"}  # the values are percent-encoded
            assert set(seen) <= ours | options | {"x-request-id", "path"}, seen
            assert all(value.isascii() and value.isprintable() for value in seen.values()), seen


def gigabyte(start: bytes = b"") -> bytes:
    """These bytes and a gigabyte of zeros, compressed."""
    head = zlib.compressobj(wbits=31)
    zeros = zlib.compressobj(wbits=-15)
    one = zeros.compress(bytes(1 << 20)) + zeros.flush(zlib.Z_FULL_FLUSH)
    return head.compress(start) + head.flush(zlib.Z_FULL_FLUSH) + 1024 * one


def test_a_compressed_bomb_is_unpacked_up_to_the_limit(gateway: RunningGateway) -> None:
    bomb = gigabyte()
    form = gigabyte(b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n')
    process = psutil.Process(gateway.process.pid)
    before, most = process.memory_info().rss, 0
    for path, kind, body in (
        ("/predict", "audio/wav", bomb),
        ("/predict", "multipart/form-data; boundary=b", form),
        ("/inference", "application/json", bomb),
        ("/hf/audio-classification", "audio/wav", bomb),
        ("/v2/models/audiocnn/infer", "application/json", bomb),
    ):
        headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
        assert gateway.post(path, content=body, headers=headers).status_code == 413
        most = max(most, process.memory_info().rss)
    assert is_alive(gateway)
    assert most - before < 200 << 20  # as for bodies of that size that are not compressed


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """Nothing that is asked of it is written to disk, and a log that cannot be written stops nothing."""
    limits = {"deadline_seconds": 1, "log_file": "/dev/full"}
    with running_gateway(tmp_path, NOBODY, tmpdir=tmp_path, **limits) as gateway:
        _, hard = resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (0, hard))
        for body in ({"content": bytes(20 << 20)}, {"files": {"file": bytes(20 << 20)}}):
            reply = gateway.post("/predict", **body)
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "server_unreachable")
        assert gateway.get("/").status_code == 200

"""An HTTP server with scripted replies, and both clients as functions."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from audiocnn.client.async_client import AsyncClient
from audiocnn.client.client import Client

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
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def options_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """Takes the options out of the arguments."""
    return {name: arguments.pop(name) for name in tuple(arguments) if name not in ("request_id", "trace")}


def ask_sync(url: str, *, verb: str = "predict", clip: Any = b"sound", **arguments: Any) -> Any:
    settings = {key: arguments.pop(key) for key in tuple(arguments) if key in SETTINGS}
    with Client(url, first_wait_seconds=FIRST_WAIT_SECONDS, **settings) as client:
        if verb == "ready":
            return client.ready(**arguments)
        return getattr(client, verb)(clip, options_of(arguments), **arguments)


def ask_async(url: str, *, verb: str = "predict", clip: Any = b"sound", **arguments: Any) -> Any:
    settings = {key: arguments.pop(key) for key in tuple(arguments) if key in SETTINGS}

    async def run() -> Any:
        async with AsyncClient(url, first_wait_seconds=FIRST_WAIT_SECONDS, **settings) as client:
            if verb == "ready":
                return await client.ready(**arguments)
            return await getattr(client, verb)(clip, options_of(arguments), **arguments)

    return asyncio.run(run())


SETTINGS = {"deadline_seconds", "attempt_seconds", "max_server_failures", "key_file", "management", "version"}
FIRST_WAIT_SECONDS = 0.01
Ask = Callable[..., Any]
both = pytest.mark.parametrize("ask", [ask_sync, ask_async], ids=["sync", "async"])


def answers(kind: str, url: str, clips: Any, *, concurrency: int = 8) -> list[tuple[Any, Any]]:
    if kind == "sync":
        with Client(url) as client:
            return list(client.predict_many(clips, concurrency=concurrency))

    async def run() -> list[tuple[Any, Any]]:
        async with AsyncClient(url) as client:
            return [pair async for pair in client.predict_many(clips, concurrency=concurrency)]

    return asyncio.run(run())

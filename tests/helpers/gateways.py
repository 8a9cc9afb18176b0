"""A real gateway as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.helpers.paths import ROOT
from tests.helpers.ports import free_ports
from tests.helpers.servers import Server
from tests.helpers.waiting import wait_until

TLS = httpx.create_ssl_context()  # of all requests: to make one takes longer than most of them
KEY = "a-key-of-at-least-thirty-two-characters"


@dataclass
class RunningGateway:
    """Where it listens, and its process."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def stream(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/predict"

    def send(self, method: str, path: str, **options: object) -> httpx.Response:
        return httpx.request(method, self.url + path, timeout=120, trust_env=False, verify=TLS, **options)  # type: ignore[arg-type]

    def post(self, path: str, **options: object) -> httpx.Response:
        return self.send("POST", path, **options)

    def get(self, path: str, **options: object) -> httpx.Response:
        return self.send("GET", path, **options)

    def is_up(self) -> bool:
        try:
            return self.process.poll() is not None or self.get("/health").status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def running_gateway(folder: Path, torchserve: str, **settings: object) -> Iterator[RunningGateway]:
    """`audiocnn gateway` with these settings, up, and stopped afterwards."""
    (port,) = free_ports(1)
    values = {"torchserve_url": torchserve, "gateway_port": port} | settings
    port = int(str(values["gateway_port"]))
    log = folder / "gateway.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "audiocnn", "gateway"],
            cwd=ROOT,
            env=os.environ | {name.upper(): str(value) for name, value in values.items()},
            stdout=file,
            stderr=file,
        )
    running = RunningGateway(process, port, log)
    try:
        if not wait_until(running.is_up, 120) or process.poll() is not None:
            pytest.fail("the gateway did not start:\n" + log.read_text())
        yield running
    finally:
        process.terminate()
        process.wait(timeout=120)
        printed = log.read_text()
        assert "Traceback" not in printed, printed


@pytest.fixture(scope="module")
def gateway(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """As it comes."""
    with running_gateway(tmp_path_factory.mktemp("gateway"), server.inference) as running:
        yield running


@pytest.fixture(scope="module")
def strict(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """With keys, one foreign origin, and small limits."""
    settings = {
        "api_keys": f"{'x' * 32}, {KEY}",
        "allowed_origins": "https://sounds.example, http://localhost:3000",
        "max_upload_mb": 1,
        "max_files": 3,
        "header_seconds": 1,
        "max_connections_per_address": 2000,
        "upload_seconds": 2,
    }
    with running_gateway(tmp_path_factory.mktemp("strict"), server.inference, **settings) as running:
        yield running

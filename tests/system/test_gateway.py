"""The gateway in front of a real TorchServe: slow tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.helpers.gateways import KEY, RunningGateway
from tests.helpers.paths import ROOT

RAIN = (ROOT / "samples" / "rain.wav").read_bytes()


def test_a_thousand_slow_connections_delay_no_request(strict: RunningGateway) -> None:
    head = (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\nX-API-Key: " + KEY.encode()
    )
    head += b"\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n"
    with ExitStack() as stack:
        connections = []
        for number in range(1000):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", strict.port)))
            connection.sendall(head if number % 2 else head[:40])
            connections.append(connection)
        reply = strict.post("/predict", files={"file": RAIN}, headers={"X-API-Key": KEY})
        assert reply.status_code == 200
        got = []
        for connection in connections:
            connection.settimeout(15)
            got.append(connection.recv(12))
        assert set(got[1::2]) == {b"HTTP/1.1 408"}
        assert set(got[0::2]) == {b""}
    assert strict.get("/health").status_code == 200


def test_schemathesis_finds_nothing(gateway: RunningGateway, tmp_path: Path) -> None:
    """Thousands of requests made up from the document: no 5xx, no reply that it does not describe."""
    command = [str(Path(sys.executable).with_name("st")), "run", f"{gateway.url}/openapi.json", "--no-color"]
    command += ["--max-examples", "100", "--seed", "1", "--request-timeout", "60"]
    # The document cannot say that a string is the name of a class, or bytes a sound; and forms carry text,
    # so yes, 1 and on are taken for true though it says boolean.
    command += ["--exclude-checks", "positive_data_acceptance,negative_data_rejection"]
    environment = os.environ | {
        "SCHEMATHESIS_HOOKS": "tests.helpers.schemathesis_hooks",
        "PYTHONPATH": str(ROOT),
    }
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=800
    )
    print(result.stdout[-1500:])
    assert result.returncode == 0, result.stdout[:20_000] + result.stderr
    assert gateway.get("/ready").status_code == 200

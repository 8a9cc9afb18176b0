"""Long clips through the gateway, and where the time of a request went."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.helpers.gateways import RunningGateway, running_gateway
from tests.helpers.paths import ROOT
from tests.helpers.scripted_server import OK, SILENT, script
from tests.helpers.servers import Server
from tests.helpers.sounds import sound_file, tone
from tests.helpers.waiting import wait_until

RAIN = (ROOT / "samples" / "rain.wav").read_bytes()
LONG = sound_file(tone(60.0))  # 5 MB, 23 windows


def durations(reply: httpx.Response) -> dict[str, float]:
    entries = re.findall(r"([\w-]+);dur=([\d.]+)", reply.headers.get("Server-Timing", ""))
    return {name: float(ms) for name, ms in entries}


def test_a_reply_says_where_the_time_went(gateway: RunningGateway) -> None:
    for reply in (
        gateway.post("/predict", files={"file": RAIN}),
        gateway.post("/predict", content=RAIN, headers={"Content-Type": "audio/wav"}),
    ):
        found = durations(reply)
        names = ["receive", "backend", "decode", "log-mel", "inference", "batch", "total"]
        assert list(found) == names
        assert all(found[name] > 0 for name in names)
        assert found["receive"] + found["backend"] <= found["total"] + 1
        assert found["decode"] + found["log-mel"] + found["inference"] <= found["batch"] + 1
        assert found["batch"] <= found["backend"] + 1


def test_a_batch_of_files_has_no_times_of_one_file(gateway: RunningGateway) -> None:
    reply = gateway.post("/predict_batch", files=[("files", RAIN), ("files", RAIN)])
    assert list(durations(reply)) == ["receive", "backend", "total"]


@pytest.mark.parametrize("path", ["/health", "/labels", "/nothing"])
def test_replies_without_a_prediction_have_no_times(gateway: RunningGateway, path: str) -> None:
    assert "Server-Timing" not in gateway.get(path).headers


def test_long_clips_wait_for_each_other_and_short_ones_do_not(server: Server, tmp_path: Path) -> None:
    with running_gateway(tmp_path, server.inference, max_long_in_flight=1) as gateway:

        def ask(clip: bytes) -> httpx.Response:
            return gateway.post("/predict", content=clip, headers={"Content-Type": "audio/wav"})

        with ThreadPoolExecutor(6) as pool:
            long = [pool.submit(ask, LONG) for _ in range(4)]
            short = [pool.submit(ask, RAIN) for _ in range(2)]
            replies, shorts = [each.result() for each in long], [each.result() for each in short]
    assert {reply.status_code for reply in [*replies, *shorts]} == {200}
    assert not any("queue" in durations(reply) for reply in shorts)
    waits = sorted(durations(reply)["queue"] for reply in replies)
    shortest = min(durations(reply)["backend"] for reply in replies)
    assert waits[0] < shortest
    assert waits[3] > 2 * shortest  # behind the three others


def test_a_long_clip_that_gets_no_turn_is_told_to_ask_again(tmp_path: Path) -> None:
    with (
        script(SILENT, SILENT, SILENT) as torchserve,
        running_gateway(tmp_path, torchserve.url, max_long_in_flight=1, deadline_seconds=1) as gateway,
        ThreadPoolExecutor(3) as pool,
    ):
        replies = list(pool.map(lambda _: gateway.post("/predict", files={"file": LONG}), range(3)))
    busy = [reply for reply in replies if reply.json()["error"]["code"] == "busy"]
    assert busy
    for reply in busy:
        assert reply.status_code == 503
        assert "long clips" in reply.json()["error"]["message"]
        assert "Retry-After" in reply.headers


def held_back(gate: threading.Event) -> Callable[[Message], Any]:
    """A step of TorchServe's script that waits for the gate."""

    def step(_: Message) -> Any:
        gate.wait(60)
        return OK

    return step


def buffered_bytes(gateway: RunningGateway) -> float:
    line = re.search(r"^gateway_buffered_bytes (\S+)$", gateway.get("/metrics").text, re.MULTILINE)
    assert line is not None
    return float(line[1])


def test_a_long_clip_whose_caller_left_takes_no_turn(tmp_path: Path) -> None:
    gate = threading.Event()
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(LONG)}\r\n\r\n".encode()
    with (
        script(held_back(gate)) as torchserve,
        running_gateway(tmp_path, torchserve.url, max_long_in_flight=1) as gateway,
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(gateway.post, "/predict", content=LONG)
        assert wait_until(lambda: len(torchserve.seen) == 1, 20)
        with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
            connection.sendall(head + LONG)
            assert wait_until(lambda: buffered_bytes(gateway) == 2 * len(LONG), 20)
        last = pool.submit(gateway.post, "/predict", content=LONG)
        assert wait_until(lambda: buffered_bytes(gateway) == 3 * len(LONG), 20)
        gate.set()
        assert [first.result().status_code, last.result().status_code] == [200, 200]
        assert len(torchserve.seen) == 2
        assert wait_until(lambda: buffered_bytes(gateway) == 0, 20)


def test_long_clips_that_wait_leave_room_for_short_ones(tmp_path: Path) -> None:
    gate = threading.Event()
    with (
        script(held_back(gate)) as torchserve,
        running_gateway(tmp_path, torchserve.url, max_long_in_flight=1, max_in_flight=2) as gateway,
        ThreadPoolExecutor(4) as pool,
    ):
        long = [pool.submit(gateway.post, "/predict", content=LONG) for _ in range(4)]
        assert wait_until(lambda: buffered_bytes(gateway) == 4 * len(LONG), 20)
        assert wait_until(lambda: len(torchserve.seen) == 1, 20)
        assert gateway.post("/predict", content=RAIN).status_code == 200
        gate.set()
        assert {each.result().status_code for each in long} == {200}

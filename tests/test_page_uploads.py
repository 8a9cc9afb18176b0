"""Uploads of the page: charged, bounded in bytes and time, and never more on disk than allowed."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
import yaml
from starlette.requests import Request

from audiocnn.gateway.multipart import Budget
from audiocnn.gateway.page import Page
from audiocnn.gateway.page_uploads import make_room
from audiocnn.gateway.settings import MIB, Settings
from audiocnn.gateway.words import friendly
from tests.conftest import ROOT, wait_until
from tests.gateways import RunningGateway, running_gateway

UPLOAD = "/ui/gradio_api/upload"
NOBODY = "http://127.0.0.1:1"  # no upload needs TorchServe
HEAD = b'--b\r\nContent-Disposition: form-data; name="files"; filename="f.wav"\r\n\r\n'


@pytest.fixture
def small(tmp_path: Path) -> Iterator[RunningGateway]:
    limits = {"max_upload_mb": 1, "max_stored_mb": 2.5, "upload_seconds": 4}
    with running_gateway(tmp_path, NOBODY, tmpdir=tmp_path, **limits) as running:
        yield running


def upload(gateway: RunningGateway, size: int, fill: int = 0) -> httpx.Response:
    return gateway.post(UPLOAD, files={"files": (f"{fill}.wav", bytes([fill]) * size)})


def stored(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("audiocnn-ui-*/uploads/*/*")}


def test_the_oldest_make_room(small: RunningGateway, tmp_path: Path) -> None:
    for number in range(6):
        (path,) = upload(small, 900_000, number).json()
        assert Path(path).stat().st_size == 900_000
        assert sum(file.stat().st_size for file in tmp_path.rglob("*.wav")) <= 2.5 * MIB
    assert stored(tmp_path) == {"4.wav", "5.wav"}
    small.process.terminate()
    small.process.wait(timeout=120)
    assert not list(tmp_path.glob("audiocnn-ui-*"))


def test_uploads_of_a_gateway_that_was_killed_are_deleted_by_the_next(tmp_path: Path) -> None:
    with running_gateway(tmp_path, NOBODY, tmpdir=tmp_path) as killed:
        upload(killed, 900_000)
        killed.process.kill()
    assert len(stored(tmp_path)) == 1
    with running_gateway(tmp_path, NOBODY, tmpdir=tmp_path):
        assert not stored(tmp_path)


@pytest.mark.slow
def test_what_is_under_way_takes_room_too(small: RunningGateway, tmp_path: Path) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n" % UPLOAD.encode()
    head += b"Content-Type: multipart/form-data; boundary=b\r\n\r\n" + HEAD
    with (
        socket.create_connection(("127.0.0.1", small.port)) as one,
        socket.create_connection(("127.0.0.1", small.port)) as two,
    ):
        for slow in (one, two):
            slow.sendall(head)
        assert wait_until(lambda: len(list(tmp_path.glob("audiocnn-ui-*/uploads/tmp*"))) == 2, 5)
        reply = upload(small, 900_000)
        assert (reply.status_code, reply.text) == (503, ". ".join(friendly("busy")))
        assert "Retry-After" in reply.headers
        one.settimeout(20)
        assert one.recv(12) == b"HTTP/1.1 408"  # after UPLOAD_SECONDS
        two.settimeout(20)
        assert two.recv(12) == b"HTTP/1.1 408"
    # What they had begun is nobody's, and makes room.
    assert wait_until(lambda: upload(small, 900_000, 1).status_code == 200, 20)


def test_a_body_without_a_length_is_bounded(small: RunningGateway) -> None:
    def body() -> Iterator[bytes]:
        yield HEAD
        for _ in range(40):
            yield bytes(1 << 16)
            yield b"\r\n" + HEAD  # no file is above the limit, but all of them are

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    reply = small.post(UPLOAD, content=body(), headers=headers)
    assert (reply.status_code, reply.text) == (413, ". ".join(friendly("upload_too_large")))
    assert upload(small, 3 * MIB).status_code == 413


def test_events_are_small(small: RunningGateway) -> None:
    event = {"data": ["x" * 2 * MIB], "fn_index": 0, "session_hash": "s"}
    reply = small.post("/ui/gradio_api/queue/join", json=event)
    assert (reply.status_code, reply.text) == (413, ". ".join(friendly("upload_too_large")))


def test_an_upload_counts_as_a_request(tmp_path: Path) -> None:
    with running_gateway(tmp_path, NOBODY, rate_limit_per_minute=6, tmpdir=tmp_path) as gateway:
        assert [upload(gateway, 100).status_code for _ in range(2)] == [200, 429]
        assert upload(gateway, 100).text == ". ".join(friendly("rate_limited"))


def test_files_under_way_stay_and_dead_ones_go(tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    for name, age in (("dead", 100), ("coming", 5), ("done/old.wav", 50), ("done/new.wav", 1)):
        (tmp_path / name).write_bytes(bytes(100_000))
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    assert make_room(tmp_path, 300_000, 60) == 0
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["coming", "done", "new.wav", "old.wav"]
    assert make_room(tmp_path, 250_000, 60) == 50_000
    assert not (tmp_path / "done/old.wav").exists()
    assert make_room(tmp_path, 0, 60) == -100_000
    assert (tmp_path / "coming").exists()


def shown(path: Path, budget: Budget) -> str:
    """What the page says about a file."""

    async def ask(audio: bytes, request_id: str, options: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError("it must not be asked")

    async def analyse() -> str:
        scope = {"type": "http", "headers": [], "client": ("127.0.0.1", 1)}
        page = Page(ask, lambda _: None, budget)
        return str([each async for each in page.analyse(str(path), gr.Request(Request(scope)))][-1][0])

    return asyncio.run(analyse())


def test_answering_holds_the_budget(tmp_path: Path) -> None:
    (tmp_path / "clip.wav").write_bytes(bytes(1000))
    budget = Budget(999)
    assert friendly("busy")[0] in shown(tmp_path / "clip.wav", budget)
    assert budget.held == 0


def test_a_deleted_sound_is_asked_for_again(tmp_path: Path) -> None:
    assert friendly("sound_gone")[0] in shown(tmp_path / "gone.wav", Budget(1000))


def test_the_containers_have_room_for_them() -> None:
    """What fills its `/tmp` is evicted, or can write no more."""
    needed = 1.25 * Settings().max_stored_mb
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]["gateway"]
    assert compose["tmpfs"] == ["/tmp:size=256m,mode=1777"]
    manifest = yaml.safe_load((ROOT / "deploy/kubernetes/base/deployment.yaml").read_text())
    volumes = {each["name"]: each["emptyDir"] for each in manifest["spec"]["template"]["spec"]["volumes"]}
    assert volumes["gateway-tmp"] == {"sizeLimit": "256Mi"}
    assert needed <= 256
    assert compose["environment"]["MAX_BUFFERED_MB"] == "256"  # Java has 1 GiB there
    pod = manifest["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "MAX_BUFFERED_MB", "value": "256"} in pod

"""Uploads of the page: charged, bounded in bytes and time, and never more on disk than allowed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from audiocnn.gateway.settings import MIB
from audiocnn.gateway.words import friendly
from tests.helpers.gateways import RunningGateway, running_gateway
from tests.helpers.uploads import HEAD, NOBODY, UPLOAD, upload


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

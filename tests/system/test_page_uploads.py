"""Uploads of the page: charged, bounded in bytes and time, and never more on disk than allowed."""

from __future__ import annotations

import socket
from pathlib import Path

from audiocnn.gateway.words import friendly
from tests.helpers.gateways import RunningGateway
from tests.helpers.uploads import HEAD, UPLOAD, upload
from tests.helpers.waiting import wait_until


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

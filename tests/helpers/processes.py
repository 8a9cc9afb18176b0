"""Processes of a running server, and a request without its body."""

from __future__ import annotations

import socket

import psutil

from audiocnn.audio import synthetic
from tests.helpers.servers import Server

RAIN = synthetic.wav("rain")


class InHand:
    """A request of which the gateway has the head and waits for the body."""

    def __init__(self, port: int) -> None:
        form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        self._body = form + RAIN + b"\r\n--b--\r\n"
        self._connection = socket.create_connection(("127.0.0.1", port), timeout=120)
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(self._body)}\r\n"
        head += "Content-Type: multipart/form-data; boundary=b\r\nExpect: 100-continue\r\n\r\n"
        self._connection.sendall(head.encode())
        assert self._connection.recv(1000).startswith(b"HTTP/1.1 100 ")

    def finish(self) -> bytes:
        """Send the body; the first bytes of the reply."""
        self._connection.sendall(self._body)
        return self._connection.recv(1000)

    def close(self) -> None:
        self._connection.close()


def session_of(server: Server) -> list[psutil.Process]:
    """TorchServe's launcher, Java and workers."""
    found = psutil.Process(server.process.pid).children(recursive=True)
    return [process for process in found if "gateway" not in process.cmdline()]


def java_of(server: Server) -> psutil.Process:
    (java,) = [process for process in session_of(server) if process.name() == "java"]
    return java


def read_until(server: Server, word: str) -> str:
    """The next line that the server prints with this word in it."""
    assert server.process.stdout is not None
    line = next((line for line in server.process.stdout if word in line), None)
    assert line is not None, f"the output ended before {word!r}"
    return line


def are_gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)

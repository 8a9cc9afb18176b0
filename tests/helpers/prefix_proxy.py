"""A reverse proxy that serves another server below a path, as nginx does with `location /audio/`."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PREFIX = "/audio"


@contextmanager
def prefix_proxy(port: int) -> Iterator[str]:
    """The address below which a server on loopback is reached: `http://localhost:PORT/audio/`."""
    listener = socket.create_server(("127.0.0.1", 0))
    accepting = threading.Thread(target=_accept, args=(listener, port), daemon=True)
    accepting.start()
    try:
        yield f"http://localhost:{listener.getsockname()[1]}{PREFIX}/"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()


def _accept(listener: socket.socket, port: int) -> None:
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(connection, port), daemon=True).start()


def _serve(caller: socket.socket, port: int) -> None:
    """One request a connection: its path without the prefix, or 404; all else passes, WebSockets too."""
    with caller, suppress(OSError), caller.makefile("rb") as file:
        head = [file.readline()]
        while (line := file.readline()).strip():
            head.append(line)
        method, path, version = head[0].decode().split()
        if not path.startswith(f"{PREFIX}/"):
            caller.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        with socket.create_connection(("127.0.0.1", port)) as server:
            is_stream = any(line.lower().startswith(b"upgrade:") for line in head)
            kept = [line for line in head[1:] if is_stream or not line.lower().startswith(b"connection:")]
            more = [] if is_stream else [b"Connection: close\r\n"]
            first = f"{method} {path.removeprefix(PREFIX)} {version}\r\n".encode()
            server.sendall(b"".join([first, *kept, *more, b"\r\n"]))
            back = threading.Thread(target=_copy, args=(server, caller), daemon=True)
            back.start()
            while data := file.read1(1 << 16):
                server.sendall(data)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)

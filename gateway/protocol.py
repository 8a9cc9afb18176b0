"""uvicorn's HTTP protocol, less its patience with callers that do not finish the head of a request."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def http_protocol(header_seconds: float) -> type[HttpToolsProtocol]:
    """A protocol class that closes a connection whose request has no complete headers in time.

    Between requests uvicorn's keep-alive time-out holds, while a body arrives the gateway's.
    """

    class Impatient(HttpToolsProtocol):
        _patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait_for_headers()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._wait_for_headers()

        def on_headers_complete(self) -> Any:
            self._stop_waiting()
            return super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait_for_headers(self) -> None:
            self._stop_waiting()
            loop = asyncio.get_running_loop()
            self._patience = loop.call_later(header_seconds, self.transport.close)

        def _stop_waiting(self) -> None:
            if self._patience:
                self._patience.cancel()

    return Impatient

"""The gateway's connections to TorchServe: `AsyncClient` on aiohttp.

aiohttp parses and writes HTTP in C. httpx took 60 % of the gateway's CPU time per request
(docs/benchmarks.md); it remains the library of the public clients.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from multidict import CIMultiDictProxy

from audiocnn.client.async_client import AsyncClient
from audiocnn.client.base import Attempt
from audiocnn.gateway import server_timing

_MAX_WHOLE_BYTES = 1 << 20  # of a body; a larger one is written in pieces, with other requests in between


@dataclass(frozen=True)
class HttpReply:
    """What `audiocnn.client.base` reads of a reply."""

    status_code: int
    headers: CIMultiDictProxy[str]
    content: bytes


class TorchServeClient(AsyncClient):
    """Same methods, settings and errors as `AsyncClient`; use it with `async with`."""

    _session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        options = self._http_options()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=options["verify"]),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=options["trust_env"],
        )
        return self

    async def aclose(self) -> None:
        """Close the connections."""
        await self._session.close()
        await super().aclose()

    async def _post(self, verb: str, audio: bytes, attempt: Attempt) -> Any:
        timeout = aiohttp.ClientTimeout(attempt.timeout_seconds, sock_connect=attempt.connect_seconds)
        address = self._endpoint.address(verb)
        data = audio if len(audio) <= _MAX_WHOLE_BYTES else io.BytesIO(audio)
        try:
            async with self._session.post(
                address, data=data, headers=attempt.headers, timeout=timeout, allow_redirects=False
            ) as reply:
                server_timing.current().add_backend(reply.headers.get(server_timing.HEADER))
                return HttpReply(reply.status, reply.headers, await reply.read())
        except aiohttp.ClientError as error:
            raise ConnectionError(_reason(error)) from error


def _reason(error: aiohttp.ClientError) -> str:
    """Without the address of the model server, which is not for the gateway's callers."""
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ServerTimeoutError):
        return f"cannot connect ({type(getattr(error, 'os_error', error)).__name__})"
    return str(error) or type(error).__name__

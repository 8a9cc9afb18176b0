"""Send PCM to the gateway's WebSocket at the speed of a recording."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from audiocnn.errors import ServerError

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

URL = "ws://127.0.0.1:8000/ws/predict"
_FRAME_SECONDS = 0.1
_BYTES_PER_SAMPLE = 4


async def stream(
    pcm: bytes,
    *,
    sample_rate: int,
    hop_seconds: float = 1.0,
    top_k: int = 3,
    detections: bool = False,
    url: str = URL,
    api_key: str | None = None,
    on_reply: Callable[[dict[str, Any]], None],
) -> None:
    """Send mono PCM in real time and call `on_reply` with each reply of the gateway.

    `pcm` is little-endian float32 at `sample_rate` Hz. A `url` without a path means /ws/predict there. With
    `detections` there is a reply when an event begins and when it is over. Raises `ServerError` if the
    gateway cannot be reached or closes the stream early, `ImportError` without the package websockets.
    """
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed, WebSocketException

    start: dict[str, Any] = {"sample_rate": sample_rate, "hop_seconds": hop_seconds, "top_k": top_k}
    start |= {"detections": True} if detections else {}
    headers = {"X-API-Key": api_key} if api_key else {}
    url = _stream_of(url)
    is_local = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    proxy: Literal[True] | None = None if is_local else True
    try:
        async with connect(url, additional_headers=headers, proxy=proxy) as socket:
            await socket.send(json.dumps(start))
            sending = asyncio.create_task(_send(socket, pcm, sample_rate))
            try:
                async for text in socket:
                    on_reply(json.loads(text))
            finally:
                sending.cancel()
            if socket.close_code != 1000:
                raise ServerError(f"the gateway closed the stream: {socket.close_code}")
    except ConnectionClosed as error:
        raise ServerError(f"the gateway closed the stream: {error}") from error
    except (OSError, WebSocketException) as error:
        raise ServerError(f"no stream at {url}: {error}") from error


def _stream_of(url: str) -> str:
    """`http://host:8000` -> `ws://host:8000/ws/predict`."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    path = parts.path if parts.path.strip("/") else urlsplit(URL).path
    return parts._replace(scheme=scheme, path=path).geturl()


async def _send(socket: ClientConnection, pcm: bytes, sample_rate: int) -> None:
    """Send each frame when its last sample would have been recorded, then the end."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    size = round(_FRAME_SECONDS * sample_rate) * _BYTES_PER_SAMPLE
    for begin in range(0, len(pcm), size):
        frame = pcm[begin : begin + size]
        due = began + (begin + len(frame)) / _BYTES_PER_SAMPLE / sample_rate
        await asyncio.sleep(max(0.0, due - loop.time()))
        await socket.send(frame)
    await socket.send(json.dumps({"end": True}))

"""Compressed request bodies: gzip is unpacked in bounded pieces, other encodings are refused."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator

from starlette.requests import Request

from audiocnn.gateway.errors import BadRequestError, WrongMediaTypeError

_GZIP = ("gzip", "x-gzip")
_PIECE_BYTES = 1 << 18


def decoded_chunks(request: Request) -> AsyncIterator[bytes]:
    """The chunks of the body, unpacked if `Content-Encoding` is gzip, each of 256 KiB at most then.

    The caller bounds the sum. Raises `WrongMediaTypeError` for other encodings, and `BadRequestError` while
    reading a body that is no complete gzip stream.
    """
    encoding = ", ".join(request.headers.getlist("content-encoding")).strip().lower()
    if encoding in ("", "identity"):
        return request.stream()
    if encoding not in _GZIP:
        raise WrongMediaTypeError(
            f"Content-Encoding: {encoding[:40]} is not read. Send the body as gzip or uncompressed."
        )
    return _gunzip(request.stream())


async def _gunzip(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    gzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    is_empty = True
    async for chunk in chunks:
        is_empty = is_empty and not chunk
        while chunk:
            if gzip.eof:
                raise BadRequestError("The body has bytes behind its gzip stream.")
            try:
                piece = await asyncio.to_thread(gzip.decompress, chunk, _PIECE_BYTES)
            except zlib.error as error:
                raise BadRequestError(f"The body is not gzip as Content-Encoding says: {error}.") from None
            yield piece
            chunk = gzip.unconsumed_tail or gzip.unused_data
    if not (gzip.eof or is_empty):
        raise BadRequestError("The gzip body ends too early.")

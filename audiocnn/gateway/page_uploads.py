"""What is uploaded for the page lies in one folder for minutes, and never takes more room than allowed.

Gradio writes uploads to disk, as they come and for as long as they take; so everything is checked around it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from audiocnn.gateway.auth import AccessControl
from audiocnn.gateway.errors import BusyError, GatewayError, StorageFullError, status_of
from audiocnn.gateway.multipart import form_limit, too_large
from audiocnn.gateway.page_key import admit
from audiocnn.gateway.settings import MIB, Settings
from audiocnn.gateway.words import friendly

log = logging.getLogger("audiocnn.gateway.page")

KEPT_SECONDS = 600  # after that an upload is deleted: the page needs it while it is looked at
_LEAST_BYTES = 1 << 16  # a file counts as so many: a million tiny ones are no less trouble
_EVENT_BYTES = MIB  # a choice, or the name of a file
_YOUNG_SECONDS = 60.0  # an empty folder may be about to get its file


@dataclass
class Body:
    """A request's body, of at most `left` bytes."""

    receive: Receive
    left: int
    settings: Settings
    refusal: GatewayError | None = None

    async def next(self) -> Message:
        """The next message; raises `GatewayError` above the limits, and remembers that."""
        try:
            message = await self.receive()
        except GatewayError as error:  # it took too long
            self.refusal = error
            raise
        self.left -= len(message.get("body", b""))
        if self.left < 0:
            self.refusal = too_large(self.settings)
            raise self.refusal
        return message


class Uploads:
    """ASGI, around the page: each upload is counted, waits for room, and is bounded in bytes and time."""

    def __init__(self, app: ASGIApp, door: AccessControl, settings: Settings, folder: Path) -> None:
        self._app = app
        self._door = door
        self._settings = settings
        self._folder = folder
        self._max_bytes = int(settings.max_stored_mb * MIB)
        self._coming = 0  # bytes that uploads under way may still become

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. A refusal is text: Gradio's script shows it as it is."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            if scope["method"] == "POST" and scope["path"].endswith("/upload"):
                await self._upload(scope, receive, send)
            else:  # events: Gradio reads them whole
                await self._pass_on(scope, receive, send, _EVENT_BYTES)
        except GatewayError as error:
            if isinstance(error, StorageFullError):
                log.error("an upload was refused: %s", error.__cause__)
            scope["state"]["code"] = error.code
            status, headers = status_of(error)
            reply = PlainTextResponse(". ".join(friendly(error.code)), status, headers)
            await reply(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        admit(self._door, request)
        limit = min(form_limit(self._settings), self._max_bytes)
        size = int(request.headers.get("content-length", limit))
        if size > limit:
            raise too_large(self._settings)
        with self._room(size):
            await self._pass_on(scope, receive, send, size)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, size: int) -> None:
        body = Body(receive, size, self._settings)
        failure: list[Message] = []  # Gradio's own reply to what went wrong

        async def send_unless_failed(message: Message) -> None:
            if failure or body.refusal is not None or message.get("status") == 500:
                failure.append(message)
            else:
                await send(message)

        try:
            await self._app(scope, body.next, send_unless_failed)
        except Exception as error:
            if body.refusal is None and not _is_disk_full(error):
                raise
            raise body.refusal or StorageFullError("There is no room for the upload on the disk.") from error
        if body.refusal is not None:
            raise body.refusal
        for message in failure:
            await send(message)

    @contextlib.contextmanager
    def _room(self, size: int) -> Iterator[None]:
        """Room for so many bytes, by deleting the oldest uploads; `BusyError` if that is not enough."""
        rest = self._max_bytes - self._coming - size
        if rest < 0 or make_room(self._folder, rest, self._settings.upload_seconds) < 0:
            raise BusyError("The uploads under way take all the room there is: ask again.")
        self._coming += size
        try:
            yield
        finally:
            self._coming -= size


def _is_disk_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def make_room(folder: Path, max_bytes: int, upload_seconds: float) -> int:
    """Delete the oldest files until the rest takes `max_bytes` or less; the bytes that are left of these.

    Negative if that cannot be: what lies in the folder itself, not below it, is still being written, unless
    nothing was written for longer than an upload may take. Not in a thread: Gradio makes a folder and moves
    an upload into it in one step of the event loop.
    """
    now = time.time()
    files = []
    for path in list(folder.rglob("*")):
        with contextlib.suppress(OSError):  # gone, or a folder that is not empty
            status = path.stat()
            if not path.is_dir():
                files.append((status.st_mtime, max(status.st_size, _LEAST_BYTES), path))
            elif now - status.st_mtime > _YOUNG_SECONDS:
                path.rmdir()
    left = max_bytes - sum(size for _, size, _ in files)
    for written, size, path in sorted(files):
        if left >= 0:
            break
        if path.parent != folder or now - written > upload_seconds:
            path.unlink(missing_ok=True)
            left += size
    return left

"""What of Gradio can be reached: the routes that the page uses, and events and files of its own uploads only.

Gradio has some sixty routes. Several read files or addresses that the caller names, or hand out what others
have read. So only what is listed here gets through, and an event is written anew from the fields that were
checked: what Gradio's own parser would make of the rest does not matter.
"""

from __future__ import annotations

import mimetypes
import os
import re
import stat
import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs

import gradio as gr
import orjson
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from audiocnn.gateway.errors import BadRequestError, BusyError, NotFoundError

_FILE = "/gradio_api/file="
_JOIN, _DATA, _UPLOAD = "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/upload"
_PROGRESS = "/gradio_api/upload_progress"
_READ = ("", "/", "/theme.css", "/gradio_api/app_id", _DATA)
_READ_FOLDERS = re.compile(r"/(assets|static)/[\w./-]+")
_DONE = b'data: {"msg": "done"}\n\n'  # each upload's progress: Gradio never forgets an id that was asked for

_TOKEN = re.compile(r"[0-9a-z]{1,32}")
_UNREAD_SECONDS = 60.0  # so long are answers kept for a page that does not fetch them
_MAX_UNREAD_SESSIONS = 64
_MAX_UNREAD_EVENTS = 4  # of one page


class _Upload(BaseModel):
    path: Annotated[str, Field(max_length=4096)]
    orig_name: Annotated[str, Field(max_length=4096)] | None = None


class _Event(BaseModel):
    data: list[_Upload | Annotated[str, Field(max_length=200)] | None]
    fn_index: Annotated[int, Field(strict=True, ge=0)]
    trigger_id: Annotated[int, Field(strict=True)] | None = None
    session_hash: Annotated[str, Field(pattern=f"^{_TOKEN.pattern}$")]


def is_upload(folder: Path, path: str, *, may_be_gone: bool = False) -> bool:
    """Whether this is a plain file as uploads are stored: `folder/<hash>/<name>`, with no link on the way."""
    file = Path(path)
    if str(file) != path or file.parent.parent != folder or ".." in file.parts or "\0" in path:
        return False
    try:
        is_folder = stat.S_ISDIR(os.lstat(file.parent).st_mode)
        return is_folder and stat.S_ISREG(os.lstat(file).st_mode)
    except FileNotFoundError:
        return may_be_gone
    except OSError:
        return False


class PageRoutes:
    """ASGI, around Gradio's application."""

    def __init__(self, app: ASGIApp, blocks: gr.Blocks, folder: Path, *, has_proxy: bool) -> None:
        self._app = app
        self._blocks = blocks
        self._folder = folder
        self._untrusted = (b"x-gradio-",) if has_proxy else (b"x-gradio-", b"x-forwarded-", b"forwarded")
        self._unread: dict[str, float] = {}  # session: when its first event came, until a page reads it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; raises `GatewayError` for what is not let through."""
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(Response(status_code=404))
            return
        path, method = scope["path"].removeprefix(scope["root_path"]), scope["method"]
        is_read = method in ("GET", "HEAD")
        if is_read and path.startswith(_FILE):
            await self._file(path.removeprefix(_FILE))(scope, receive, send)
        elif is_read and path == _PROGRESS:
            await Response(_DONE, media_type="text/event-stream")(scope, receive, send)
        elif method == "POST" and path == _JOIN:
            await self._join(scope, receive, send)
        elif (method == "POST" and path == _UPLOAD) or (is_read and _is_readable(path)):
            await self._app(self._plain(scope, path), receive, send)
        else:
            raise NotFoundError("The page has no such address.")

    def _file(self, path: str) -> Response:
        """An upload: sound is played, everything else is saved. Gradio would also fetch addresses."""
        if not is_upload(self._folder, path):
            raise NotFoundError("There is no such upload: it was deleted, or never was.")
        kind = mimetypes.guess_type(path)[0] or ""
        is_sound = kind.startswith(("audio/", "video/"))
        return FileResponse(
            path,
            media_type=kind if is_sound else "application/octet-stream",
            headers={"X-Content-Type-Options": "nosniff"},
            filename=Path(path).name,
            content_disposition_type="inline" if is_sound else "attachment",
        )

    def _plain(self, scope: Scope, path: str) -> Scope:
        """The request without the query and the headers that Gradio would believe."""
        session = parse_qs(scope["query_string"].decode("ascii", "replace")).get("session_hash", [""])[0]
        query = b""
        if path == _DATA and _TOKEN.fullmatch(session):
            self._unread.pop(session, None)
            query = b"session_hash=" + session.encode()
        headers = [(name, value) for name, value in scope["headers"] if not name.startswith(self._untrusted)]
        return {**scope, "query_string": query, "headers": headers}

    async def _join(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an event on, as far as it is one of the page's."""
        event = self._event(await Request(scope, receive).body())
        await self._keep_place(event.session_hash)
        body = orjson.dumps(_as_gradio_reads(event))
        plain = self._plain(scope, _JOIN)
        kept = [pair for pair in plain["headers"] if not pair[0].startswith((b"content-", b"transfer-"))]
        length = str(len(body)).encode()
        plain["headers"] = [*kept, (b"content-type", b"application/json"), (b"content-length", length)]
        await self._app(plain, _replayed(body, receive), send)

    def _event(self, body: bytes) -> _Event:
        try:
            event = _Event.model_validate_json(body)
        except ValidationError:
            raise BadRequestError("This is no event of the page.") from None
        function = self._blocks.fns.get(event.fn_index)
        if function is None or len(function.inputs) != len(event.data):
            raise BadRequestError("The page has no such event.")
        for given, component in zip(event.data, function.inputs, strict=True):
            is_file = isinstance(given, _Upload)
            if given is not None and is_file != isinstance(component, gr.Audio):
                raise BadRequestError("This event takes another kind of value.")
            if isinstance(given, _Upload) and not is_upload(self._folder, given.path, may_be_gone=True):
                raise BadRequestError("An event is about an upload, and this is none.")
        return event

    async def _keep_place(self, session: str) -> None:
        """Forget answers that no page fetches; raises `BusyError` if too many are waiting already.

        Each is half a megabyte, and Gradio keeps those of 2,000 sessions.
        """
        queue, now = self._blocks._queue, time.monotonic()
        for old in [each for each, since in self._unread.items() if now - since > _UNREAD_SECONDS]:
            del self._unread[old]
            await queue.clean_events(session_hash=old)
            queue.pending_messages_per_session.pop(old, None)
            queue.pending_event_ids_session.pop(old, None)
        if len(queue.pending_event_ids_session.get(session, ())) >= _MAX_UNREAD_EVENTS:
            raise BusyError("This page has events that are not answered yet.")
        if session not in self._unread:
            if len(self._unread) >= _MAX_UNREAD_SESSIONS:
                raise BusyError("Too many pages wait for an answer.")
            self._unread[session] = now


def _is_readable(path: str) -> bool:
    return path in _READ or (bool(_READ_FOLDERS.fullmatch(path)) and ".." not in path)


def _as_gradio_reads(event: _Event) -> dict[str, Any]:
    meta = {"meta": {"_type": "gradio.FileData"}}
    data = [each.model_dump() | meta if isinstance(each, _Upload) else each for each in event.data]
    return event.model_dump() | {"data": data}


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives this body first."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message

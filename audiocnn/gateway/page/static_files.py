"""The routes of the page: files of this folder, and the example sounds.

The files are read once, when the application is created. They are sent with an ETag, so that a browser asks
for each of them again at every load and gets 304 as long as it has not changed. Addresses inside the files
are relative: the page also works under a path prefix of a reverse proxy.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route

from audiocnn.gateway.errors import NotFoundError

FOLDER = "/page"
EXAMPLES = Path("samples")  # of the folder in which the gateway is started

_HERE = Path(__file__).parent
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/manifest+json",
    ".svg": "image/svg+xml",
}
_METHODS = ["GET", "HEAD"]


class StaticFile:
    """One file of the page, in memory."""

    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        self.media_type = _MEDIA_TYPES[path.suffix]
        self.etag = f'"{hashlib.sha256(self.content).hexdigest()[:20]}"'

    def response(self, request: Request) -> Response:
        """The file, or 304 if the browser has it already."""
        headers = {"ETag": self.etag, "Cache-Control": "no-cache"}  # keep it, but ask before use
        known = [
            tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")
        ]
        if self.etag in known:
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def examples_in(folder: Path, class_names: list[str]) -> list[str]:
    """Names of the classes that the folder has a sound of, `NAME.wav`."""
    stems = {path.stem for path in folder.glob("*.wav")}
    return [name for name in sorted(class_names) if name in stems]


def _example(folder: Path, name: str) -> Path | None:
    return next((path for path in folder.glob("*.wav") if path.stem == name), None)


def add_page(app: FastAPI, examples: Path = EXAMPLES) -> None:
    """Serve the page at `/`, its files in `/page/`, examples in `/examples/`; `/ui` leads to it."""
    files = {path.name: StaticFile(path) for path in _HERE.iterdir() if path.suffix in _MEDIA_TYPES}

    async def index(request: Request) -> Response:
        return files["index.html"].response(request)

    async def icon(request: Request) -> Response:
        return files["icon.svg"].response(request)

    async def page_file(request: Request) -> Response:
        if file := files.get(request.path_params["name"]):
            return file.response(request)
        raise NotFoundError("The page has no such file.")

    async def example(request: Request) -> Response:
        if path := _example(examples, request.path_params["name"]):
            return FileResponse(path, media_type="audio/wav", headers={"Cache-Control": "no-cache"})
        raise NotFoundError("There is no such example.")

    async def moved(request: Request) -> Response:
        return RedirectResponse("../" if request.url.path.endswith("/") else "./")

    for address, endpoint in (
        ("/", index),
        ("/favicon.ico", icon),
        ("/ui", moved),
        ("/ui/", moved),
        (f"{FOLDER}/{{name}}", page_file),
        ("/examples/{name}.wav", example),  # the operator's files: need a key, as all that is no file of ours
    ):
        app.router.routes.append(Route(address, endpoint, methods=_METHODS, include_in_schema=False))

"""Attacks by a real Chromium page of another origin, on the gateway as it comes."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Download, Error, Page, Playwright

from tests.helpers.browser import chromium
from tests.helpers.gateways import RunningGateway, running_gateway

NOBODY = "http://127.0.0.1:1"
REBOUND = "rebound.example"  # a name of the attacker's, which points at the gateway by now


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture(scope="module")
def gateway(folder: Path) -> Iterator[RunningGateway]:
    with running_gateway(folder, NOBODY, tmpdir=folder, deadline_seconds=1) as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    with chromium(playwright, f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1") as running:
        yield running


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def evil(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """A page on another port of this machine, which is another origin."""
    (tmp_path / "index.html").write_text("<!doctype html><title>evil</title>")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    page = browser.new_page()
    try:
        page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
        yield page
    finally:
        page.close()
        server.shutdown()
        server.server_close()
        thread.join()


# Each request is sent as a page may send it without asking first; what came back, or why not.
ASK = """async ([url, options]) => {
    try {
        const reply = await fetch(url, options);
        const text = reply.type == "opaque" ? "" : await reply.text();
        return {type: reply.type, status: reply.status, text};
    } catch (error) {
        return {type: "error", status: 0, text: String(error)};
    }
}"""


STREAM = """url => new Promise(resolve => {
    const stream = new WebSocket(url);
    stream.onopen = () => resolve("open");
    stream.onerror = () => resolve("refused");
})"""


def ask(page: Page, url: str, **options: Any) -> dict[str, Any]:
    reply: dict[str, Any] = page.evaluate(ASK, [url, options])
    return reply


def test_a_page_of_another_origin_has_no_file_read(evil: Page, gateway: RunningGateway, folder: Path) -> None:
    """`text/plain` needs no preflight; Gradio parses it as JSON all the same."""
    event = '{"data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}], "fn_index": 5,'
    event += '"session_hash": "evil"}'
    seen = []
    evil.on("response", lambda reply: seen.append((reply.status, reply.url)))
    url = f"{gateway.url}/ui/gradio_api/queue/join"
    for mode in ("no-cors", "cors"):
        ask(evil, url, method="POST", mode=mode, body=event, headers={"Content-Type": "text/plain"})
    assert [status for status, where in seen if where == url] == [
        403
    ]  # of the second, the browser says nothing
    assert not [file for file in folder.glob("audiocnn-ui-*/**/*") if file.name == "passwd"]
    for path in ("/labels", "/ui/", "/openapi.json", "/ui/gradio_api/file=/etc/passwd"):
        assert ask(evil, gateway.url + path)["type"] == "error"  # not to be read
    assert evil.evaluate(STREAM, gateway.stream) == "refused"


def test_a_link_runs_no_script_in_our_origin(browser: Browser, evil: Page, gateway: RunningGateway) -> None:
    """A page opens what an attacker uploaded, or an address of the attacker's, under our name."""
    script = b"<script>document.title = 'taken'</script>"
    uploaded = gateway.post("/ui/gradio_api/upload", files={"files": ("x.html", script)}).json()[0]
    assert gateway.get(f"/ui/gradio_api/file={uploaded}").content == script
    for target, is_saved in ((uploaded, True), (evil.url, False)):
        page = browser.new_page()
        saved: list[Download] = []
        page.on("download", lambda download, saved=saved: saved.append(download))
        with contextlib.suppress(Error):  # what is saved is no page
            page.goto(f"{gateway.url}/ui/gradio_api/file={target}", wait_until="load")
        assert page.title() not in ("taken", "evil")
        assert bool(saved) == is_saved
        page.close()


def test_a_rebound_name_reads_nothing(browser: Browser, gateway: RunningGateway) -> None:
    """The page's own name points at the gateway: one origin, so no rule of browsers stops it."""
    page = browser.new_page()
    origin = f"http://{REBOUND}:{gateway.port}"
    reply = page.goto(origin + "/ui/")
    assert reply is not None
    assert reply.status == 421
    for path in ("/labels", "/ui/", "/metrics", "/health"):
        answer = ask(page, origin + path)
        assert answer["status"] == 421
        assert "misdirected_request" in answer["text"]
    assert ask(page, origin + "/ui/gradio_api/queue/join", method="POST", body="{}")["status"] == 421
    assert page.evaluate(STREAM, f"ws://{REBOUND}:{gateway.port}/ws/predict") == "refused"
    page.close()
    assert browser.new_page().goto(f"http://localhost:{gateway.port}/ui/").status == 200  # type: ignore[union-attr]

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
from playwright.sync_api import Browser, Error, Page, Playwright

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


def test_a_page_of_another_origin_reads_and_asks_nothing(evil: Page, gateway: RunningGateway) -> None:
    """A body without a type, `text/plain` or a form needs no preflight, so it arrives."""
    seen = []
    evil.on("response", lambda reply: seen.append((reply.status, reply.url)))
    url = f"{gateway.url}/predict"
    for kind in ("text/plain", "multipart/form-data; boundary=b"):
        ask(evil, url, method="POST", mode="no-cors", body="RIFF", headers={"Content-Type": kind})
    assert ask(evil, url, method="POST", body="RIFF")["type"] == "error"
    assert ask(evil, url, method="PUT", body="RIFF")["type"] == "error"  # its preflight is refused
    assert not [status for status, where in seen if where == url and status not in (400, 403)]
    for path in ("/", "/labels", "/config", "/page/main.js", "/openapi.json", "/examples/rain.wav"):
        assert ask(evil, gateway.url + path)["type"] == "error"  # not to be read
    assert evil.evaluate(STREAM, gateway.stream) == "refused"


def test_the_page_is_in_no_frame(evil: Page, gateway: RunningGateway) -> None:
    """Else a page could lay itself over it and have its buttons pressed: the microphone's."""
    with evil.expect_console_message(lambda message: "frame-ancestors" in message.text):
        evil.evaluate(
            """url => document.body.append(Object.assign(document.createElement("iframe"), {src: url}))""",
            gateway.url + "/",
        )
    frame = next(each for each in evil.frames if each != evil.main_frame)
    assert frame.locator("#listen").count() == 0


def test_a_link_runs_no_script_in_our_origin(browser: Browser, evil: Page, gateway: RunningGateway) -> None:
    """A page sends people to an address of ours with a script in it, and names files of its own."""
    for path in (
        "/#<img src=x onerror=document.title='taken'>",
        "/?<script>document.title='taken'</script>",
        "/<script>document.title='taken'</script>",
        f"/page/{evil.url}",
        f"/ui/gradio_api/file={evil.url}",
        f"/examples/{evil.url}.wav",
    ):
        page = browser.new_page()
        with contextlib.suppress(Error):  # what is saved is no page
            page.goto(gateway.url + path, wait_until="load")
        assert page.title() not in ("taken", "evil")
        page.close()


def test_a_rebound_name_reads_nothing(browser: Browser, gateway: RunningGateway) -> None:
    """The page's own name points at the gateway: one origin, so no rule of browsers stops it."""
    page = browser.new_page()
    origin = f"http://{REBOUND}:{gateway.port}"
    reply = page.goto(origin + "/")
    assert reply is not None
    assert reply.status == 421
    for path in ("/labels", "/page/main.js", "/metrics", "/health"):
        answer = ask(page, origin + path)
        assert answer["status"] == 421
        assert "misdirected_request" in answer["text"]
    assert ask(page, origin + "/predict", method="POST", body="{}")["status"] == 421
    assert page.evaluate(STREAM, f"ws://{REBOUND}:{gateway.port}/ws/predict") == "refused"
    page.close()
    assert browser.new_page().goto(f"http://localhost:{gateway.port}/").status == 200  # type: ignore[union-attr]

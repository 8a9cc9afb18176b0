"""The page in a real Chromium: a file, the microphone, live, errors, a phone, the dark, keys."""

from __future__ import annotations

import base64
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Browser, Locator, Page, Playwright, expect
from starlette.websockets import WebSocket

from audiocnn.audio import synthetic
from audiocnn.audio.decoder import decode
from audiocnn.client.client import Client
from audiocnn.datasets import LabelledClip
from audiocnn.gateway.auth import AccessMiddleware
from audiocnn.gateway.page import mount
from audiocnn.gateway.service import PredictionService
from audiocnn.gateway.settings import Settings
from tests.helpers.browser import chromium
from tests.helpers.gateways import KEY
from tests.helpers.ports import free_ports
from tests.helpers.servers import Server
from tests.helpers.sounds import sound_file, tone
from tests.helpers.waiting import wait_until

# Gradio's queue asks pandas 3 for what that does anyway; nothing of ours is in it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]


FAKE_MICROPHONE = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
ANSWERED = "#headline .card:is(.known, .unknown, .silent, .error)"
WAIT_MS = 120_000


def page_app(settings: Settings, samples_folder: Path) -> FastAPI:
    """The page with all that it needs, and nothing else."""
    gateway = PredictionService(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(AccessMiddleware, door=gateway.door, metrics=gateway.metrics)

    @app.websocket("/ws/predict")
    async def stream(socket: WebSocket) -> None:
        await gateway.streams.serve(socket)

    mount(app, gateway.predict, gateway.door, gateway.budget, settings, samples_folder)
    return app


@contextlib.contextmanager
def served(server: Server, samples_folder: Path, **settings: object) -> Iterator[str]:
    """The page's address."""
    (port,) = free_ports(1)
    chosen = Settings(torchserve_url=server.inference, gateway_port=port, **settings)  # type: ignore[arg-type]
    app = page_app(chosen, samples_folder)
    running = uvicorn.Server(
        uvicorn.Config(
            app, port=port, log_level="warning", ws="websockets-sansio", timeout_graceful_shutdown=1
        )
    )
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        assert wait_until(lambda: running.started, 30)
        yield f"http://127.0.0.1:{port}/ui/"
    finally:
        running.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def samples_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    for name in synthetic.SOUNDS:
        (folder / f"{name}.wav").write_bytes(synthetic.wav(name))
    return folder


@pytest.fixture(scope="module")
def url(server: Server, samples_folder: Path) -> Iterator[str]:
    with served(server, samples_folder) as address:
        yield address


@pytest.fixture(scope="module")
def clip(server: Server, fold4: list[LabelledClip]) -> LabelledClip:
    """A real clip that the model names rightly and surely: what is shown is tested, not the model."""
    with Client(server.inference) as client:
        for each in fold4:
            best = client.predict(each.path)["predictions"][0]
            if best["class"] == each.label and best["confidence"] > 0.9:
                return each
    pytest.fail("the model is sure of nothing")


@dataclass
class Watched:
    """A page, and what must stay empty: errors in its console, requests to elsewhere, failed replies."""

    page: Page
    problems: list[str]

    def give(self, file: Path | str) -> None:
        """Choose a file, and wait for the answer."""
        self.page.locator("#sound input[type=file]").set_input_files(file)
        self.page.wait_for_selector(ANSWERED, timeout=WAIT_MS)

    @property
    def title(self) -> str:
        return self.page.inner_text("#headline h2").lower()


def watch(page: Page, address: str) -> Watched:
    problems: list[str] = []
    here = address.removesuffix("/ui/")
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("response", lambda r: problems.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.on(
        "request",
        lambda r: (
            None
            if r.url.startswith((here, here.replace("http", "ws"), "data:", "blob:"))
            else problems.append(r.url)
        ),
    )
    page.goto(address)
    page.wait_for_selector("#headline .card", timeout=WAIT_MS)
    page.wait_for_selector("#sound input[type=file]", state="attached")
    return Watched(page, problems)


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    with chromium(playwright) as running:
        yield running


@pytest.fixture
def watched(browser: Browser, url: str) -> Iterator[Watched]:
    page = browser.new_page(viewport=DESKTOP)  # type: ignore[arg-type]
    seen = watch(page, url)
    yield seen
    page.close()
    assert seen.problems == []


class TestAFile:
    def test_an_upload_shows_everything(self, watched: Watched, clip: LabelledClip) -> None:
        watched.give(clip.path)
        page = watched.page
        assert watched.title == clip.label.replace("_", " ")
        assert page.inner_text("#headline .sure").endswith("%")
        assert page.locator("#headline .bars li").count() == 5
        assert page.locator("#classes li").count() == 50
        assert page.locator("#wave svg polygon").count() == 1
        for label in ("100", "1k", "16k"):
            expect(page.locator("#mel .plot > .ticks.y span", has_text=label).first).to_be_visible()
        assert page.locator("#mel .ticks.x span").all_inner_texts() == ["0", "1", "2", "3", "4", "5"]
        assert page.locator("#mel .scale .ticks span").count() == 3
        assert width_of(page.locator("#mel img.tile").first) in (250, 251)  # 85 % of the clips end at 5.00 s
        assert page.locator("#mel img.overlay").count() == 1
        assert page.locator("#timeline h3").count() == 0

    def test_main_layers_first_and_blocks_on_demand(self, watched: Watched, clip: LabelledClip) -> None:
        watched.give(clip.path)
        main = watched.page.locator("#maps .maps.main figure")
        assert [each.get_attribute("data-layer") for each in main.all()] == [
            "conv1",
            *(f"layer{n}" for n in range(1, 5)),
        ]
        block = watched.page.locator("[data-layer='layer2.block0.relu']")
        expect(block).to_be_hidden()
        watched.page.locator("#maps details[data-stage=layer2] summary").click()
        expect(block).to_be_visible()
        assert width_of(block.locator("img")) == 32
        assert watched.page.locator("#maps .map-row .scale .ticks").inner_text().split() == ["−1", "0", "+1"]

    def test_the_overlay_of_any_class(self, watched: Watched, clip: LabelledClip) -> None:
        watched.give(clip.path)
        page = watched.page
        before = page.locator("#mel img.overlay").get_attribute("src")
        pick(page, "rain" if clip.label != "rain" else "wind")
        expect(page.locator("#mel .legend b")).to_contain_text("rain" if clip.label != "rain" else "wind")
        assert page.locator("#mel img.overlay").get_attribute("src") != before
        page.locator(".overlay-switch").uncheck()
        expect(page.locator("#mel img.overlay")).to_be_hidden()

    def test_drag_and_drop(self, watched: Watched, clip: LabelledClip) -> None:
        data = base64.b64encode(clip.path.read_bytes()).decode()
        transfer = watched.page.evaluate_handle(
            """async data => {
                const transfer = new DataTransfer();
                const bytes = await (await fetch("data:audio/ogg;base64," + data)).arrayBuffer();
                transfer.items.add(new File([bytes], "clip.ogg", {type: "audio/ogg"}));
                return transfer;
            }""",
            data,
        )
        watched.page.locator("#sound button", has_text="Drop Audio Here").dispatch_event(
            "drop", {"dataTransfer": transfer}
        )
        watched.page.wait_for_selector(ANSWERED, timeout=WAIT_MS)
        assert watched.title == clip.label.replace("_", " ")

    def test_an_example(self, watched: Watched) -> None:
        watched.page.locator("#examples button", has_text="siren").click()
        watched.page.wait_for_selector(ANSWERED, timeout=WAIT_MS)
        assert watched.title == "siren"

    def test_clearing_starts_over(self, watched: Watched, clip: LabelledClip) -> None:
        watched.give(clip.path)
        watched.page.locator("#sound button[aria-label=Clear]").click()
        expect(watched.page.locator("#headline .card.idle")).to_be_visible()
        expect(watched.page.locator("#mel img")).to_have_count(0)

    def test_silence_and_the_unknown(self, watched: Watched, tmp_path: Path) -> None:
        (tmp_path / "silence.wav").write_bytes(sound_file(np.zeros(5 * 44_100, np.float32)))
        watched.give(tmp_path / "silence.wav")
        assert watched.title == "silence"
        watched.page.locator("#sound button[aria-label=Clear]").click()
        watched.page.wait_for_selector("#headline .card.idle")
        hiss = 0.1 * np.random.default_rng(0).standard_normal(5 * 44_100)
        (tmp_path / "hiss.wav").write_bytes(sound_file(hiss))
        watched.give(tmp_path / "hiss.wav")
        assert watched.title == "i don't know this sound"

    def test_a_long_sound_has_a_timeline_with_exports(
        self, watched: Watched, clip: LabelledClip, tmp_path: Path
    ) -> None:
        real = decode(clip.path.read_bytes(), sample_rate=44_100).waveform
        long = np.concatenate([real, synthetic.siren(), synthetic.siren(), synthetic.clock_tick()])
        (tmp_path / "long.wav").write_bytes(sound_file(long))
        watched.give(tmp_path / "long.wav")
        page = watched.page
        expect(page.locator("#timeline [data-class=siren]")).to_be_visible()
        assert page.locator("#wave .ticks.x span").last.inner_text() == "20"
        expect(page.locator("#wave .shown")).to_be_visible()
        with page.expect_download() as csv:
            page.locator("#timeline a", has_text="CSV").click()
        lines = csv.value.path().read_text().splitlines()
        assert lines[0] == "start,end,class,confidence"
        assert lines[1].startswith("0.0,5.0,")
        with page.expect_download() as labels:
            page.locator("#timeline a", has_text="Audacity").click()
        rows = [line.split("\t") for line in labels.value.path().read_text().splitlines()]
        assert any(name.startswith("siren") for _, _, name in rows)
        assert [row[0] for row in rows[1:]] == [row[1] for row in rows[:-1]]

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("damaged.flac", b"fLaC" + bytes(range(256)) * 4, "damaged"),
            ("text.wav", b"this is not a sound " * 50, "cannot read"),
            ("empty.wav", sound_file(np.zeros(0, np.float32)), "no sound in it"),
        ],
    )
    def test_friendly_errors(
        self, watched: Watched, tmp_path: Path, name: str, content: bytes, said: str
    ) -> None:
        (tmp_path / name).write_bytes(content)
        watched.give(tmp_path / name)
        expect(watched.page.locator("#headline .card.error h2")).to_contain_text(said)
        expect(watched.page.locator("#mel img")).to_have_count(0)
        # The player cannot play it either, and says so in the console.
        watched.problems[:] = [p for p in watched.problems if "Waveform load error" not in p]

    def test_an_upload_that_is_too_large(
        self, browser: Browser, server: Server, samples_folder: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "large.wav").write_bytes(sound_file(tone(5.0)))
        with served(server, samples_folder, max_upload_mb=0.1) as address:
            page = browser.new_page(viewport=DESKTOP)  # type: ignore[arg-type]
            watch(page, address).page.locator("#sound input[type=file]").set_input_files(
                tmp_path / "large.wav"
            )
            expect(page.get_by_text("exceed the maximum", exact=False).first).to_be_visible(timeout=WAIT_MS)
            page.close()

    def test_what_was_uploaded_is_deleted(
        self, browser: Browser, server: Server, samples_folder: Path, clip: LabelledClip
    ) -> None:
        with served(server, samples_folder) as address:
            uploads = Path(os.environ["GRADIO_TEMP_DIR"])
            before = set(uploads.rglob("*.ogg"))
            page = browser.new_page(viewport=DESKTOP)  # type: ignore[arg-type]
            watch(page, address).give(clip.path)
            page.close()
            uploaded = set(uploads.rglob("*.ogg")) - before
            assert uploaded
        assert not any(path.exists() for path in uploaded)


class TestScreens:
    def test_nothing_scrolls_sideways_on_a_phone(self, browser: Browser, url: str, tmp_path: Path) -> None:
        context = browser.new_context(viewport=PHONE, is_mobile=True, has_touch=True)  # type: ignore[arg-type]
        seen = watch(context.new_page(), url)
        assert sideways(seen.page) <= 0
        (tmp_path / "long.wav").write_bytes(sound_file(np.tile(synthetic.siren(), 4)))
        seen.give(tmp_path / "long.wav")
        assert seen.title == "siren"
        for details in seen.page.locator("#maps details summary").all():
            details.click()
        assert sideways(seen.page) <= 0
        seen.page.get_by_role("tab", name="Live").click()
        assert sideways(seen.page) <= 0
        context.close()
        assert seen.problems == []

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_light_and_dark(self, browser: Browser, url: str, clip: LabelledClip, scheme: str) -> None:
        page = browser.new_page(viewport=DESKTOP, color_scheme=scheme)  # type: ignore[arg-type]
        seen = watch(page, url)
        seen.give(clip.path)
        paper, ink = (
            brightness(page, selector, css)
            for selector, css in (("#headline .card", "backgroundColor"), ("#headline h2", "color"))
        )
        assert (paper > 200 and ink < 80) if scheme == "light" else (paper < 60 and ink > 180)
        page.close()
        assert seen.problems == []


@pytest.fixture(scope="module")
def speaking(
    playwright: Playwright, clip: LabelledClip, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Browser]:
    """Chromium with a microphone that hears the real clip again and again."""
    file = tmp_path_factory.mktemp("microphone") / "clip.wav"
    file.write_bytes(sound_file(decode(clip.path.read_bytes(), sample_rate=44_100).waveform))
    with chromium(playwright, *FAKE_MICROPHONE, f"--use-file-for-fake-audio-capture={file}") as running:
        yield running


class TestTheMicrophone:
    def test_live(self, speaking: Browser, url: str, clip: LabelledClip) -> None:
        page = speaking.new_page(viewport=DESKTOP)  # type: ignore[arg-type]
        seen = watch(page, url)
        page.get_by_role("tab", name="Live").click()
        before = page.evaluate(CANVAS_SUM)
        page.locator(".live .start").click()
        page.wait_for_selector(".live .card.known", timeout=WAIT_MS)
        expect(page.locator(".live h2")).to_have_text(clip.label.replace("_", " "), timeout=WAIT_MS)
        first = answers(page)
        assert wait_until(lambda: answers(page) >= first + 4, 15)
        assert page.evaluate(CANVAS_SUM) > 2 * before
        page.locator(".live .start").click()
        expect(page.locator(".live .card.idle")).to_be_visible()
        stopped = answers(page)
        time.sleep(1.5)
        assert answers(page) == stopped
        page.close()
        assert seen.problems == []

    def test_a_recording(self, speaking: Browser, url: str, clip: LabelledClip) -> None:
        page = speaking.new_page(viewport=DESKTOP)  # type: ignore[arg-type]
        seen = watch(page, url)
        page.locator("#sound button[aria-label='Record audio']").click()
        page.locator("#sound .record-button").click()
        time.sleep(5.5)
        page.locator("#sound .stop-button").click()
        page.wait_for_selector(ANSWERED, timeout=WAIT_MS)
        assert seen.title == clip.label.replace("_", " ")
        page.close()
        assert seen.problems == []

    def test_no_permission(self, browser: Browser, url: str) -> None:
        page = browser.new_page(viewport=DESKTOP)  # type: ignore[arg-type]
        watch(page, url)
        page.get_by_role("tab", name="Live").click()
        page.locator(".live .start").click()
        expect(page.locator(".live .card.error h2")).to_contain_text("microphone", timeout=WAIT_MS)
        page.close()


class TestAKey:
    def test_is_asked_for_once(
        self, browser: Browser, server: Server, samples_folder: Path, clip: LabelledClip
    ) -> None:
        with served(server, samples_folder, api_keys=(KEY,)) as address:
            context = browser.new_context(viewport=DESKTOP)  # type: ignore[arg-type]
            page = context.new_page()
            page.goto(address)
            page.fill("#key", "wrong")
            page.keyboard.press("Enter")
            expect(page.get_by_role("alert")).to_contain_text("not one of the keys")
            page.fill("#key", KEY)
            page.keyboard.press("Enter")
            page.wait_for_selector("#sound input[type=file]", state="attached", timeout=WAIT_MS)
            seen = Watched(page, [])
            seen.give(clip.path)
            assert seen.title == clip.label.replace("_", " ")
            (cookie,) = context.cookies()
            assert cookie["httpOnly"]
            assert cookie["sameSite"] == "Strict"
            context.close()


CANVAS_SUM = """() => {
    const canvas = document.querySelector(".live .inside canvas");
    return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data
        .reduce((sum, each, i) => i % 4 == 3 ? sum : sum + each, 0);
}"""


def answers(page: Page) -> int:
    return int(page.get_attribute(".live", "data-answers") or 0)


def pick(page: Page, name: str) -> None:
    box = page.locator("#picker input")
    box.click()
    box.fill(name)
    page.get_by_role("option", name=name).first.click()


def width_of(image: Locator) -> int:
    return int(image.evaluate("async image => { await image.decode(); return image.naturalWidth; }"))


def sideways(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


def brightness(page: Page, selector: str, css: str) -> float:
    return float(
        page.locator(selector).first.evaluate(
            """(element, css) => {
                const pen = new OffscreenCanvas(1, 1).getContext("2d");
                pen.fillStyle = getComputedStyle(element)[css];
                pen.fillRect(0, 0, 1, 1);
                const [r, g, b] = pen.getImageData(0, 0, 1, 1).data;
                return (r + g + b) / 3;
            }""",
            css,
        )
    )

"""The page in a real Chromium: a file, the microphone, live, errors, a phone, the dark, keys."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Playwright, expect

from audiocnn.audio import synthetic
from audiocnn.audio.decoder import decode
from audiocnn.client.client import Client
from audiocnn.datasets import LabelledClip
from audiocnn.model.engine import CONFIG_KEY
from tests.helpers.browser import (
    DONE,
    FAKE_MICROPHONE,
    PHONE,
    Watched,
    chromium,
    watch,
    watching,
)
from tests.helpers.gateways import KEY, RunningGateway, running_gateway
from tests.helpers.paths import ROOT, STORE
from tests.helpers.prefix_proxy import prefix_proxy
from tests.helpers.rollouts import repack
from tests.helpers.servers import Server, running_server, server_settings
from tests.helpers.sounds import sound_file, tone
from tests.helpers.waiting import wait_until

EVIL = "<img src=x onerror=document.title='taken'>"


@pytest.fixture(scope="module")
def url(gateway: RunningGateway) -> str:
    return f"{gateway.url}/"


@pytest.fixture(scope="module")
def clip(server: Server, fold4: list[LabelledClip]) -> LabelledClip:
    """A real clip that the model names rightly and surely: what is shown is tested, not the model."""
    with Client(server.inference) as client:
        for each in fold4:
            best = client.predict(each.path)["predictions"][0]
            if best["class"] == each.label and best["confidence"] > 0.9:
                return each
    pytest.fail("the model is sure of nothing")


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    with chromium(playwright) as running:
        yield running


@pytest.fixture
def watched(browser: Browser, url: str) -> Iterator[Watched]:
    with watching(browser, url) as seen:
        yield seen


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An alarm for ten seconds, then five of a clock."""
    path = tmp_path_factory.mktemp("long") / "long.wav"
    path.write_bytes(
        sound_file(np.concatenate([synthetic.clock_alarm(), synthetic.clock_alarm(), synthetic.clock_tick()]))
    )
    return path


def spoken(name: str) -> str:
    return name.replace("_", " ")


class TestAFile:
    def test_an_upload_shows_everything(self, watched: Watched, clip: LabelledClip) -> None:
        watched.give(clip.path)
        page = watched.page
        assert watched.title == spoken(clip.label)
        assert page.inner_text("#answer .sure").endswith("%")
        assert page.locator("#answer .bars li").count() == 5
        assert page.locator("#classes li").count() == 50
        assert spread(page.locator("#wave canvas")) > 0
        for label in ("100", "1k", "16k"):
            expect(page.locator("#mel .plot > .ticks.y").get_by_text(label, exact=True)).to_be_visible()
        assert page.locator("#mel .ticks.x span").all_inner_texts() == ["0", "1", "2", "3", "4", "5"]
        assert page.locator("#mel .scale .ticks span").count() == 3
        assert size(page.locator("#mel .tile"))[0] in (250, 251)  # 85 % of the clips end at 5.00 s
        assert spread(page.locator("#mel .tile")) > 10
        assert spread(page.locator("#mel .overlay")) > 10
        expect(page.locator("#timeline")).to_be_hidden()

    def test_the_confidence_is_the_one_that_curl_gets(
        self, watched: Watched, clip: LabelledClip, gateway: RunningGateway
    ) -> None:
        watched.give(clip.path)
        alone = gateway.post("/predict", content=clip.path.read_bytes()).json()["predictions"]
        saved = json.loads(download(watched.page, "#save-json"))
        assert saved["predictions"][:5] == alone
        expect(watched.page.locator("#answer .note")).to_contain_text("pictures in float32")

    def test_main_layers_first_and_blocks_on_demand(self, watched: Watched, clip: LabelledClip) -> None:
        watched.give(clip.path)
        main = watched.page.locator("#maps .maps.main figure")
        assert [each.get_attribute("data-layer") for each in main.all()] == [
            "conv1",
            *(f"layer{n}" for n in range(1, 5)),
        ]
        block = watched.page.locator("[data-layer='layer2.block0.relu']")
        expect(block).to_be_hidden()
        watched.page.click("#maps details[data-stage=layer2] summary")
        expect(block).to_be_visible()
        assert wait_until(lambda: size(block.locator("canvas"))[0] == 32, 5)
        assert spread(block.locator("canvas")) > 5
        scale = watched.page.locator("#maps .map-row .scale .ticks span")
        assert scale.all_inner_texts() == ["−1", "0", "+1"]

    def test_zero_is_white_and_signs_have_their_colours(self, watched: Watched) -> None:
        grey = io.BytesIO()
        Image.fromarray(np.array([[0, 85, 255]], np.uint8)).save(grey, format="PNG")
        item = {"shape": [1, 3], "range": [-1.0, 2.0], "png": base64.b64encode(grey.getvalue()).decode()}
        watched.page.evaluate(
            "item => import(new URL('page/maps.js', location)).then(maps => maps.showMaps({conv1: item}))",
            item,
        )
        minus, zero, plus = pixels(watched.page.locator("[data-layer=conv1] canvas"))[0].astype(int)
        assert zero[:3].min() > 250
        assert minus[2] > minus[0]
        assert plus[:3].tolist() == [230, 97, 1]

    def test_the_overlay_of_any_class(self, watched: Watched, clip: LabelledClip) -> None:
        watched.give(clip.path)
        page, overlay = watched.page, watched.page.locator("#mel .overlay")
        assert overlay.get_attribute("data-class") == clip.label
        before = pixels(overlay)
        other = "rain" if clip.label != "rain" else "wind"
        page.select_option("#picker", other)
        expect(overlay).to_have_attribute("data-class", other)
        assert not np.array_equal(pixels(overlay), before)
        page.uncheck("#overlay")
        expect(overlay).to_be_hidden()

    def test_files_are_dropped_anywhere_at_any_time(self, watched: Watched, clip: LabelledClip) -> None:
        drop(watched.page, "body", "clip.ogg", clip.path.read_bytes())
        watched.wait()
        assert watched.title == spoken(clip.label)
        drop(watched.page, "#maps", "rain.wav", synthetic.wav("rain"))  # on what the first one left
        drop(watched.page, "h1", "siren.wav", synthetic.wav("siren"))  # while the second is under way
        expect(watched.page.locator("#answer h2")).to_have_text("siren")
        watched.page.click("#tab-live")
        drop(watched.page, "#panel-live", "rain.wav", synthetic.wav("rain"))
        expect(watched.page.locator("#answer h2")).to_have_text("rain")
        expect(watched.page.locator("#file-name")).to_have_text("rain.wav")

    def test_an_example(self, watched: Watched) -> None:
        buttons = watched.page.locator("#examples button")
        expect(buttons).to_have_count(5)
        buttons.filter(has_text="siren").click()
        watched.wait()
        assert watched.title == "siren"

    @pytest.mark.parametrize(
        ("level", "title"), [(0.0, "silence"), (0.1, "i don't know this sound")], ids=["silence", "unknown"]
    )
    def test_silence_and_the_unknown_have_no_list_of_classes(
        self, watched: Watched, tmp_path: Path, level: float, title: str
    ) -> None:
        noise = level * np.random.default_rng(0).standard_normal(5 * 44_100)
        (tmp_path / "noise.wav").write_bytes(sound_file(noise))
        watched.give(tmp_path / "noise.wav")
        assert watched.title == title
        assert watched.page.locator(".bars li:visible").count() == 0
        expect(watched.page.locator("#mel .tile")).to_be_visible()
        expect(watched.page.locator("#legend")).to_be_visible(visible=bool(level))
        expect(watched.page.locator("#maps")).to_be_visible(visible=bool(level))

    @pytest.mark.parametrize(
        ("name", "content", "status", "said"),
        [
            ("damaged.flac", b"fLaC" + bytes(range(256)) * 4, 400, "damaged"),
            ("text.wav", b"this is not a sound " * 50, 415, "no sound that I can read"),
            ("notes.txt", b"this is not a sound " * 50, 415, "no sound that I can read"),
            ("empty.wav", sound_file(np.zeros(0, np.float32)), 400, "no sound in it"),
        ],
    )
    def test_friendly_errors(
        self, watched: Watched, tmp_path: Path, name: str, content: bytes, status: int, said: str
    ) -> None:
        """One message, and nothing that belongs to the sound before."""
        (tmp_path / name).write_bytes(content)
        watched.page.locator("#examples button").first.click()
        watched.wait()
        watched.give(tmp_path / name)
        expect(watched.page.locator("#answer.error h2")).to_contain_text(said)
        assert watched.page.locator(".error:visible").count() == 1
        for section in ("#wave", "#mel", "#classes", "#maps", "#keep", "#timeline"):
            expect(watched.page.locator(section)).to_be_hidden()
        watched.expect_failure(status)

    def test_an_upload_that_is_too_large(self, browser: Browser, server: Server, tmp_path: Path) -> None:
        (tmp_path / "large.wav").write_bytes(sound_file(tone(5.0)))
        with (
            running_gateway(tmp_path, server.inference, max_upload_mb=0.1) as gateway,
            watching(browser, f"{gateway.url}/") as seen,
        ):
            expect(seen.page.locator("#model")).to_contain_text("classes")
            seen.give(tmp_path / "large.wav")
            assert "too large" in seen.title

    def test_a_model_that_starts_later(self, browser: Browser, server: Server, tmp_path: Path) -> None:
        """The page says so, and goes on by itself when there is one."""
        with running_gateway(tmp_path, "http://127.0.0.1:1", deadline_seconds=0.5) as gateway:
            page = browser.new_page()
            page.goto(gateway.url)
            expect(page.locator("#model")).to_have_text("The model does not answer")
            port = gateway.port
        expect(page.locator("#model")).to_have_text("The connection was lost")
        with running_gateway(tmp_path, server.inference, gateway_port=port):
            expect(page.locator("#model")).to_contain_text("50 classes")
            page.set_input_files("#file", ROOT / "samples" / "rain.wav")
            expect(page.locator("#answer h2")).to_have_text("rain")
            page.close()


class TestALongSound:
    def test_it_has_a_timeline_of_events_with_exports(
        self, watched: Watched, long_file: Path, gateway: RunningGateway
    ) -> None:
        watched.give(long_file)
        page = watched.page
        expect(page.locator("#timeline [data-class=clock_alarm]")).to_be_visible()
        assert page.locator("#wave .ticks.x span").last.inner_text() == "15"
        expect(page.locator("#wave .shown")).to_be_visible()
        content = long_file.read_bytes()
        events = gateway.post("/predict?detections=true", content=content).json()["detections"]
        lines = list(csv.DictReader(io.StringIO(download(page, "#save-csv").decode())))
        numbers = ("start", "end", "peak_confidence", "mean_confidence")
        assert [line | {name: float(line[name]) for name in numbers} for line in lines] == events
        rows = [line.split("\t") for line in download(page, "#save-audacity").decode().splitlines()]
        assert [(float(row[0]), float(row[1])) for row in rows] == [
            (event["start"], event["end"]) for event in events
        ]
        assert rows[0][2].startswith("clock alarm ")
        assert json.loads(download(page, "#save-json"))["detections"] == events

    def test_the_threshold_of_each_class_is_shown(
        self, watched: Watched, long_file: Path, gateway: RunningGateway
    ) -> None:
        watched.give(long_file)
        alarm = gateway.get("/config").json()["thresholds"]["clock_alarm"]
        shown = watched.page.locator("#timeline [data-class=clock_alarm] .threshold")
        expect(shown).to_have_text(f"≥ {100 * alarm['on']:.0f} %")
        expect(shown).to_have_attribute(
            "title", re.compile(f"{100 * alarm['precision']:.0f} % of such events")
        )

    def test_without_an_event_it_says_so(self, watched: Watched, tmp_path: Path) -> None:
        noise = 0.1 * np.random.default_rng(0).standard_normal(9 * 44_100)
        (tmp_path / "noise.wav").write_bytes(sound_file(noise))
        watched.give(tmp_path / "noise.wav")
        expect(watched.page.locator("#timeline .note")).to_contain_text("Nothing reached the confidence")
        expect(watched.page.locator("#save-csv")).to_be_hidden()

    def test_an_event_is_heard_and_its_window_drawn(self, watched: Watched, long_file: Path) -> None:
        watched.give(long_file)
        page = watched.page
        before = pixels(page.locator("#mel .tile"))
        piece = page.locator("#timeline [data-class=clock_tick] .piece").last
        start = float(re.findall(r"([\d.]+) to", piece.get_attribute("title") or "")[0])
        piece.click()
        expect(page.locator("#play")).to_have_attribute("aria-label", "Pause")
        expect(page.locator("#mel .overlay")).to_have_attribute("data-class", "clock_tick")
        assert position(page) >= start - 0.06
        assert not np.array_equal(pixels(page.locator("#mel .tile")), before)
        assert wait_until(lambda: page.get_attribute("#play", "aria-label") == "Play", 8)  # at its end

    def test_windows_are_stepped_through(self, watched: Watched, long_file: Path) -> None:
        watched.give(long_file)
        page, label = watched.page, watched.page.locator("#window .numbers")
        while page.locator("#window-before").is_enabled():
            shown = label.inner_text()
            page.click("#window-before")
            expect(label).not_to_have_text(shown)
        assert label.inner_text() == "0.0 to 5.0 s"
        page.click("#window-after")
        expect(label).to_have_text("2.5 to 7.5 s")
        assert page.locator("#mel .ticks.x span").all_inner_texts() == ["3", "4", "5", "6", "7"]


class TestPlayback:
    def test_a_cursor_moves_over_waveform_and_spectrogram(self, watched: Watched) -> None:
        watched.give(ROOT / "samples" / "siren.wav")
        page = watched.page
        page.click("#play")
        assert wait_until(lambda: position(page) > 0.3, 5)
        for plot in ("#wave", "#mel"):
            expect(page.locator(f"{plot} .cursor")).to_be_visible()
        page.click("#play")
        expect(page.locator("#play")).to_have_attribute("aria-label", "Play")

    @pytest.mark.parametrize("plot", ["#wave .inside", "#mel .inside"])
    def test_a_click_seeks(self, watched: Watched, plot: str) -> None:
        watched.give(ROOT / "samples" / "siren.wav")
        box = watched.page.locator(plot).bounding_box()
        assert box
        watched.page.locator(plot).click(position={"x": 0.6 * box["width"], "y": 20})
        assert position(watched.page) == pytest.approx(3.0, abs=0.05)

    def test_keys_seek_and_play(self, watched: Watched) -> None:
        watched.give(ROOT / "samples" / "siren.wav")
        page = watched.page
        page.focus("#position")
        page.keyboard.press("End")
        assert position(page) == pytest.approx(5.0, abs=0.01)
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        assert position(page) == pytest.approx(0.25, abs=0.01)
        page.keyboard.press("Space")
        expect(page.locator("#play")).to_have_attribute("aria-label", "Pause")


class TestSavingAndRepeating:
    def test_the_spectrogram_is_saved_with_its_axes(self, watched: Watched) -> None:
        watched.give(ROOT / "samples" / "siren.wav")
        picture = Image.open(io.BytesIO(download(watched.page, "#save-png"))).convert("RGB")
        assert picture.size == (1200, 560)
        corner = np.asarray(picture)[-60:, :]
        assert corner.min() < 100 < corner.max()  # ink of the axis on white

    def test_curl_repeats_the_answer(self, watched: Watched, tmp_path: Path, gateway: RunningGateway) -> None:
        """Whatever the file is called: the line runs nothing else and finds the file."""
        name = "it's {a,b} [1-2] $(touch taken) `touch taken`; 100%.wav"
        shutil.copy(ROOT / "samples" / "siren.wav", tmp_path / name)
        watched.give(tmp_path / name)
        line = watched.page.inner_text("#curl")
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, capture_output=True, check=True, env={"no_proxy": "*"}
        )
        assert json.loads(done.stdout)["predictions"][0]["class"] == "siren"
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_the_line_is_copied(self, browser: Browser, url: str) -> None:
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
        with watching(context, url) as seen:
            seen.give(ROOT / "samples" / "rain.wav")
            seen.page.click("#copy")
            expect(seen.page.locator("#copy")).to_have_text("Copied")
            copied = seen.page.evaluate("navigator.clipboard.readText()")
            assert copied == seen.page.inner_text("#curl")
            assert copied.startswith("curl ")
        context.close()


class TestNamesAreText:
    def test_of_a_file(self, watched: Watched, tmp_path: Path) -> None:
        (tmp_path / f"{EVIL}.wav").write_bytes(synthetic.wav("rain"))
        watched.give(tmp_path / f"{EVIL}.wav")
        expect(watched.page.locator("#file-name")).to_have_text(f"{EVIL}.wav")
        assert_nothing_ran(watched.page)

    def test_of_a_class(
        self, browser: Browser, tmp_path: Path, long_file: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """A model whose class is called so, served as any other."""
        store = tmp_path / "store"
        store.mkdir()
        repack(store / "audiocnn.mar", "1.0", with_class("clock_alarm", EVIL))
        settings = server_settings(minWorkers=1) | {"model_store": str(store)}
        with (
            running_server(tmp_path_factory.mktemp("logs"), settings) as server,
            running_gateway(tmp_path, server.inference) as gateway,
            watching(browser, f"{gateway.url}/") as seen,
        ):
            expect(seen.page.locator("#examples button")).to_have_count(4)  # none of an alarm
            seen.give(long_file)
            assert EVIL in seen.page.inner_text("#timeline")
            seen.give(ROOT / "samples" / "clock_alarm.wav")
            assert seen.title == EVIL
            assert EVIL in seen.page.inner_text("#classes")
            assert EVIL in seen.page.inner_text("#picker")
            assert EVIL in download(seen.page, "#save-json").decode()
            assert_nothing_ran(seen.page)


class TestAModelFromElsewhere:
    def test_what_it_cannot_give_is_not_shown(
        self, browser: Browser, tmp_path: Path, long_file: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """A waveform model, as `audiocnn teach` makes them too: no evidence, no feature maps."""
        store = tmp_path / "store"
        for command in (
            ["export.prebuilt", "--checkpoint", STORE / "audiocnn-waveform.onnx", "--store", store],
            ["export.archive", "--store", store],
        ):
            subprocess.run([sys.executable, "-m", *map(str, command)], cwd=ROOT, check=True)
        settings = server_settings(minWorkers=1) | {"model_store": str(store)}
        with (
            running_server(tmp_path_factory.mktemp("logs"), settings) as server,
            running_gateway(tmp_path, server.inference) as gateway,
            watching(browser, f"{gateway.url}/") as seen,
        ):
            config = gateway.get("/config").json()
            assert config["has_feature_maps"] is False
            assert set(config["thresholds"]) == {
                row["name"] for row in gateway.get("/labels").json()["labels"]
            }
            seen.give(ROOT / "samples" / "rain.wav")
            assert seen.title == "rain"
            assert spread(seen.page.locator("#mel .tile")) > 10
            for part in ("#maps", "#legend", "#mel .overlay"):
                expect(seen.page.locator(part)).to_be_hidden()
            seen.give(long_file)
            seen.page.locator("#timeline [data-class=clock_alarm] .piece").first.click()
            expect(seen.page.locator("#play")).to_have_attribute("aria-label", "Pause")
            seen.check_accessibility()


class TestScreens:
    def test_a_phone(self, browser: Browser, url: str, long_file: Path) -> None:
        """Nothing scrolls sideways, and the answer is seen without scrolling."""
        context = browser.new_context(viewport=PHONE, is_mobile=True, has_touch=True)  # type: ignore[arg-type]
        with watching(context, url) as seen:
            assert sideways(seen.page) <= 0
            seen.give(ROOT / "samples" / "church_bells.wav")
            for part in ("#answer h2", "#answer .sure", "#answer .bars li:last-child"):
                expect(seen.page.locator(part)).to_be_in_viewport(ratio=1)
            seen.give(long_file)
            for details in seen.page.locator("#maps details summary").all():
                details.click()
            assert sideways(seen.page) <= 0
            seen.page.click("#tab-live")
            assert sideways(seen.page) <= 0
        context.close()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_light_and_dark(self, browser: Browser, url: str, scheme: str) -> None:
        with watching(browser, url, color_scheme=scheme) as seen:
            seen.give(ROOT / "samples" / "rain.wav")
            paper = brightness(seen.page, "#answer", "backgroundColor")
            ink = brightness(seen.page, "#answer h2", "color")
            assert (paper > 200 and ink < 80) if scheme == "light" else (paper < 60 and ink > 180)

    def test_a_reload_keeps_tab_and_settings(self, watched: Watched) -> None:
        page = watched.page
        watched.give(ROOT / "samples" / "rain.wav")
        page.uncheck("#overlay")
        page.click("#maps details[data-stage=layer2] summary")
        page.click("#tab-live")
        page.reload()
        expect(page.locator("#panel-live")).to_be_visible()
        page.click("#tab-sound")
        watched.give(ROOT / "samples" / "rain.wav")
        expect(page.locator("#mel .overlay")).to_be_hidden()
        expect(page.locator("[data-layer='layer2.block0.relu']")).to_be_visible()
        expect(page.locator("[data-layer='layer3.block0.relu']")).to_be_hidden()

    def test_below_a_path_of_a_proxy(self, browser: Browser, server: Server, tmp_path: Path) -> None:
        (tmp_path / "clip.wav").write_bytes(synthetic.wav("siren"))
        with (
            running_gateway(tmp_path, server.inference, allowed_origins="*") as gateway,
            prefix_proxy(gateway.port) as address,
            watching(browser, address) as seen,
        ):
            seen.page.locator("#examples button").first.click()
            seen.wait()
            seen.give(tmp_path / "clip.wav")
            assert seen.title == "siren"
            assert f"{address}predict" in seen.page.inner_text("#curl")


class TestAccessibility:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_no_rule_is_violated(
        self, browser: Browser, url: str, long_file: Path, tmp_path: Path, scheme: str
    ) -> None:
        (tmp_path / "text.wav").write_bytes(b"no sound")
        with watching(browser, url, color_scheme=scheme) as seen:
            expect(seen.page.locator("#examples button")).to_have_count(5)
            seen.check_accessibility()
            seen.give(ROOT / "samples" / "rain.wav")
            seen.page.click("#maps details[data-stage=layer2] summary")
            seen.check_accessibility()
            seen.give(long_file)
            seen.check_accessibility()
            seen.give(tmp_path / "text.wav")
            seen.expect_failure(415)
            seen.check_accessibility()
            seen.page.click("#tab-live")
            seen.check_accessibility()

    def test_on_a_phone_and_with_the_key_dialog(
        self, browser: Browser, server: Server, tmp_path: Path
    ) -> None:
        context = browser.new_context(viewport=PHONE, is_mobile=True, has_touch=True)  # type: ignore[arg-type]
        with running_gateway(tmp_path, server.inference, api_keys=KEY) as gateway:
            seen = watch(context.new_page(), f"{gateway.url}/")
            expect(seen.page.locator("#key-dialog")).to_be_visible()
            seen.check_accessibility()
            seen.page.fill("#key", KEY)
            seen.page.keyboard.press("Enter")
            seen.give(ROOT / "samples" / "rain.wav")
            seen.check_accessibility()
            context.close()

    def test_everything_is_reached_with_the_keyboard(self, watched: Watched, long_file: Path) -> None:
        watched.give(long_file)
        page, reached = watched.page, set()
        page.focus("#tab-sound")
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
        ids = {"file", "record", "save-csv", "position", "play", "overlay", "picker", "save-json", "copy"}
        assert reached >= ids | {"piece"}
        assert reached & {"window-before", "window-after"}  # at an end one of them is disabled
        page.focus("#tab-sound")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#panel-live")).to_be_visible()
        assert page.evaluate("document.activeElement.id") == "tab-live"


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
        with watching(speaking, url) as seen:
            page = seen.page
            page.click("#tab-live")
            before = spread(page.locator("#live-mel .inside canvas"))
            page.click("#listen")
            expect(page.locator("#live-answer h2")).to_have_text(spoken(clip.label))
            expect(page.locator("#live-bars li")).to_have_count(6)
            first = answers(page)
            assert wait_until(lambda: answers(page) >= first + 4, 15)
            assert spread(page.locator("#live-mel .inside canvas")) > before + 5
            assert wait_until(
                lambda: float(page.get_attribute("#live-level", "aria-valuenow") or -60) > -60, 5
            )
            page.click("#listen")
            expect(page.locator("#live-answer.idle")).to_be_visible()
            stopped = answers(page)
            time.sleep(1.5)
            assert answers(page) == stopped

    def test_a_recording_is_answered_played_and_saved(
        self, speaking: Browser, url: str, clip: LabelledClip
    ) -> None:
        with watching(speaking, url) as seen:
            page = seen.page
            page.click("#record")
            expect(page.locator("#record")).to_contain_text("0:05")
            page.click("#record")
            seen.wait()
            assert seen.title == spoken(clip.label)
            recorded = decode(download(page, "#save-sound"), sample_rate=44_100)
            assert 4.5 < recorded.seconds < 10
            page.click("#play")
            assert wait_until(lambda: position(page) > 0.2, 5)

    def test_no_permission(self, browser: Browser, url: str) -> None:
        with watching(browser, url) as seen:
            seen.page.click("#record")
            expect(seen.page.locator("#answer.error h2")).to_contain_text("microphone")
            seen.page.click("#tab-live")
            seen.page.click("#listen")
            expect(seen.page.locator("#live-answer.error h2")).to_contain_text("microphone")

    def test_without_a_secure_context_the_reason_is_said(
        self, playwright: Playwright, server: Server, tmp_path: Path
    ) -> None:
        settings = {"allowed_hosts": "audio.example", "allowed_origins": "*"}
        with (
            running_gateway(tmp_path, server.inference, **settings) as gateway,
            chromium(playwright, "--host-resolver-rules=MAP audio.example 127.0.0.1") as browser,
            watching(browser, f"http://audio.example:{gateway.port}/") as seen,
        ):
            expect(seen.page.locator("#panel-sound .no-microphone")).to_contain_text("https://")
            expect(seen.page.locator("#record")).to_be_disabled()
            seen.give(ROOT / "samples" / "rain.wav")
            assert seen.title == "rain"
            seen.page.click("#copy")  # the clipboard has no API there either
            expect(seen.page.locator("#copy")).to_have_text("Copied")
            seen.page.click("#tab-live")
            expect(seen.page.locator("#panel-live .no-microphone")).to_be_visible()


class TestAKey:
    def test_is_asked_for_once(self, speaking: Browser, server: Server, tmp_path: Path) -> None:
        with running_gateway(tmp_path, server.inference, api_keys=KEY) as gateway:
            context = speaking.new_context()
            seen = watch(context.new_page(), f"{gateway.url}/")
            page = seen.page
            for wrong in ("wrong", "schlüssel"):
                page.fill("#key", wrong)
                page.keyboard.press("Enter")
                expect(page.get_by_role("alert")).to_contain_text("not one of the keys")
            page.fill("#key", KEY)
            page.keyboard.press("Enter")
            expect(page.locator("#examples button")).to_have_count(5)
            seen.expect_failure(401)
            page.reload()
            page.locator("#examples button").first.click()  # an example needs the key too
            seen.wait()
            expect(page.locator("#key-dialog")).to_be_hidden()
            assert KEY not in page.content()
            page.click("#tab-live")
            page.click("#listen")
            assert wait_until(lambda: answers(page) > 0, 15)  # the key is in the start frame
            assert context.cookies() == []
            assert seen.problems == []
            context.close()

    def test_that_is_not_given_is_an_error(self, browser: Browser, server: Server, tmp_path: Path) -> None:
        with running_gateway(tmp_path, server.inference, api_keys=KEY) as gateway:
            seen = watch(browser.new_page(), f"{gateway.url}/")
            seen.page.keyboard.press("Escape")
            seen.page.set_input_files("#file", ROOT / "samples" / "rain.wav")
            seen.page.get_by_role("button", name="Cancel").click()
            seen.page.wait_for_selector(DONE)
            assert seen.title == "a key is needed"
            seen.page.close()


def with_class(old: str, new: str) -> Any:
    """For `repack`: a class of the model gets another name, in every file that has it."""

    def rename(text: str) -> str:
        return text.replace(json.dumps(old), json.dumps(new))

    def change(name: str, data: bytes) -> bytes:
        if name.endswith(".onnx"):
            model = onnx.load_from_string(data)
            for entry in model.metadata_props:
                if entry.key == CONFIG_KEY:
                    entry.value = rename(entry.value)
            return bytes(model.SerializeToString())
        return rename(data.decode()).encode() if name in ("config.json", "index_to_name.json") else data

    return change


def assert_nothing_ran(page: Page) -> None:
    assert page.title() == "What is this sound?"
    assert page.locator("img, script:not([src])").count() == 0


def drop(page: Page, target: str, name: str, content: bytes) -> None:
    """Let go of a file over an element."""
    transfer = page.evaluate_handle(
        """([name, data]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name));
            return transfer;
        }""",
        [name, base64.b64encode(content).decode()],
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event(target, event, {"dataTransfer": transfer, "bubbles": True, "cancelable": True})


def download(page: Page, button: str) -> bytes:
    with page.expect_download() as saved:
        page.click(button)
    return saved.value.path().read_bytes()


def answers(page: Page) -> int:
    return int(page.get_attribute("#panel-live", "data-answers") or 0)


def position(page: Page) -> float:
    """Seconds."""
    return float(page.get_attribute("#position", "aria-valuenow") or -1)


def size(canvas: Locator) -> list[int]:
    made: list[int] = canvas.evaluate("canvas => [canvas.width, canvas.height]")
    return made


def pixels(canvas: Locator) -> Any:
    """`(height, width, 4)`, uint8."""
    data = canvas.evaluate(
        """canvas => {
            const pen = canvas.getContext("2d");
            return [...pen.getImageData(0, 0, canvas.width, canvas.height).data];
        }"""
    )
    width, height = size(canvas)
    return np.array(data, np.uint8).reshape(height, width, 4)


def spread(canvas: Locator) -> float:
    """How much its cells differ: 0 is one colour."""
    return float(pixels(canvas).std(axis=(0, 1)).max())


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


class TestAModelWithoutMaps:
    def test_everything_else_is_drawn(
        self, browser: Browser, kserve: int, long_file: Path, tmp_path: Path
    ) -> None:
        """A waveform model behind the Open Inference Protocol."""
        settings = {"backend": "v2", "v2_url": f"http://127.0.0.1:{kserve}"}
        with (
            running_gateway(tmp_path, "", **settings) as gateway,
            watching(browser, f"{gateway.url}/") as seen,
        ):
            page = seen.page
            expect(page.locator("#model")).to_contain_text("50 classes")
            seen.give(long_file)
            assert seen.title == "clock alarm"
            assert spread(page.locator("#mel .tile")) > 10
            assert spread(page.locator("#wave canvas")) > 0
            expect(page.locator("#timeline")).to_be_visible()
            for name in ("#maps", "#legend", "#mel .overlay"):
                expect(page.locator(name)).to_be_hidden()
            label = page.locator("#window .numbers")
            shown = label.inner_text()
            page.locator("#window button:enabled").first.click()
            expect(label).not_to_have_text(shown)
            seen.check_accessibility()

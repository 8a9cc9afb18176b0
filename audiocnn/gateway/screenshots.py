"""Pictures and timings of the page: `python -m audiocnn.gateway.screenshots`, while `make serve` runs.

Needs Chromium (`--chromium PATH`), Playwright's Python package and the sounds of `make samples`. Prints a
table, then the same as one line of JSON: milliseconds from opening the page until it can be used, and from
giving a file until the answer is shown and until everything is drawn; bytes that the page and an answer are.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, FloatRect, Page, Playwright, Response, sync_playwright

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
MICROPHONE = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
SCREENS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1200, "height": 900}},
    "dark": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
    "phone": {
        "viewport": {"width": 390, "height": 844},
        "is_mobile": True,
        "has_touch": True,
        "device_scale_factor": 2,
    },
}
LONG = ("siren", "siren", "rain", "rain", "clock_alarm", "clock_tick", "clock_tick", "church_bells", "siren")
_WAIT_MS = 30_000
_DONE = "#panel-sound:is([data-state=drawn], [data-state=failed])"

# Notes, with the page's clock, when the file was chosen and when each state of the panel was painted.
_WATCH = """() => {
    window.marks = {};
    const panel = document.getElementById("panel-sound");
    const file = document.getElementById("file");
    file.addEventListener("change", () => { marks.given = performance.now(); }, true);
    new MutationObserver(() => {
        const state = panel.dataset.state;
        requestAnimationFrame(() => setTimeout(() => { marks[state] = performance.now(); }));
    }).observe(panel, {attributeFilter: ["data-state"]});
}"""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m audiocnn.gateway.screenshots", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000/", help="the page (%(default)s)")
    parser.add_argument("--samples", type=Path, default=Path("samples"), help="example sounds (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("docs/pictures"), help="(%(default)s)")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="how often the time is taken (%(default)s)")
    return parser.parse_args(arguments)


@contextmanager
def chromium(playwright: Playwright, path: str, *more: str) -> Iterator[Browser]:
    """A browser without a window."""
    browser = playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS, *more])
    try:
        yield browser
    finally:
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, screen: str) -> Iterator[Page]:
    """The page, ready for a file."""
    context = browser.new_context(**SCREENS[screen])
    page = context.new_page()
    page.set_default_timeout(_WAIT_MS)
    page.goto(url)
    page.wait_for_selector("html[data-ready]", state="attached")
    page.wait_for_selector("#examples button")
    yield page
    context.close()


def join(samples: Path, names: tuple[str, ...], output: Path) -> Path:
    """The sounds one after another."""
    with wave.open(str(output), "wb") as writer:
        for number, name in enumerate(names):
            with wave.open(str(samples / f"{name}.wav"), "rb") as reader:
                if not number:
                    writer.setparams(reader.getparams())
                writer.writeframes(reader.readframes(reader.getnframes()))
    return output


def hiss(output: Path) -> Path:
    """Five seconds of white noise, which is none of the classes."""
    noise = np.random.default_rng(0).normal(0, 3000, 5 * 44_100).clip(-32_768, 32_767)
    with wave.open(str(output), "wb") as writer:
        writer.setparams((1, 2, 44_100, 0, "NONE", ""))
        writer.writeframes(noise.astype("<i2").tobytes())
    return output


def save(page: Page, path: Path, height: int | None = None) -> None:
    """The whole page or its upper part."""
    size = page.viewport_size or {"width": 0}
    part = FloatRect(x=0, y=0, width=size["width"], height=height) if height else None
    shot = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=part)))
    shot.convert("RGB").save(path, optimize=True)


def take_files(browser: Browser, args: argparse.Namespace, folder: Path) -> None:
    """The tab for a sound: on three screens, with a long sound, an unknown one and an error."""
    text = folder / "holiday.wav"
    text.write_bytes(b"This is a text with the name of a sound. " * 99)
    bells = args.samples / "church_bells.wav"
    shots: list[tuple[str, str, Path, int | None]] = [
        ("desktop", "desktop", bells, None),
        ("dark", "dark", args.samples / "siren.wav", 1060),
        ("phone", "phone", bells, 844),
        ("long", "desktop", join(args.samples, LONG, folder / "long.wav"), 1360),
        ("unknown", "desktop", hiss(folder / "hiss.wav"), 1130),
        ("error", "desktop", text, 480),
    ]
    for name, screen, file, height in shots:
        with opened(browser, args.url, screen) as page:
            page.set_input_files("#file", file)
            page.wait_for_selector(_DONE)
            page.wait_for_timeout(500)  # the bars grow
            save(page, args.output / f"{name}.png", height)


def take_live(playwright: Playwright, args: argparse.Namespace) -> None:
    """The live tab, with an example as its microphone."""
    sound = args.samples.resolve() / "siren.wav"
    capture = f"--use-file-for-fake-audio-capture={sound}"
    with (
        chromium(playwright, args.chromium, *MICROPHONE, capture) as browser,
        opened(browser, args.url, "desktop") as page,
    ):
        page.click("#tab-live")
        page.click("#listen")
        page.wait_for_selector("#live-answer.known")
        page.wait_for_timeout(10_000)
        save(page, args.output / "live.png", 830)


def measure(browser: Browser, args: argparse.Namespace) -> dict[str, float]:
    """Medians: first sight with an empty cache, answers on a warm page."""
    first = [_first_sight(browser, args.url) for _ in range(args.rounds)]
    with opened(browser, args.url, "desktop") as page:
        page.evaluate(_WATCH)
        answers = [_answer(page, args.samples / "church_bells.wav") for _ in range(args.rounds + 2)][2:]
    rows = [one | other for one, other in zip(first, answers, strict=True)]
    return {name: round(statistics.median(row[name] for row in rows), 1) for name in rows[0]}


def _first_sight(browser: Browser, url: str) -> dict[str, float]:
    context = browser.new_context(**SCREENS["desktop"])
    page = context.new_page()
    replies: list[Response] = []
    page.on("response", lambda reply: replies.append(reply))
    page.goto(url)
    page.wait_for_selector("html[data-ready]", state="attached", timeout=_WAIT_MS)
    usable = page.evaluate("performance.getEntriesByName('usable')[0].startTime")
    page.wait_for_selector("#examples button", timeout=_WAIT_MS)
    sizes = [reply.request.sizes() for reply in replies]
    context.close()
    kilobytes = sum(each["responseHeadersSize"] + each["responseBodySize"] for each in sizes) / 1000
    return {"page usable, ms": usable, "page, kB": kilobytes}


def _answer(page: Page, file: Path) -> dict[str, float]:
    page.evaluate("window.marks = {}")
    with page.expect_response(lambda reply: "/predict" in reply.url) as reply:
        page.set_input_files("#file", file)
    page.wait_for_selector(_DONE)
    page.wait_for_timeout(200)  # the last paint
    marks = page.evaluate("marks")
    kilobytes = reply.value.request.sizes()["responseBodySize"] / 1000
    shown = {name: marks[state] - marks["given"] for name, state in _STATES.items()}
    return shown | {"answer, kB": kilobytes}


_STATES = {"answer shown, ms": "answered", "everything drawn, ms": "drawn"}


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when all is taken."""
    args = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        with chromium(playwright, args.chromium) as browser:
            times = measure(browser, args)
            take_files(browser, args, Path(folder))
        take_live(playwright, args)
    for name, value in times.items():
        print(f"{name:>22} {value:8.1f}")
    print(json.dumps(times))
    return 0


if __name__ == "__main__":
    sys.exit(main())

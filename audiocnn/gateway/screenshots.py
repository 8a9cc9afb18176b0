"""Pictures and timings of the page: `python -m audiocnn.gateway.screenshots`, while `make serve` runs.

Needs Chromium (`--chromium PATH`), Playwright's Python package and the sounds of `make samples`. Prints a
table of milliseconds, from giving a file to everything drawn, then the same as one line of JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, FloatRect, Page, Playwright, sync_playwright

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
_DRAWN = "document.querySelectorAll('#maps img').length > 30 && [...document.images].every(i => i.complete)"


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m audiocnn.gateway.screenshots", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000/ui/", help="the page (%(default)s)")
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
    page.goto(url)
    page.wait_for_selector("#sound input[type=file]", state="attached", timeout=_WAIT_MS)
    yield page
    context.close()


def give(page: Page, file: Path, outcome: str = ":is(.known, .unknown)") -> None:
    """Choose a file and wait for the answer."""
    page.locator("#sound input[type=file]").set_input_files(file)
    page.wait_for_selector(f"#headline .card{outcome}", timeout=_WAIT_MS)


def join(samples: Path, names: tuple[str, ...], output: Path) -> Path:
    """The sounds one after another."""
    with wave.open(str(output), "wb") as writer:
        for number, name in enumerate(names):
            with wave.open(str(samples / f"{name}.wav"), "rb") as reader:
                if not number:
                    writer.setparams(reader.getparams())
                writer.writeframes(reader.readframes(reader.getnframes()))
    return output


def save(page: Page, path: Path, height: int | None = None) -> None:
    """The whole page or its upper part, in 256 colours: a third of the bytes."""
    size = page.viewport_size or {"width": 0}
    part = FloatRect(x=0, y=0, width=size["width"], height=height) if height else None
    shot = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=part)))
    shot.convert("RGB").quantize(256).save(path, optimize=True)


def take_files(browser: Browser, args: argparse.Namespace, folder: Path) -> None:
    """The tab for files: on three screens, with a long sound and with an error."""
    broken = folder / "holiday.wav"
    broken.write_bytes(b"This is a text with the name of a sound. " * 99)
    long = join(args.samples, LONG, folder / "long.wav")
    bells = args.samples / "church_bells.wav"
    shots = [("desktop", "desktop", bells), ("dark", "dark", args.samples / "siren.wav")]
    shots += [("phone", "phone", bells), ("long", "desktop", long), ("error", "desktop", broken)]
    for name, screen, file in shots:
        with opened(browser, args.url, screen) as page:
            give(page, file, ".error" if file == broken else ":is(.known, .unknown)")
            page.wait_for_timeout(1500)  # the bars grow, the player draws
            height = {"error": 460, "phone": 1290}.get(name)
            save(page, args.output / f"{name}.png", height)


def take_live(playwright: Playwright, args: argparse.Namespace) -> None:
    """The live tab, with a microphone that hears an example."""
    sound = args.samples.resolve() / "siren.wav"
    with (
        chromium(
            playwright, args.chromium, *MICROPHONE, f"--use-file-for-fake-audio-capture={sound}"
        ) as browser,
        opened(browser, args.url, "desktop") as page,
    ):
        page.get_by_role("tab", name="Live").click()
        page.locator(".live .start").click()
        page.wait_for_selector(".live .card.known", timeout=_WAIT_MS)
        page.wait_for_timeout(10_000)
        save(page, args.output / "live.png", 560)


def measure(browser: Browser, args: argparse.Namespace) -> dict[str, float]:
    """Medians in milliseconds on a warm page: everything counts from giving the file."""
    rows: list[dict[str, float]] = []
    with opened(browser, args.url, "desktop") as page:
        for _ in range(args.rounds + 2):
            rows.append(_time_one(page, args.samples / "church_bells.wav"))
            page.locator("#sound button[aria-label=Clear]").click()
            page.wait_for_selector("#headline .card.idle")
            page.wait_for_timeout(300)
    return {part: round(statistics.median(row[part] for row in rows[2:]), 1) for part in rows[0]}


def _time_one(page: Page, file: Path) -> dict[str, float]:
    marks: dict[str, float] = {}

    def ms() -> float:
        return 1000 * (time.perf_counter() - began)

    with page.expect_response(lambda reply: "/upload?" in reply.url) as upload:
        began = time.perf_counter()
        page.locator("#sound input[type=file]").set_input_files(file)
    upload.value.finished()
    marks["uploaded"] = ms()
    page.wait_for_selector("#headline .card:is(.known, .unknown)", timeout=_WAIT_MS)
    marks["answer shown"] = ms()
    page.wait_for_function(_DRAWN)
    marks["everything drawn"] = ms()
    said = page.inner_text("#headline .foot").split()
    numbers = [float(word) for word in said if word.isdigit()]
    return {"of it: TorchServe": numbers[-2], "of it: pictures": numbers[-1]} | marks


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when all is taken."""
    args = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        with chromium(playwright, args.chromium) as browser:
            take_files(browser, args, Path(folder))
            times = measure(browser, args)
        take_live(playwright, args)
    for part, milliseconds in times.items():
        print(f"{part:>20} {milliseconds:8.1f} ms")
    print(json.dumps({"milliseconds": times}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Chromium, driven by Playwright, and what a test watches on a page."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, expect

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FAKE_MICROPHONE = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
DONE = "#panel-sound:is([data-state=drawn], [data-state=failed])"
WAIT_MS = 120_000

expect.set_options(timeout=WAIT_MS / 2)


@contextlib.contextmanager
def chromium(playwright: Playwright, *arguments: str) -> Iterator[Browser]:
    running = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=[*ARGUMENTS, *arguments])
    yield running
    running.close()


@dataclass
class Watched:
    """The page, and what must stay empty: errors in its console, requests to elsewhere, failed replies."""

    page: Page
    problems: list[str] = field(default_factory=list)

    def give(self, file: Path | str) -> None:
        """Choose a file, and wait until everything is drawn."""
        self.page.set_input_files("#file", file)
        self.wait()

    def wait(self) -> None:
        """Until everything is drawn, or an error is shown."""
        self.page.wait_for_selector(DONE)

    @property
    def title(self) -> str:
        return self.page.inner_text("#answer h2").lower()

    def expect_failure(self, status: int) -> None:
        """A reply with this status is what the test is about; Chromium says so in the console too."""
        marks = (f"{status} http", f"Failed to load resource: the server responded with a status of {status}")
        said = [problem for problem in self.problems if problem.startswith(marks)]
        assert said
        self.problems[:] = [problem for problem in self.problems if problem not in said]

    def check_accessibility(self) -> None:
        """No violation of any of axe-core's rules, its best practices too."""
        report = Axe().run(self.page)
        assert report.violations_count == 0, report.generate_report()


def watch(page: Page, address: str) -> Watched:
    """Open the page; everything that goes wrong on it is noted."""
    seen = Watched(page)
    page.set_default_timeout(WAIT_MS)
    origin = "/".join(address.split("/")[:3])
    here = (address, address.replace("http", "ws", 1), "data:", f"blob:{origin}/")
    page.on("console", lambda each: seen.problems.append(each.text) if each.type == "error" else None)
    page.on("pageerror", lambda error: seen.problems.append(str(error)))
    page.on("response", lambda r: seen.problems.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.on("request", lambda r: None if r.url.startswith(here) else seen.problems.append(r.url))
    page.goto(address)
    page.wait_for_selector("html[data-ready]", state="attached")
    return seen


@contextlib.contextmanager
def watching(browser: Browser | BrowserContext, address: str, **options: object) -> Iterator[Watched]:
    """The page in a tab of its own; nothing may have gone wrong on it at the end."""
    is_browser = isinstance(browser, Browser)
    wanted = {"viewport": DESKTOP} | options if is_browser else {}
    page = browser.new_page(**wanted)  # type: ignore[arg-type]
    try:
        seen = watch(page, address)
        yield seen
        assert seen.problems == [], seen.problems
    finally:
        page.close()

"""Progress of a run on standard error: a bar on a terminal, a line every 15 seconds elsewhere."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from audiocnn.batch.state import Chunk, Outcome

FILE_BYTES = 4096  # what a file costs besides its bytes, when the time left is estimated
LINE_SECONDS = 15.0


class Meter:
    """Counts chunks as they are done."""

    def __init__(self, files: int, done: int, todo: int, console: Console) -> None:
        """`files` in all, `done` by earlier runs; `todo` is the work left, in the units of `work`."""
        self._files, self._done, self._todo, self._console = files, done, todo, console
        self._outcome, self._worked = Outcome(), 0
        self._began = self._told = time.monotonic()
        self._bar = Progress(
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("scoring", total=todo, text="starting Ray")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def add(self, chunk: Chunk, outcome: Outcome, seconds: float) -> None:
        """Count a chunk that took `seconds`; the speed is measured from the start of the first one."""
        began = time.monotonic() - seconds
        self._began = min(self._began, began) if self._worked else began
        self._outcome += outcome
        self._worked += work(chunk)
        self._show()

    def _show(self) -> None:
        now = time.monotonic()
        seconds = max(now - self._began, 1e-9)
        done = self._done + self._outcome.files
        errors = sum(self._outcome.errors.values())
        rate = self._outcome.files / seconds
        text = f"{done:,}/{self._files:,} files, {rate:,.0f} clips/s, {errors:,} errors,"
        self._bar.update(self._task, completed=self._worked, text=text)
        if not self._console.is_terminal and now - self._told >= LINE_SECONDS:
            self._told = now
            left = seconds * (self._todo - self._worked) / self._worked if self._worked else 0
            print(f"{text} {clock(left)} left", file=self._console.file, flush=True)


def work(chunk: Chunk) -> int:
    """Relative cost of a chunk."""
    return chunk.bytes + FILE_BYTES * chunk.files


def clock(seconds: float) -> str:
    """Such as 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"

"""Keeps processes running: one that ends or hangs is started again, after a pause that grows.

One that fails again and again is given up: whoever started us sees an exit code, and the end of the log.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from audiocnn.torchserve.server import ServerStartError

_LOOK_SECONDS = 0.2
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_MOST_FAILURES = 5
_STABLE_SECONDS = 60.0  # who ran so long has not failed "again"


def say(line: str) -> None:
    """Print if that is possible: a full disk, or a reader of ours that is gone, must stop no server."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


class ManagedProcess(Protocol):
    """What is supervised: one or more processes that live and die together."""

    name: str

    @property
    def log_file(self) -> Path:
        """What it prints."""

    def start(self) -> None:
        """Start it; raises `ValueError` or `OSError` if that is impossible."""

    def wait_ready(self, timeout_seconds: float, stop: threading.Event) -> None:
        """Until it answers or `stop` is set; raises `ServerStartError` if it does not."""

    def failure_reason(self) -> str:
        """Why it must be started again, the reason in the first line; empty if all is well."""

    @property
    def unhealthy_seconds(self) -> float:
        """Seconds since it last answered, though its process lives."""

    def stop(self) -> None:
        """End it and all that is left of it."""


class RestartBackoff:
    """How often in a row something failed, and what follows from that."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ready_since: float | None = None
        self.in_a_row = 0

    def ready(self) -> None:
        """It came up."""
        self._ready_since = self._clock()

    def pause(self, unhealthy_seconds: float = 0.0) -> float | None:
        """It failed: seconds until the next attempt, None to give up.

        Time in which it was unhealthy does not count as stable.
        """
        now = self._clock()
        if self._ready_since is not None and now - self._ready_since - unhealthy_seconds >= _STABLE_SECONDS:
            self.in_a_row = 0
        self._ready_since = None
        self.in_a_row += 1
        if self.in_a_row > _MOST_FAILURES:
            return None
        return float(min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** (self.in_a_row - 1)))


class Supervisor:
    """Watches its children, in the order in which they need one another, until `stopping` is set."""

    def __init__(
        self,
        children: Sequence[ManagedProcess],
        stopping: threading.Event,
        *,
        timeout_seconds: float,
        restart: bool,
    ) -> None:
        self._children = [(child, RestartBackoff()) for child in children]
        self._stopping = stopping
        self._timeout_seconds = timeout_seconds
        self._restart = restart

    def start(self) -> None:
        """Start all, each when those before it answer. What fails the first time is not tried again."""
        for child, failures in self._children:
            if not self._stopping.is_set():
                self._bring_up(child, failures)

    def watch(self) -> None:
        """Returns when `stopping` is set; raises `ServerStartError` when something had to be given up."""
        while not self._stopping.wait(_LOOK_SECONDS):
            for child, failures in self._children:
                if reason := child.failure_reason():
                    self._revive(child, failures, reason)

    def _bring_up(self, child: ManagedProcess, failures: RestartBackoff) -> None:
        child.start()
        say(f"starting {child.name}, log in {child.log_file} ...")
        child.wait_ready(self._timeout_seconds, self._stopping)
        failures.ready()

    def _revive(self, child: ManagedProcess, failures: RestartBackoff, reason: str) -> None:
        """Until it answers again, or `stopping` is set."""
        began = time.monotonic()
        while not self._stopping.is_set():
            pause = failures.pause(child.unhealthy_seconds) if self._restart else None
            if pause is None:
                tries = f"{child.name} failed {failures.in_a_row} times in a row, given up.\n"
                raise ServerStartError((tries if self._restart else "") + reason)
            say(reason.splitlines()[0])
            say(f"starting it again in {pause:g} s ({failures.in_a_row} of {_MOST_FAILURES})")
            child.stop()
            if self._stopping.wait(pause):
                return
            try:
                self._bring_up(child, failures)
            except (ServerStartError, ValueError, OSError) as error:
                reason = str(error)
                continue
            if not self._stopping.is_set():
                say(f"{child.name} answers again after {time.monotonic() - began:.1f} s")
            return

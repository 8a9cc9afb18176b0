"""Restarts processes that end or hang, with exponential back-off, and gives up after repeated failures."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from audiocnn.torchserve.server import ServerStartError

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_MAX_FAILURES = 5  # in a row
_STABLE_SECONDS = 60.0  # of healthy running; resets the restart counter


def log(line: str) -> None:
    """Print a line. A full disk or a closed pipe does not stop the server."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


class ManagedProcess(Protocol):
    """One or more processes that are started, checked and stopped together."""

    name: str

    @property
    def log_file(self) -> Path:
        """Their standard output and standard error."""

    def start(self) -> None:
        """Start them; raises `ServerStartError`, `ValueError` or `OSError` if that is impossible."""

    def wait_ready(self, timeout_seconds: float, stop: threading.Event) -> None:
        """Wait until they answer or `stop` is set; raises `ServerStartError` if they do not answer."""

    def failure_reason(self) -> str:
        """Why a restart is needed, in the first line; empty if none is needed."""

    @property
    def unhealthy_seconds(self) -> float:
        """Seconds since the last successful health check while they run."""

    def stop(self) -> None:
        """Stop them and all their children."""


class RestartBackoff:
    """Counts failures in a row and returns the pause before the next attempt."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        first_pause_seconds: float = _FIRST_PAUSE_SECONDS,
        stable_seconds: float = _STABLE_SECONDS,
    ) -> None:
        self._clock = clock
        self._first_pause_seconds, self._stable_seconds = first_pause_seconds, stable_seconds
        self._ready_since: float | None = None
        self.failures = 0  # in a row

    def ready(self) -> None:
        """Note that a start succeeded."""
        self._ready_since = self._clock()

    def pause(self, unhealthy_seconds: float = 0.0) -> float | None:
        """Note a failure; returns the seconds until the next attempt, None after too many failures.

        `stable_seconds` of running reset the counter; time spent unhealthy does not count.
        """
        now = self._clock()
        if self._ready_since is not None:
            healthy_seconds = now - self._ready_since - unhealthy_seconds
            self.failures = 0 if healthy_seconds >= self._stable_seconds else self.failures
        self._ready_since = None
        self.failures += 1
        if self.failures > _MAX_FAILURES:
            return None
        return float(min(_LONGEST_PAUSE_SECONDS, self._first_pause_seconds * 2 ** (self.failures - 1)))


class Supervisor:
    """Starts its children in order and restarts them until `stopping` is set."""

    def __init__(
        self,
        children: Sequence[ManagedProcess],
        stopping: threading.Event,
        *,
        timeout_seconds: float,
        restart: bool,
        backoff: Callable[[], RestartBackoff] = RestartBackoff,
        poll_seconds: float = 0.2,
    ) -> None:
        """`timeout_seconds` bounds each start. Without `restart` the first failure is an error."""
        self._children = [(child, backoff()) for child in children]
        self._stopping = stopping
        self._timeout_seconds = timeout_seconds
        self._restart = restart
        self._poll_seconds = poll_seconds

    def start(self) -> None:
        """Start all children at once and wait until each is ready. A failed first start is an error."""
        for child, _ in self._children:
            self._begin(child)
        for child, backoff in self._children:
            self._wait_ready(child, backoff)

    def watch(self) -> None:
        """Return when `stopping` is set; raises `ServerStartError` when a child failed too often."""
        while not self._stopping.wait(self._poll_seconds):
            for child, backoff in self._children:
                if reason := child.failure_reason():
                    self._restart_child(child, backoff, reason)

    def _begin(self, child: ManagedProcess) -> None:
        child.start()
        log(f"starting {child.name}, log in {child.log_file} ...")

    def _wait_ready(self, child: ManagedProcess, backoff: RestartBackoff) -> None:
        child.wait_ready(self._timeout_seconds, self._stopping)
        backoff.ready()

    def _restart_child(self, child: ManagedProcess, backoff: RestartBackoff, reason: str) -> None:
        """Try until the child is ready or `stopping` is set."""
        began = time.monotonic()
        while not self._stopping.is_set():
            pause = backoff.pause(child.unhealthy_seconds) if self._restart else None
            if pause is None:
                failures = f"{child.name} failed {backoff.failures} times in a row, given up.\n"
                raise ServerStartError((failures if self._restart else "") + reason)
            log(reason.splitlines()[0])
            log(f"starting it again in {pause:g} s ({backoff.failures} of {_MAX_FAILURES})")
            child.stop()
            if self._stopping.wait(pause):
                return
            try:
                self._begin(child)
                self._wait_ready(child, backoff)
            except (ServerStartError, ValueError, OSError) as error:
                reason = str(error)
                continue
            if not self._stopping.is_set():
                log(f"{child.name} answers again after {time.monotonic() - began:.1f} s")
            return

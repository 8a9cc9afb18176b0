"""Asks a living server whether it works: Java lives on without a worker, the gateway with a hung loop."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

_PERIOD_SECONDS = 5.0


class HealthMonitor:
    """Asks every few seconds, in a thread of its own: the answer may take long."""

    def __init__(self, is_healthy: Callable[[], bool], *, timeout_seconds: float) -> None:
        """Starts at once. `is_healthy` takes `timeout_seconds` at most; if it raises, that is unhealthy."""
        self._is_healthy = is_healthy
        self._longest_poll_seconds = _PERIOD_SECONDS + timeout_seconds
        self._stopped = threading.Event()
        self.unhealthy_seconds = 0.0  # since the last good answer
        threading.Thread(target=self._watch, name="health monitor", daemon=True).start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()

    def _watch(self) -> None:
        polled = time.monotonic()
        while not self._stopped.wait(_PERIOD_SECONDS):
            is_healthy = self._ask()
            before, polled = polled, time.monotonic()
            # The cap: a process that was suspended (Ctrl-Z, `docker pause`) is not an unhealthy server.
            elapsed = min(polled - before, self._longest_poll_seconds)
            self.unhealthy_seconds = 0.0 if is_healthy else self.unhealthy_seconds + elapsed

    def _ask(self) -> bool:
        with contextlib.suppress(Exception):  # whatever it is, the thread must go on
            return self._is_healthy()
        return False

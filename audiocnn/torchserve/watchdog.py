"""Periodic health checks: Java keeps running without a worker, the gateway with a blocked event loop."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

_PERIOD_SECONDS = 5.0


class HealthMonitor:
    """Runs a health check every `period_seconds` in a thread."""

    def __init__(
        self,
        is_healthy: Callable[[], bool],
        *,
        timeout_seconds: float,
        period_seconds: float = _PERIOD_SECONDS,
    ) -> None:
        """Start the thread. `is_healthy` takes at most `timeout_seconds`; an exception means unhealthy."""
        self._is_healthy = is_healthy
        self._period_seconds = period_seconds
        self._longest_poll_seconds = period_seconds + timeout_seconds
        self._stopped = threading.Event()
        self.unhealthy_seconds = 0.0  # since the last successful check
        threading.Thread(target=self._watch, name="health monitor", daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    def _watch(self) -> None:
        polled = time.monotonic()
        while not self._stopped.wait(self._period_seconds):
            is_healthy = self._check()
            before, polled = polled, time.monotonic()
            # Cap the elapsed time: a suspended process (Ctrl-Z, `docker pause`) is not an unhealthy server.
            elapsed = min(polled - before, self._longest_poll_seconds)
            self.unhealthy_seconds = 0.0 if is_healthy else self.unhealthy_seconds + elapsed

    def _check(self) -> bool:
        with contextlib.suppress(Exception):  # the thread must not end
            return self._is_healthy()
        return False

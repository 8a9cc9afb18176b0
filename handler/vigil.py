"""Watches whether TorchServe has a worker that can answer: Java lives on without any, and says it is well."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from handler.management import Management, ManagementError

_LOOK_SECONDS = 5.0


class Vigil:
    """Asks the management API every few seconds, in a thread of its own: it may take long to answer."""

    def __init__(self, connect: Callable[[], Management]) -> None:
        """Begins at once; `connect` makes the connection that the thread asks through."""
        self._connect = connect
        self._well_at = time.monotonic()
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="vigil", daemon=True).start()

    @property
    def seconds_ill(self) -> float:
        """For so long it has had no ready worker, though it should, or has not answered."""
        return time.monotonic() - self._well_at

    def end(self) -> None:
        """Ask no more."""
        self._over.set()

    def _watch(self) -> None:
        management = self._connect()
        while not self._over.wait(_LOOK_SECONDS):
            try:
                version = management.default()
            except ManagementError:
                continue
            if version.ready_workers or not version.min_workers:
                self._well_at = time.monotonic()
        management.close()

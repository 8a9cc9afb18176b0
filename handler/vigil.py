"""Watches whether TorchServe has a worker that can answer: Java lives on without any, and says it is well."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing

from handler.management import Management

_LOOK_SECONDS = 5.0
_MOST_SECONDS = 35.0  # that one look can prove: a pause and a time-out of the management API


class Vigil:
    """Asks the management API every few seconds, in a thread of its own: it may take long to answer."""

    def __init__(self, connect: Callable[[], Management]) -> None:
        """Begins at once; `connect` makes the connection that the thread asks through."""
        self._connect = connect
        self._over = threading.Event()
        self.seconds_ill = 0.0  # for so long it has had no ready worker, though it should, or no answer
        threading.Thread(target=self._watch, name="vigil", daemon=True).start()

    def end(self) -> None:
        """Ask no more."""
        self._over.set()

    def _watch(self) -> None:
        with closing(self._connect()) as management:
            looked = time.monotonic()
            while not self._over.wait(_LOOK_SECONDS):
                is_well = self._is_well(management)
                before, looked = looked, time.monotonic()
                # Only looks count: when all of us stood still (Ctrl-Z, `docker pause`), nobody was ill.
                self.seconds_ill = 0.0 if is_well else self.seconds_ill + min(looked - before, _MOST_SECONDS)

    def _is_well(self, management: Management) -> bool:
        try:
            version = management.default()
        except Exception:  # no answer, or none that makes sense; whatever it is, the thread must go on
            return False
        return version.ready_workers > 0 or not version.min_workers

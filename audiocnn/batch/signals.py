"""How SIGINT and SIGTERM stop the batch job."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(BaseException):
    """A signal was received."""


class StopSignals:
    """Makes SIGINT and SIGTERM raise `Stopped`, and remembers which: libraries replace exceptions."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._is_deferred = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: object) -> None:
        is_first, self.received = self.received is None, number
        if not (is_first and self._is_deferred):
            raise Stopped

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A first signal raises at the end of the block only; a second one at once."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        if self.received is not None:
            raise Stopped

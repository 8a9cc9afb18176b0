"""Where the time of a request went: the response header `Server-Timing` (W3C), in milliseconds.

`receive` is the body, `backend` the model server with its queue and retries; the model server's own entries
follow, then `total`, all until the response begins.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar

HEADER = "Server-Timing"
_MAX_CHARACTERS = 400  # of the model server's entries


class ServerTiming:
    """The times of one request. What happens several times lasts from its first start to its last end.

    >>> timing = ServerTiming()
    >>> with timing.measured("receive"):
    ...     pass
    >>> timing.header()
    'receive;dur=0.0, total;dur=0.0'
    """

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._spans: dict[str, tuple[float, float]] = {}
        self._of_backend: list[str] = []

    @contextlib.contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Time the block."""
        began = self._spans.get(name, (time.perf_counter(), 0.0))[0]
        try:
            yield
        finally:
            self._spans[name] = began, time.perf_counter()

    def add_backend(self, entries: str | None) -> None:
        """Note the header of a reply of the model server."""
        if entries and len(entries) <= _MAX_CHARACTERS:
            self._of_backend.append(entries)

    def header(self) -> str | None:
        """The header's value; None if nothing was measured. Of several replies none has entries."""
        if not self._spans:
            return None
        spans = self._spans | {"total": (self._began, time.perf_counter())}
        own = [f"{name};dur={1000 * (end - start):.1f}" for name, (start, end) in spans.items()]
        return ", ".join([*own[:-1], *(self._of_backend if len(self._of_backend) == 1 else ()), own[-1]])


_current: ContextVar[ServerTiming | None] = ContextVar("server_timing", default=None)


def begin() -> ServerTiming:
    """A new `ServerTiming`, which is the `current` one of this task and those that it starts."""
    timing = ServerTiming()
    _current.set(timing)
    return timing


def current() -> ServerTiming:
    """That of the request under way; outside of one, a new one that is not reported."""
    return _current.get() or ServerTiming()

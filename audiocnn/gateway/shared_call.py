"""One call for all who ask at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedCall(Generic[T]):
    """A coroutine function that runs once at a time: callers during a run get its result or exception."""

    def __init__(self, function: Callable[[], Awaitable[T]]) -> None:
        self._function = function
        self._running: asyncio.Future[T] | None = None

    async def __call__(self) -> T:
        """The result. A caller that is cancelled does not end the run."""
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._function())
        return await asyncio.shield(self._running)

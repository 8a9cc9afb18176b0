"""Waiting for a condition."""

from __future__ import annotations

import time
from collections.abc import Callable

SLOWEST = 6  # a machine of CI may be so many times slower than the limits of `wait_until` allow for


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true in time: `seconds` on a fast machine, `SLOWEST` times as long here."""
    deadline = time.monotonic() + SLOWEST * seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()

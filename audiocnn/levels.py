"""How loud a sound is: the same for clips, streams and metrics."""

from __future__ import annotations

import math

LOWEST_DBFS = -120.0  # the level of digital silence


def level_dbfs(total: float, squares: float, count: int) -> float:
    """RMS level in dB of full scale, `LOWEST_DBFS` at least, without a constant offset.

    Of `count` samples with this sum and this sum of squares.

    >>> level_dbfs(total=50.0, squares=25.0, count=100)  # 0.5 all the time
    -120.0
    """
    power = squares / count - (total / count) ** 2 if count else 0.0
    if power <= 1e-9 * (total / max(count, 1)) ** 2:  # what rounding leaves of an offset
        return LOWEST_DBFS
    return max(LOWEST_DBFS, 10 * math.log10(power))

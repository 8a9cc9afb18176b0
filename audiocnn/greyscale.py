"""Maps of numbers as 8-bit greys."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def to_grey(values: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.uint8], float, float]:
    """Greys of the same shape, and the values of grey 0 and of grey 255: the lowest and the highest.

    >>> to_grey(np.array([[0.0, 2.0]]))
    (array([[  0, 255]], dtype=uint8), 0.0, 2.0)
    """
    low, high = float(values.min()), float(values.max())
    return np.round((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8), low, high

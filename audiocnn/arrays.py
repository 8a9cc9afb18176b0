"""Array types, one name each."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
AnyFloatArray = npt.NDArray[np.floating[Any]]
AnyIntArray = npt.NDArray[np.integer[Any]]

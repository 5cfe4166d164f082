"""Token ids, wherever they go: int32 arrays of shape [length]."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
EMPTY: Ids = np.zeros(0, dtype=np.int32)

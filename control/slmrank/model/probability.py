"""From log-odds to P(relevant)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def probability(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """sigmoid without overflow, in double precision; NaN stays NaN."""
    tail = np.exp(-np.abs(logits.astype(np.float64)))
    result: npt.NDArray[np.float64] = np.where(logits >= 0, 1.0, tail) / (1.0 + tail)
    return result

"""One scoring request as single prompts, and a prompt's logits as P(relevant): what both GPU
targets do around their engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from slmrank.errors import EngineError
from slmrank.model.probability import probability
from slmrank.prompt.labels import Labels
from slmrank.tokens import Ids


def whole_prompts(prefix: Ids, item_ids: Ids, item_lengths: Ids) -> list[Ids]:
    """Prefix and item as one prompt, for each of N items; an item without ids gives an empty one.

    `item_ids` [sum of lengths] holds the items end to end.
    """
    if int(item_lengths.sum()) != len(item_ids):
        raise EngineError(
            f"item_lengths sum to {int(item_lengths.sum())}, item_ids has {len(item_ids)}",
            "call the ensemble rank instead of ranker",
        )
    ends = np.cumsum(item_lengths)
    return [
        np.concatenate([prefix, item_ids[end - size : end]]) if size else item_ids[:0]
        for end, size in zip(ends, item_lengths, strict=True)
    ]


def label_probability(logits: npt.NDArray[np.floating[Any]], labels: Labels) -> float:
    """P(relevant) from the logits of one position, any shape whose last dimension is V.

    Raises EngineError when there is not exactly one position or a label is outside the vocabulary.
    """
    rows = logits.reshape(-1, logits.shape[-1])
    if len(rows) != 1 or max(labels.yes, labels.no) >= rows.shape[1]:
        raise EngineError(
            f"logits have shape {list(logits.shape)}; one position with the labels {labels.yes} "
            f"and {labels.no} was expected",
            "rebuild the engine from the checkpoint that the repository was made for",
        )
    row = rows[0].astype(np.float64)
    return float(probability(row[labels.yes] - row[labels.no]))

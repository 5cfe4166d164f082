"""One scoring request as single prompts, and a prompt's logits as P(relevant): what both GPU
targets do around their engine."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from slmrank.errors import EngineError
from slmrank.model.probability import probability
from slmrank.prompt.labels import Labels
from slmrank.tokens import Ids


def only_rows(tensors: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """The row of each tensor [1, N] of one request. Raises EngineError for other shapes: Triton
    passes on a batch of none, whose tensors may have any."""
    if any(tensor.ndim != 2 or len(tensor) != 1 for tensor in tensors):
        raise EngineError("one request holds one query", "send tensors of shape [1, N]")
    return [tensor[0] for tensor in tensors]


def split_items(
    prefix: Ids, item_ids: Ids, item_lengths: Ids, *, vocab_size: int, max_tokens: int
) -> list[Ids]:
    """The items of `item_ids` [sum of lengths], which holds them end to end.

    Raises EngineError for tensors that `prepare` never makes: whoever calls `ranker` itself must
    not reach memory outside of the embedding, or fail the requests that were joined with his.
    """
    total, longest = int(item_lengths.sum()), int(item_lengths.max(initial=0))
    fault = ""
    if item_lengths.min(initial=0) < 0:
        fault = f"item_lengths holds {int(item_lengths.min())}"
    elif total != len(item_ids):
        fault = f"item_lengths sum to {total}, item_ids has {len(item_ids)}"
    elif total and not len(prefix):
        fault = "there is no prefix"
    elif total and len(prefix) + longest > max_tokens:
        fault = f"a prompt has {len(prefix) + longest} tokens, the limit is {max_tokens}"
    else:
        least = min(int(ids.min(initial=0)) for ids in (prefix, item_ids))
        most = max(int(ids.max(initial=0)) for ids in (prefix, item_ids))
        if least < 0 or most >= vocab_size:
            fault = f"a token id is {least if least < 0 else most}, the vocabulary has {vocab_size}"
    if fault:
        raise EngineError(fault, "call the ensemble rank instead of ranker")
    ends = np.cumsum(item_lengths).tolist()
    return [item_ids[start:end] for start, end in pairwise([0, *ends])]


def whole_prompts(prefix: Ids, items: Sequence[Ids]) -> list[Ids]:
    """Prefix and item as one prompt, for each of N items; one without ids gives an empty one."""
    return [np.concatenate([prefix, item]) if len(item) else item for item in items]


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

"""Queries with their items as the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slmrank.model.decoder import LoadedRanker, Padded, pad_rows, score_items
from slmrank.model.placement import Placement
from slmrank.prompt.corpus import EncodedQuery

BATCH_TOKENS = 4096


def batch_tensors(
    batch: Sequence[EncodedQuery], placement: Placement
) -> tuple[Padded, Padded, Tensor]:
    """Padded prefixes, padded items, and the prefix of each item."""
    prefixes = pad_rows([example.prefix for example in batch], placement)
    items = pad_rows([item for example in batch for item in example.items], placement)
    prefix_of = placement.tensor([index for index, one in enumerate(batch) for _ in one.items])
    return prefixes, items, prefix_of


@torch.no_grad()
def query_logits(
    ranker: LoadedRanker, query: EncodedQuery, *, mixed: bool = True
) -> npt.NDArray[np.float64]:
    """Log-odds of "yes" [N] of one query's items, on the host; in several passes where the items
    are long. Without `mixed`, products are in the type of the weights."""
    placement = ranker.placement
    with placement.mixed_precision() if mixed else nullcontext():
        return score_in_passes(query, placement, partial(score_items, ranker))


def score_in_passes(
    query: EncodedQuery, placement: Placement, score: Callable[[Padded, Padded, Tensor], Tensor]
) -> npt.NDArray[np.float64]:
    """What `score` says of one query's items [N], on the host; items are padded to the longest of
    their pass, and a pass has at most BATCH_TOKENS of them."""
    sizes = [len(item) for item in query.items]
    found = np.zeros(len(sizes))
    for chosen in token_batches(sorted(range(len(sizes)), key=sizes.__getitem__), sizes):
        scores = score(*batch_tensors([query.pick(chosen)], placement))
        found[chosen] = scores.double().cpu().numpy()
    return found


def token_batches(order: list[int], lengths: list[int]) -> list[list[int]]:
    """Indices in batches of at most BATCH_TOKENS padded tokens; `order` ascends by length."""
    batches: list[list[int]] = []
    current: list[int] = []
    for index in order:
        if current and lengths[index] * (len(current) + 1) > BATCH_TOKENS:
            batches.append(current)
            current = []
        current.append(index)
    if current:
        batches.append(current)
    return batches

"""Queries with their items as the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slmrank.model.decoder import LoadedRanker, Padded, pad_rows, score_items
from slmrank.model.placement import Placement
from slmrank.prompt.corpus import EncodedQuery


def batch_tensors(
    batch: Sequence[EncodedQuery], placement: Placement
) -> tuple[Padded, Padded, Tensor]:
    """Padded prefixes, padded items, and the prefix of each item."""
    prefixes = pad_rows([example.prefix for example in batch], placement)
    items = pad_rows([item for example in batch for item in example.items], placement)
    prefix_of = placement.tensor([index for index, one in enumerate(batch) for _ in one.items])
    return prefixes, items, prefix_of


@torch.no_grad()
def query_logits(ranker: LoadedRanker, query: EncodedQuery) -> npt.NDArray[np.float64]:
    """Log-odds of "yes" [N] of one query's items, on the host."""
    with ranker.placement.mixed_precision():
        logits = score_items(ranker, *batch_tensors([query], ranker.placement))
    found: npt.NDArray[np.float64] = logits.double().cpu().numpy()
    return found

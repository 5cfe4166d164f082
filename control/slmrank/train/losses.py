"""Losses over a batch's logits, as pure functions.

Pointwise, the KL from a soft target; inside a query, RankNet (Burges et al., ICML 2005) or ListNet
(Cao et al., ICML 2007) on top, which see only the order. Each is a sum with the number of terms in
it, so that a step's mean is the same whether one process sees its items at once or many see parts.
Shapes: logits, targets and `query_of` are [B]; `query_of` names the query of each item.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Summed = tuple[Tensor, Tensor]  # sum, number of terms
ListLoss = Callable[[Tensor, Tensor, Tensor], Summed]


def bernoulli_kl(logits: Tensor, targets: Tensor) -> Summed:
    """KL(target || sigmoid(logit)) in nats, by item."""
    cross = functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    entropy = functional.binary_cross_entropy(targets, targets, reduction="sum")
    return cross - entropy, torch.full_like(cross, len(targets))


def ranknet(logits: Tensor, targets: Tensor, query_of: Tensor) -> Summed:
    """log(1 + exp(-(s_i - s_j))) over same-query pairs with target_i > target_j."""
    same = query_of[:, None] == query_of[None, :]
    above = same & (targets[:, None] > targets[None, :])
    gaps = logits[:, None] - logits[None, :]
    return (functional.softplus(-gaps) * above).sum(), above.sum().to(logits.dtype)


def listnet(logits: Tensor, targets: Tensor, query_of: Tensor) -> Summed:
    """Cross-entropy from softmax(targets) to softmax(logits), by query."""
    same = query_of[:, None] == query_of[None, :]
    wanted = torch.where(same, targets[None, :], -torch.inf).softmax(dim=-1)
    log_found = torch.where(same, logits[None, :], -torch.inf).log_softmax(dim=-1)
    crossed = -(wanted * torch.where(same, log_found, 0.0)).sum(dim=-1)
    # Every row of a query holds that query's loss: a row counts for its share of the query.
    share = 1.0 / same.sum(dim=-1)
    return (crossed * share).sum(), share.sum()


LIST_LOSSES: dict[str, ListLoss] = {"ranknet": ranknet, "listnet": listnet}

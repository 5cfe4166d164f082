"""Losses over a batch's logits, as pure functions.

Pointwise, the KL from a soft target; inside a query, RankNet (Burges et al., ICML 2005) or ListNet
(Cao et al., ICML 2007) on top, which see only the order. Shapes: logits, targets and `query_of` are
[B]; `query_of` names the query of each item.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

ListLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def bernoulli_kl(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean KL(target || sigmoid(logit)) in nats. Shapes: [B], [B] -> scalar."""
    cross = functional.binary_cross_entropy_with_logits(logits, targets)
    entropy = functional.binary_cross_entropy(targets, targets)
    return cross - entropy


def ranknet(logits: Tensor, targets: Tensor, query_of: Tensor) -> Tensor:
    """Mean of log(1 + exp(-(s_i - s_j))) over same-query pairs with target_i > target_j; 0 when
    there is none."""
    same = query_of[:, None] == query_of[None, :]
    above = same & (targets[:, None] > targets[None, :])
    gaps = logits[:, None] - logits[None, :]
    return (functional.softplus(-gaps) * above).sum() / above.sum().clamp(min=1)


def listnet(logits: Tensor, targets: Tensor, query_of: Tensor) -> Tensor:
    """Mean over queries of the cross-entropy from softmax(targets) to softmax(logits)."""
    same = query_of[:, None] == query_of[None, :]
    wanted = torch.where(same, targets[None, :], -torch.inf).softmax(dim=-1)
    log_found = torch.where(same, logits[None, :], -torch.inf).log_softmax(dim=-1)
    crossed = -(wanted * torch.where(same, log_found, 0.0)).sum(dim=-1)
    # Every row of a query holds that query's loss: a row counts for its share of the query.
    share = 1.0 / same.sum(dim=-1)
    return (crossed * share).sum() / share.sum()


LIST_LOSSES: dict[str, ListLoss] = {"ranknet": ranknet, "listnet": listnet}

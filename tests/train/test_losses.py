"""The losses, against sentence-transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from slmrank.train.losses import listnet, ranknet

SCORES = [[0.3, -1.2, 2.0, 0.1, 0.0], [1.5, 0.4, -0.7], [0.2, 0.3, 0.9, -0.1]]
TARGETS = [[1.0, 0.0, 0.25, 0.0, 0.75], [0.0, 1.0, 0.5], [0.25, 0.0, 1.0, 0.5]]


class Fixed(torch.nn.Module):
    """A cross-encoder whose scores are given."""

    device = torch.device("cpu")
    activation_fn = torch.nn.Identity()

    def __init__(self) -> None:
        super().__init__()
        self.scores = torch.tensor([one for row in SCORES for one in row])
        self.num_labels = 1
        self.config = type("Config", (), {"num_labels": 1})()
        self.done = 0

    def preprocess(self, pairs: list[Any], **_: Any) -> dict[str, torch.Tensor]:
        start, self.done = self.done, self.done + len(pairs)
        return {"scores": self.scores[start : self.done]}

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return features


def theirs(loss: Any) -> float:
    documents = [[f"d{place}" for place in range(len(row))] for row in SCORES]
    labels = [torch.tensor(row) for row in TARGETS]
    return float(loss([["a", "b", "c"], documents], labels))


def flat() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query_of = torch.tensor([place for place, row in enumerate(SCORES) for _ in row])
    logits, targets = (
        torch.tensor([one for row in rows for one in row]) for rows in (SCORES, TARGETS)
    )
    return logits, targets, query_of


def mean(summed: tuple[torch.Tensor, torch.Tensor]) -> float:
    return float(summed[0] / summed[1])


def test_ranknet_is_the_librarys() -> None:
    from sentence_transformers.cross_encoder.losses import RankNetLoss

    expected = theirs(RankNetLoss(Fixed(), reduction_log="natural"))
    assert mean(ranknet(*flat())) == pytest.approx(expected, abs=1e-6)


def test_listnet_is_the_librarys() -> None:
    from sentence_transformers.cross_encoder.losses import ListNetLoss

    assert mean(listnet(*flat())) == pytest.approx(theirs(ListNetLoss(Fixed())), abs=1e-6)


def test_a_query_without_an_order_costs_nothing_and_gives_no_nan() -> None:
    logits = torch.tensor([0.3, 0.2], requires_grad=True)
    loss, pairs = ranknet(logits, torch.tensor([0.5, 0.5]), torch.tensor([0, 0]))
    loss.backward()
    assert (loss.item(), pairs.item()) == (0, 0)
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros(2))

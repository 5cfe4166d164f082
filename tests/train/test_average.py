"""The moving average of what is trained: what is kept, what goes on training, what a resume knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from slmrank.model.reference import load_model
from slmrank.train.average import MovingAverage
from torch import nn

from tests.train.test_sft import QUERIES, fit, settings


def two_weights() -> nn.Module:
    network = nn.Linear(1, 2)
    network.weight.data = torch.tensor([[1.0], [2.0]])
    network.bias.requires_grad_(False)
    return network


def step_to(network: nn.Module, values: list[float], average: MovingAverage) -> None:
    weight = network.weight
    assert isinstance(weight, torch.Tensor)
    weight.data = torch.tensor(values)[:, None]
    average.update()


def test_it_is_the_exponential_moving_average_of_the_steps() -> None:
    network = two_weights()
    average = MovingAverage(network, 0.75)
    for values in ([1.0, 2.0], [3.0, 2.0], [5.0, -2.0]):
        step_to(network, values, average)
    # The first decays are 2/11 and 3/12, until they reach the one that was asked for.
    second = [2 / 11 * 1 + 9 / 11 * 3, 2.0]
    wanted = pytest.approx([0.25 * second[0] + 0.75 * 5, 0.25 * second[1] - 0.75 * 2])
    with average.in_place():
        assert network.weight.flatten().tolist() == wanted
    assert network.weight.flatten().tolist() == [5.0, -2.0], "training goes on with its own"
    average.put()
    assert network.weight.flatten().tolist() == wanted
    for _ in range(60):
        step_to(network, [0.0, 0.0], average)
    before = float(average.values()["weight"][0])  # type: ignore[index]
    step_to(network, [0.0, 0.0], average)
    assert float(average.values()["weight"][0]) == pytest.approx(0.75 * before)  # type: ignore[index]


def test_a_long_average_of_a_short_run_is_not_its_first_step() -> None:
    """With 0.999 and 64 steps, 94 % of what was kept were the weights of the first one."""
    network = two_weights()
    average = MovingAverage(network, 0.999)
    for step in range(64):
        step_to(network, [0.0 if step == 0 else 1.0, 2.0], average)
    average.put()
    assert float(network.weight[0].detach()) > 0.99


def test_one_that_goes_on_is_the_one_that_never_stopped() -> None:
    first, steps = two_weights(), [[1.0, 2.0], [3.0, 2.0], [5.0, -2.0]]
    whole, begun = MovingAverage(first, 0.9), MovingAverage(first, 0.9)
    for values in steps[:2]:
        step_to(first, values, whole)
        begun.update()
    kept = begun.values()
    assert kept is not None
    assert set(kept) == {"weight"}, "only what is trained"
    second = two_weights()
    gone_on = MovingAverage(second, 0.9)
    gone_on.go_on(kept, 2)
    step_to(first, steps[2], whole)
    step_to(second, steps[2], gone_on)
    whole.put()
    gone_on.put()
    assert torch.equal(first.weight, second.weight)


def test_without_a_decay_the_last_weights_stay() -> None:
    network = two_weights()
    average = MovingAverage(network, None)
    step_to(network, [7.0, 8.0], average)
    with average.in_place():
        assert network.weight.flatten().tolist() == [7.0, 8.0]
    average.put()
    assert network.weight.flatten().tolist() == [7.0, 8.0]
    assert average.values() is None


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("dev", [(), tuple(QUERIES)])
def test_a_run_ends_with_the_average_of_its_steps(
    make_checkpoint: Callable[..., Any], tmp_path: Path, dev: tuple[Any, ...]
) -> None:
    """Also where dev decides what is kept: what it judged is the average."""
    checkpoint = make_checkpoint()
    seen: list[torch.Tensor] = []
    plain, averaged = load_model(checkpoint), load_model(checkpoint)

    def note(*_given: Any) -> None:
        seen.append(plain.network.model.norm.weight.detach().clone())

    given: dict[str, Any] = {"steps": 5, "dev_every": 5 if dev else None}
    fit(plain, settings(**given), tmp_path / "a", note, dev=dev)
    figures = fit(averaged, settings(ema_decay=0.5, **given), tmp_path / "b", dev=dev)
    assert figures["kept_step"] == 5
    wanted = seen[0]
    for count, one in enumerate(seen[1:], start=1):
        decay = min(0.5, (1 + count) / (10 + count))
        wanted = decay * wanted + (1 - decay) * one
    assert torch.allclose(averaged.network.model.norm.weight, wanted, atol=1e-5)
    assert not torch.allclose(plain.network.model.norm.weight, wanted, atol=1e-5)

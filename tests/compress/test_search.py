"""The search's arithmetic: what is predicted, what is kept."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from slmrank.compress.search import (
    Choice,
    Predicted,
    combinations,
    fit_cost,
    front,
    one_by_one,
    predict,
    shortlist,
    survivors,
    uneven_widths,
    whole,
    work_of,
)
from slmrank.model.checkpoint import Geometry

AXES = {
    "layers": [30, 24],
    "intermediate_size": [1536, 1024],
    "kv_heads": [3, 2],
    "budget_tokens": [36, 24],
    "precision": ["float32", "int8"],
}
SMOL = Geometry(
    family="llama",
    layers=30,
    hidden_size=576,
    heads=9,
    kv_heads=3,
    head_dim=64,
    intermediate_size=1536,
    vocab_size=49152,
)


def some(seconds: float, loss: float, layers: int = 30) -> Predicted:
    return Predicted(choice=replace(whole(AXES), layers=layers), seconds=seconds, loss=loss)


def test_the_work_is_that_of_the_parameters() -> None:
    # SmolLM2-135M has 106.2M parameters in its blocks, without norms.
    assert work_of(whole(AXES), SMOL, 1) == pytest.approx(106_168_320)
    assert work_of(whole(AXES), SMOL, 50) == 50 * work_of(whole(AXES), SMOL, 1)
    pruned = replace(whole(AXES), layers=24, intermediate_size=1024)
    assert work_of(pruned, SMOL, 1) == pytest.approx(0.6 * 106_168_320)
    # A key head takes its three query heads along: a third of the attention's parameters.
    fewer = work_of(replace(whole(AXES), kv_heads=2), SMOL, 1)
    assert work_of(whole(AXES), SMOL, 1) - fewer == 30 * 2 * 576 * (192 + 64)


def test_a_line_through_what_was_measured() -> None:
    assert fit_cost([(1e9, 0.012), (3e9, 0.032)]) == pytest.approx((0.002, 1e-11))
    assert fit_cost([(2e9, 0.02)]) == pytest.approx((0.0, 1e-11))
    # Noise may not make work cheaper, nor nothing cost less than nothing.
    assert fit_cost([(1e9, 0.03), (3e9, 0.02)])[1] > 0
    assert fit_cost([(1e9, 0.001), (3e9, 0.03)])[0] == 0.0


def test_losses_add_up_and_gains_pay_for_nothing() -> None:
    losses = dict(zip(one_by_one(AXES), [0.02, 0.03, 0.04, -0.05, 0.001], strict=True))
    works = {one: work_of(one, SMOL, one.budget_tokens) for one in combinations(AXES)}
    costs = {"float32": (0.0, 2e-11), "int8": (0.001, 1e-11)}
    found = {one.choice: one for one in predict(AXES, losses, works, costs)}
    assert len(found) == 32
    assert found[whole(AXES)].loss == 0.0
    least = Choice(
        layers=24, intermediate_size=1024, kv_heads=2, budget_tokens=24, precision="int8"
    )
    assert found[least].loss == pytest.approx(0.091)
    assert found[least].seconds == pytest.approx(0.001 + 1e-11 * works[least])
    kept = front(list(found.values()))
    assert kept[0].choice == least
    assert [one.loss for one in kept] == sorted((one.loss for one in kept), reverse=True)
    # What the start loses, as a ranker of full texts does on summaries, is lost once.
    base = dict.fromkeys(losses, 0.06)
    below = {one.choice: one for one in predict(AXES, base, works, costs, 0.05)}
    assert below[whole(AXES)].loss == 0.05
    assert below[least].loss == pytest.approx(0.05 + 5 * 0.01)
    for one in found.values():
        assert any(two.seconds <= one.seconds and two.loss <= one.loss for two in kept)


def test_a_few_are_tried_and_the_better_half_stays() -> None:
    many = [some(number, 10.0 - number) for number in range(10)]
    assert [one.seconds for one in shortlist(many, 4)] == [0, 3, 6, 9]
    assert shortlist(many[:3], 4) == many[:3]
    cheap, dear, lossy, lossiest = some(1, 0.01), some(2, 0.0), some(0.5, 0.02), some(0.1, 0.5)
    assert survivors([lossiest, dear, lossy, cheap], 0.01) == [cheap, dear]
    assert survivors([lossiest, lossy, dear], 0.001) == [dear]
    assert survivors([lossiest, lossy], 0.01) == [lossy]


def test_widths_by_layer_spend_neurons_where_they_count() -> None:
    errors = {8: [0.0, 0.0, 0.0], 6: [0.1, 0.4, 0.1], 4: [0.2, 1.0, 0.2]}
    found = uneven_widths(errors, 6)
    assert found.widths == (4, 8, 6)
    assert sum(found.widths) == 3 * 6
    assert found.even_error == pytest.approx(0.6)
    assert found.error == pytest.approx(0.3)
    # Layers that are alike gain nothing, and the narrowest width leaves nothing to give.
    assert uneven_widths({8: [0.0] * 2, 6: [0.1] * 2, 4: [0.3] * 2}, 6).widths == (6, 6)
    assert uneven_widths(errors, 4).widths == (4, 4, 4)


@pytest.mark.parametrize("seed", range(5))
def test_widths_by_layer_are_the_best_there_are(seed: int) -> None:
    """Widening greedily once left more than even widths do."""
    rng = np.random.default_rng(seed)
    sizes = [128, 896, 1088, 1152]
    falls = np.sort(rng.exponential(size=(3, 4)), axis=0)[::-1].cumsum(axis=0)[::-1]
    errors = {size: list(row) for size, row in zip(sizes, [*falls, np.zeros(4)], strict=True)}
    found = uneven_widths(errors, 896)
    every = [
        sum(errors[size][layer] for layer, size in enumerate(widths))
        for widths in itertools.product(sizes, repeat=4)
        if sum(widths) <= 4 * 896
    ]
    assert found.error == pytest.approx(min(every))
    assert found.error <= found.even_error

"""The search for the cheapest compression within a loss: what is tried, and what is predicted.

Axes are measured one by one first. A choice's loss is then predicted as the sum of its axes'
losses, its cost as a line in the multiply-adds of an item, and of the choices that no other beats
in both only a few are recovered and measured (successive halving, arXiv 1502.07943). Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from itertools import product
from typing import Any

import numpy as np

from slmrank.model.checkpoint import Geometry


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One combination. `precision`: the engine's."""

    layers: int
    intermediate_size: int
    kv_heads: int
    budget_tokens: int
    precision: str

    @property
    def words(self) -> str:
        return (
            f"{self.layers} layers of {self.intermediate_size} neurons and {self.kv_heads} key "
            f"heads, {self.budget_tokens} tokens, {self.precision}"
        )


AXES = tuple(field.name for field in fields(Choice))
Axes = Mapping[str, Sequence[Any]]  # values by axis, the one that costs most first


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """A choice with its predicted seconds an item and loss of NDCG@10."""

    choice: Choice
    seconds: float
    loss: float


def whole(axes: Axes) -> Choice:
    """The choice that compresses nothing."""
    return Choice(**{name: axes[name][0] for name in AXES})


def combinations(axes: Axes) -> list[Choice]:
    """Every choice."""
    every = product(*(axes[name] for name in AXES))
    return [Choice(**dict(zip(AXES, values, strict=True))) for values in every]


def one_by_one(axes: Axes) -> list[Choice]:
    """Every other value of every axis, alone."""
    start = whole(axes)
    return [replace(start, **{name: value}) for name in AXES for value in axes[name][1:]]


def work_of(choice: Choice, geometry: Geometry, item_tokens: float) -> float:
    """Multiply-adds of the linear layers for one item of so many tokens."""
    narrow = choice.kv_heads * geometry.head_dim
    rows = narrow * geometry.heads // geometry.kv_heads
    layer = 2 * geometry.hidden_size * (rows + narrow)
    layer += 3 * geometry.hidden_size * choice.intermediate_size
    return float(choice.layers * layer * item_tokens)


def fit_cost(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(seconds, seconds per multiply-add) of a line through (multiply-adds, seconds) of measured
    items; neither is negative. One point gives a line through zero."""
    work, seconds = np.array(points).T
    if len(set(work.tolist())) > 1:
        slope, start = np.polyfit(work, seconds, 1)
        if slope > 0 and start >= 0:
            return float(start), float(slope)
    return 0.0, float((work * seconds).sum() / (work * work).sum())


def predict(
    axes: Axes,
    losses: Mapping[Choice, float],
    works: Mapping[Choice, float],
    costs: Mapping[str, tuple[float, float]],
    base: float = 0.0,
) -> list[Predicted]:
    """Every combination. `losses` by the choices of `one_by_one`, `works` by all, `costs` by
    precision; `base` is what the start loses against the reference, and every choice with it. A
    gain on one axis is noise, or another axis's: it pays for nothing."""
    start = whole(axes)
    found = []
    for choice in combinations(axes):
        alone = [
            replace(start, **{name: value})
            for name, value in zip(AXES, astuple(choice), strict=True)
            if value != getattr(start, name)
        ]
        constant, slope = costs[choice.precision]
        found.append(
            Predicted(
                choice=choice,
                seconds=constant + slope * works[choice],
                loss=base + sum(max(losses[one] - base, 0.0) for one in alone),
            )
        )
    return found


def front(predicted: Sequence[Predicted]) -> list[Predicted]:
    """Those that no other one beats in both, the cheapest first."""
    best, kept = float("inf"), []
    for one in sorted(predicted, key=lambda one: (one.seconds, one.loss, astuple(one.choice))):
        if one.loss < best:
            kept.append(one)
            best = one.loss
    return kept


def shortlist(candidates: Sequence[Predicted], count: int) -> list[Predicted]:
    """So many of them, spread evenly from the cheapest on; the last one compresses least."""
    if len(candidates) <= count:
        return list(candidates)
    places = np.linspace(0, len(candidates) - 1, count).round().astype(int)
    return [candidates[place] for place in dict.fromkeys(places.tolist())]


def survivors(measured: Sequence[Predicted], max_loss: float) -> list[Predicted]:
    """The better half, at least one: those within the limit before the others, the cheapest of
    these first, of the others those that lose least."""
    order = sorted(
        measured,
        key=lambda one: (one.loss > max_loss, one.seconds if one.loss <= max_loss else one.loss),
    )
    return order[: max(1, len(order) // 2)]


@dataclass(frozen=True, kw_only=True)
class Uneven:
    """MLPs of one width in every layer against widths by layer with as many neurons in all: the
    sum of the layers' relative errors on calibration tokens."""

    width: int
    widths: tuple[int, ...]
    even_error: float
    error: float


def uneven_widths(errors: Mapping[int, Sequence[float]], width: int) -> Uneven:
    """The best widths by layer that keep `width` neurons on average. `errors`: of every layer by
    the widths that were measured, whole width (no error) among them; only these are given out.

    Exact: of every number of neurons in the layers so far, the least error (a knapsack).
    """
    most, count = width * len(errors[width]), len(errors[width])
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for layer in range(count):
        wider: dict[int, tuple[float, tuple[int, ...]]] = {}
        for used, (error, widths) in best.items():
            for size in errors:
                one = (error + errors[size][layer], (*widths, size))
                if used + size <= most and one < wider.get(used + size, (math.inf, ())):
                    wider[used + size] = one
        best = wider
    error, widths = min(best.values())
    return Uneven(
        width=width, widths=widths, even_error=float(sum(errors[width])), error=float(error)
    )

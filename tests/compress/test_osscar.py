"""OSSCAR against brute force and closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from slmrank.compress.osscar import damped, prune_neurons, refit, relative_error
from slmrank.errors import SpecError


def problem(neurons: int, outputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(200, neurons)) @ rng.normal(size=(neurons, neurons))
    return mixed, mixed.T @ mixed, rng.normal(size=(neurons, outputs))


def test_the_refit_is_least_squares() -> None:
    inputs, gram, weights = problem(8, 3)
    kept = np.array([0, 2, 5])
    expected, *_ = np.linalg.lstsq(inputs[:, kept], inputs @ weights, rcond=None)
    assert np.allclose(refit(gram, weights, kept), expected, atol=1e-6)


def test_dropping_one_finds_the_best_one() -> None:
    for seed in range(5):
        _, gram, weights = problem(7, 3, seed)
        hessian = damped(gram, 1e-9)
        errors = {
            kept: relative_error(
                gram, weights, np.array(kept), refit(hessian, weights, np.array(kept))
            )
            for kept in itertools.combinations(range(7), 6)
        }
        pruned = prune_neurons(gram, weights, 6, damping=1e-9, per_round=1)
        assert tuple(pruned.kept) == min(errors, key=errors.__getitem__)
        assert pruned.relative_error == pytest.approx(min(errors.values()), rel=1e-4)


def test_greedy_is_near_the_best_subset() -> None:
    _, gram, weights = problem(8, 4, 3)
    hessian = damped(gram, 1e-9)
    best = min(
        relative_error(gram, weights, np.array(kept), refit(hessian, weights, np.array(kept)))
        for kept in itertools.combinations(range(8), 4)
    )
    found = prune_neurons(gram, weights, 4, damping=1e-9, per_round=1).relative_error
    assert best <= found <= 1.5 * best


def test_the_downdate_agrees_with_solving_again() -> None:
    """After the last round the greedy weights equal the closed form on the same support."""
    _, gram, weights = problem(40, 6, 1)
    pruned = prune_neurons(gram, weights, 20, per_round=4)
    assert np.allclose(pruned.weights, refit(damped(gram, 0.01), weights, pruned.kept))
    assert len(np.unique(pruned.kept)) == 20


def test_refit_beats_no_refit_and_osscar_beats_both() -> None:
    _, gram, weights = problem(64, 16, 2)
    error = {
        method: prune_neurons(gram, weights, 40, method=method).relative_error  # type: ignore[arg-type]
        for method in ("osscar", "magnitude_refit", "magnitude")
    }
    assert error["osscar"] < error["magnitude_refit"] < error["magnitude"]


def test_keeping_all_changes_nothing() -> None:
    _, gram, weights = problem(10, 4)
    pruned = prune_neurons(gram, weights, 10, damping=1e-12)
    assert np.allclose(pruned.weights, weights)
    assert pruned.relative_error == pytest.approx(0, abs=1e-12)


def test_dead_neurons_go_first() -> None:
    inputs, _, weights = problem(10, 4)
    inputs[:, [3, 7]] = 0
    pruned = prune_neurons(inputs.T @ inputs, weights, 8, per_round=1)
    assert set(range(10)) - set(pruned.kept.tolist()) == {3, 7}


@pytest.mark.parametrize("keep", [0, 11])
def test_impossible_counts_are_refused(keep: int) -> None:
    _, gram, weights = problem(10, 4)
    with pytest.raises(SpecError, match=f"cannot keep {keep} of 10"):
        prune_neurons(gram, weights, keep)


def test_a_group_costs_what_dropping_it_costs() -> None:
    """Of 5 groups of 3 the greedy pass drops the one whose loss is least, by trying all."""
    rng = np.random.default_rng(4)
    inputs = rng.normal(size=(200, 15)) @ rng.normal(size=(15, 15))
    weights = rng.normal(size=(15, 4))
    gram = inputs.T @ inputs
    found = prune_neurons(gram, weights, 4, per_round=1, group=3, damping=1e-9)
    errors = {}
    for left_out in range(5):
        kept = np.array([n for n in range(15) if n // 3 != left_out])
        fitted = refit(gram + 1e-9 * np.eye(15), weights, kept)
        errors[left_out] = relative_error(gram, weights, kept, fitted)
    best = min(errors, key=lambda one: errors[one])
    assert best not in found.kept // 3
    assert found.relative_error == pytest.approx(errors[best], rel=1e-5)


def test_a_ridge_below_the_rounding_is_told() -> None:
    gram = np.ones((8, 8)) - 1e-3 * np.eye(8)  # as rounding leaves it: not positive
    with pytest.raises(SpecError, match="prune.damping is too small"):
        prune_neurons(gram, np.ones((8, 2)), 4, damping=1e-9)

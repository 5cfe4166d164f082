"""Metrics against hand-made numbers and scikit-learn's formulas."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slmrank.errors import DataError
from slmrank.evaluate.metrics import (
    Listing,
    align,
    auc_interval,
    auc_top_against_zero,
    ece_interval,
    mean_abs_dp,
    mean_ndcg,
    mrr_interval,
    ndcg_at_10,
    ndcg_interval,
    order_interval,
    pair_order_agreement,
    reciprocal_rank,
    reliability,
    resamples,
)
from slmrank.evaluate.page import shown
from slmrank.evaluate.table import ScoredRow, quality_table
from slmrank.spec.train import EvaluateSpec


def listing(scores: list[float], grades: list[int]) -> Listing:
    return Listing(scores=np.array(scores, float), grades=np.array(grades, float))


def test_ndcg_by_hand() -> None:
    found = ndcg_at_10(listing([0.2, 0.9, 0.5], [4, 0, 1]))
    best = 15 + 1 / math.log2(3)
    assert found == pytest.approx((1 / math.log2(3) + 15 / 2) / best)


def test_ndcg_of_ties_does_not_depend_on_order() -> None:
    a = ndcg_at_10(listing([0.5, 0.5, 0.5], [4, 0, 0]))
    b = ndcg_at_10(listing([0.5, 0.5, 0.5], [0, 0, 4]))
    assert a == pytest.approx(b)
    assert a < 1


def test_only_the_first_ten_count() -> None:
    assert ndcg_at_10(listing([*range(20, 9, -1)], [0] * 10 + [4])) == 0


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4)), min_size=1, max_size=25))
def test_ndcg_matches_scikit_learn(pairs: list[tuple[float, int]]) -> None:
    from sklearn.metrics import ndcg_score

    scores, grades = [p[0] for p in pairs], [p[1] for p in pairs]
    found = ndcg_at_10(listing(scores, grades))
    if not any(grades):
        assert math.isnan(found)
    elif len(pairs) > 1:
        gains = [[2.0**grade - 1 for grade in grades]]
        assert found == pytest.approx(ndcg_score(gains, [scores], k=10), abs=1e-9)


def test_auc_counts_ties_half_and_ignores_middle_grades() -> None:
    assert auc_top_against_zero([listing([0.9, 0.1, 0.5], [4, 0, 2])]) == 1.0
    assert auc_top_against_zero([listing([0.5], [4]), listing([0.5, 0.1], [0, 0])]) == 0.75
    assert math.isnan(auc_top_against_zero([listing([0.5], [4])]))


def test_auc_matches_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    scores, grades = rng.integers(0, 20, 200) / 20, rng.choice([0, 4], 200)
    found = auc_top_against_zero([listing(list(scores), list(grades))])
    assert found == pytest.approx(roc_auc_score(grades == 4, scores))


def test_the_interval_of_an_auc_is_that_of_drawing_queries_again() -> None:
    rng = np.random.default_rng(2)
    grades = rng.choice([0, 0, 4], (60, 8))
    lists = [listing(list(one / 4 + rng.normal(size=8)), list(one)) for one in grades]
    found = auc_interval(lists, resamples(60, 300, 0))
    assert found.value == auc_top_against_zero(lists)
    drawn = [
        auc_top_against_zero([lists[place] for place in rng.integers(0, 60, 60)])
        for _ in range(1000)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert found.low < found.value < found.high
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_paired_differences_are_those_of_the_figures() -> None:
    rng = np.random.default_rng(3)
    grades = [np.array([0.0, 4, 2, 0, 1, 4]) for _ in range(30)]
    good, bad = (
        [Listing(scores=noise * rng.random(6) + one / 4, grades=one) for one in grades]
        for noise in (0.5, 3.0)
    )
    draws = resamples(30, 400, 1)
    for figure in (order_interval, auc_interval):
        found = figure(bad, draws, good)
        expected = figure(bad, draws).value - figure(good, draws).value
        assert found.value == pytest.approx(expected)
        assert found.low < found.value < found.high < 0
        same = figure(good, draws, good)
        assert (same.low, same.value, same.high) == (0, 0, 0)


def test_the_figures_by_kind_are_the_rows_own() -> None:
    best = [
        replace(listing([0.9, 0.1, 0.0], [4, 0, 0]), query=kind, job_ids=tuple("abc"), kind=kind)
        for kind in ("title", "duty")
    ]
    worst = [replace(one, scores=1 - one.scores) for one in best]
    first, last = (
        ScoredRow(name=name, text="full", listings=lists)
        for name, lists in (("best", best), ("worst", worst))
    )
    above, below = quality_table([first, last], first, EvaluateSpec(bootstrap=100))
    assert list(above.kinds) == list(below.kinds) == ["duty", "title"]
    for kind in ("duty", "title"):
        for row, ndcg, auc in ((above, 1, 1), (below, 0.5, 0)):
            of = row.kinds[kind]
            assert (of.queries, of.auc.value) == (1, auc)
            assert of.ndcg10.value == pytest.approx(ndcg)
            assert math.isnan(of.ndcg10.low), "one query has no interval"


def test_a_kinds_interval_is_that_of_its_queries_alone() -> None:
    rng = np.random.default_rng(3)
    lists = [
        replace(
            listing(rng.random(8).tolist(), rng.integers(0, 5, 8).tolist()),
            query=str(place),
            job_ids=tuple("abcdefgh"),
            kind=("title", "duty")[place % 2],
        )
        for place in range(60)
    ]
    row = ScoredRow(name="r", text="full", listings=lists)
    [found] = quality_table([row], row, EvaluateSpec(bootstrap=2000))
    alone = ndcg_interval(lists[::2], resamples(30, 2000, 1))
    of = found.kinds["title"]
    assert of.queries == 30
    assert of.ndcg10.value == pytest.approx(alone.value)
    # Of the whole set's resamples some hold more of a kind than others: as wide, but for chance.
    assert of.ndcg10.high - of.ndcg10.low == pytest.approx(alone.high - alone.low, rel=0.15)


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    rng = np.random.default_rng(1)
    a = [listing(list(rng.random(12)), list(rng.integers(0, 5, 12))) for _ in range(60)]
    b = [
        Listing(scores=one.scores + rng.normal(scale=0.01, size=12), grades=one.grades) for one in a
    ]
    draws = resamples(60, 500, 0)
    difference = ndcg_interval(a, draws, b)
    single = ndcg_interval(a, draws)
    assert difference.low <= 0 <= difference.high
    assert difference.high - difference.low < 0.5 * (single.high - single.low)
    assert single.value == pytest.approx(mean_ndcg(a))


def test_dp_and_order() -> None:
    a, b = [listing([0.9, 0.1, 0.12], [4, 0, 0])], [listing([0.1, 0.9, 0.12], [4, 0, 0])]
    assert mean_abs_dp(a, b) == pytest.approx(1.6 / 3)
    assert pair_order_agreement(a, a, 0.05) == 1
    assert pair_order_agreement(a, b, 0.05) == 0


def test_a_flat_model_has_no_order() -> None:
    """It used to count as perfect agreement, so a model that ranks nothing passed every gate."""
    flat = [listing([0.5, 0.5, 0.52], [4, 0, 0])]
    assert math.isnan(pair_order_agreement(flat, flat, 0.05))


def named(query: str, jobs: str, scores: list[float]) -> Listing:
    return Listing(
        scores=np.array(scores), grades=np.zeros(len(scores)), query=query, job_ids=tuple(jobs)
    )


def test_rows_are_paired_by_query_and_job() -> None:
    reference = [named("a", "xy", [1, 2]), named("b", "z", [3])]
    other = [named("b", "z", [30]), named("a", "yx", [20, 10])]
    assert [one.scores.tolist() for one in align(other, reference)] == [[10, 20], [30]]
    for wrong in (other[:1], [*other, named("c", "z", [1])], [other[0], named("a", "xw", [1, 2])]):
        with pytest.raises(DataError, match="row"):
            align(wrong, reference)


def test_reciprocal_rank_is_of_the_best_grade_and_splits_ties() -> None:
    assert reciprocal_rank(listing([0.9, 0.8, 0.1], [2, 4, 4])) == 1 / 2
    for scores, grades in (
        ([0.5, 0.5, 0.1], [3, 0, 0]),
        ([0.5] * 6, [4, 4, 4, 0, 0, 0]),
        ([0.9, 0.5, 0.5, 0.5, 0.1], [1, 4, 0, 4, 4]),
    ):
        orders = [
            sorted(order, key=lambda place: -scores[place])
            for order in permutations(range(len(scores)))
        ]
        best = [grade == max(grades) for grade in grades]
        ranks = [next(n for n, at in enumerate(order, 1) if best[at]) for order in orders]
        assert reciprocal_rank(listing(scores, grades)) == pytest.approx(
            np.mean([1 / rank for rank in ranks])
        )
    assert math.isnan(reciprocal_rank(listing([0.5, 0.4], [0, 0])))


def test_order_counts_pairs_of_different_grade_alone() -> None:
    lists = [listing([0.9, 0.5, 0.5], [4, 4, 0]), listing([0.1, 0.2], [2, 1])]
    found = order_interval(lists, resamples(2, 400, 0))
    assert found.value == pytest.approx((1 + 0.5 + 0) / 3)
    assert found.low == 0
    flat = order_interval([listing([0.5], [3])], resamples(1, 100, 0))
    assert math.isnan(flat.value)


def test_a_resample_without_anything_to_count_does_not_count() -> None:
    one, two = listing([0.9, 0.1], [4, 0]), listing([0.7, 0.2], [3, 0])
    empty = [listing([0.5, 0.4], [0, 0]), listing([0.3], [0])]
    for figure in (order_interval, mrr_interval):
        found = figure([one, two, *empty], resamples(4, 200, 0))
        assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
        alone = figure([one, *empty], resamples(3, 200, 0))
        assert alone.value == 1.0
        assert math.isnan(alone.low)  # of one query there is no interval
        assert shown(alone) == "1.000"


def test_intervals_of_a_calibration_error_hold_the_truth() -> None:
    """Of calibrated rankers the truth is 0 and every figure above it: with the bias of the draws
    taken off once, most intervals lay above the truth."""
    rng = np.random.default_rng(5)
    held = 0
    for seed in range(40):
        p = rng.uniform(size=(60, 16))
        lists = [listing(list(one), list(4 * (rng.uniform(size=16) < one))) for one in p]
        held += ece_interval(lists, resamples(60, 200, seed)).low < 0.005
    assert held >= 20


def test_the_interval_of_a_calibration_error_holds_its_figure() -> None:
    """Drawing queries again adds to the error: one in nine intervals lay above their figure."""
    rng = np.random.default_rng(1)
    for seed in range(20):
        p = rng.uniform(size=(60, 8))
        lists = [listing(list(one), list(4 * (rng.uniform(size=8) < one))) for one in p]
        found = ece_interval(lists, resamples(60, 200, seed))
        assert 0 <= found.low <= found.value <= found.high


def test_calibration_error_by_hand() -> None:
    """0.3 is right about a target of 0.25 by 0.05, 0.9 about 0 by 0.9."""
    lists = [listing([0.3, 0.9], [1, 0])]
    assert ece_interval(lists, resamples(1, 100, 0)).value == pytest.approx((0.05 + 0.9) / 2)
    assert reliability(lists) == [(0.3, 0.25, 1), (0.9, 0.0, 1)]
    # A judged p of 0.62 is no 0.5, which is its grade's.
    judged = Listing(
        scores=np.full(8, 0.62),
        grades=np.full(8, 2.0),
        targets=np.full(8, 0.62),
        job_ids=tuple("abcdefgh"),
    )
    assert ece_interval([judged], resamples(1, 10, 0)).value == pytest.approx(0, abs=1e-12)
    [moved] = align([judged], [replace(judged, job_ids=tuple("hgfedcba"))])
    assert moved.wanted.tolist() == judged.wanted.tolist()
    rng = np.random.default_rng(3)
    p = rng.random(20_000)
    honest = listing(list(p), list(4 * (rng.random(20_000) < p)))
    assert ece_interval([honest], resamples(1, 100, 0)).value < 0.015


def test_order_counts_each_pair_once() -> None:
    """Against the definition, pair by pair, with ties and a job without a score."""
    rng = np.random.default_rng(2)
    for size in (1, 2, 17, 40):
        one = listing(list(rng.integers(0, 6, size) / 5), list(rng.integers(0, 5, size)))
        if size == 17:
            one.scores[3] = math.nan
        pairs = [(i, j) for i in range(size) for j in range(size) if one.grades[i] > one.grades[j]]
        won = sum(
            (one.scores[i] > one.scores[j]) + (one.scores[i] == one.scores[j]) / 2 for i, j in pairs
        )
        found = order_interval([one, one], resamples(2, 10, 0)).value
        assert found == pytest.approx(won / len(pairs) if pairs else math.nan, nan_ok=True)

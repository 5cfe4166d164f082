"""Ranking quality: NDCG@10, AUC of the top grade against 0, reciprocal rank, pair order, mean |dp|,
calibration error, and bootstrap intervals.

Intervals resample queries (10,000s of pairs of one query are not independent); two systems are
compared on the same resamples, which is the paired bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt

from slmrank.data.records import MAX_GRADE
from slmrank.errors import DataError

Vector = npt.NDArray[np.float64]
Draws = npt.NDArray[np.float32]
AT_ONCE = 1 << 24  # draws of queries that are summed together: 128 MB


@dataclass(frozen=True, kw_only=True)
class Listing:
    """One query's items: scores and grades, both [N], and whose they are. `targets` are the p that
    were judged, where these are more exact than grade / 4."""

    scores: Vector
    grades: Vector
    targets: Vector | None = None
    query: str = ""
    job_ids: tuple[str, ...] = ()
    kind: str = ""

    @property
    def wanted(self) -> Vector:
        """The p that each item should have, [N]."""
        found: Vector = self.grades / MAX_GRADE if self.targets is None else self.targets
        return found


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __neg__(self) -> Interval:
        return Interval(value=-self.value, low=-self.high, high=-self.low)


def ndcg_at_10(listing: Listing) -> float:
    """NDCG@10 with gain 2^grade - 1; ties share their mean gain; NaN when all grades are 0."""
    gains = 2.0**listing.grades - 1.0
    discounts = 1.0 / np.log2(np.arange(len(gains)) + 2.0)
    discounts[10:] = 0.0
    ideal = float(np.sum(np.sort(gains)[::-1] * discounts))
    if ideal == 0.0:
        return math.nan
    order = np.argsort(-listing.scores, kind="stable")
    ranked = listing.scores[order]
    tied = gains[order]
    for start in np.flatnonzero(np.diff(ranked, prepend=np.inf) != 0):
        same = ranked == ranked[start]
        tied[same] = tied[same].mean()
    return float(np.sum(tied * discounts)) / ideal


def mean_ndcg(listings: Sequence[Listing]) -> float:
    """Mean NDCG@10 over the queries that have a relevant item; NaN where none has."""
    known = [value for one in listings if not math.isnan(value := ndcg_at_10(one))]
    return float(np.mean(known)) if known else math.nan


def auc_top_against_zero(listings: Sequence[Listing]) -> float:
    """P(a grade-4 pair outscores a grade-0 pair), pooled over queries; ties count half."""
    return _auc(listings)(np.ones(len(listings)))


def mean_abs_dp(a: Sequence[Listing], b: Sequence[Listing]) -> float:
    """Mean |p_a - p_b| over the same pairs."""
    left = np.concatenate([one.scores for one in a])
    right = np.concatenate([one.scores for one in b])
    return float(np.mean(np.abs(left - right)))


def resamples(queries: int, count: int, seed: int) -> Draws:
    """How often each query is in each bootstrap resample, [count, queries]."""
    rng = np.random.default_rng(seed)
    drawn = np.empty((count, queries), np.float32)
    for one in drawn:
        one[:] = np.bincount(rng.integers(0, queries, queries), minlength=queries)
    return drawn


def _sums(values: Vector, draws: Draws) -> Vector:
    """Sums of values [queries, ...] over the queries of each resample, [count, ...]."""
    parts = np.array_split(draws, max(1, math.ceil(draws.size / AT_ONCE)))
    return np.concatenate([np.tensordot(part.astype(float), values, 1) for part in parts])


def ndcg_interval(
    listings: Sequence[Listing], draws: Draws, less: Sequence[Listing] | None = None
) -> Interval:
    """Mean NDCG@10 with its interval; minus that of `less` on the same queries, paired."""
    values = np.array([ndcg_at_10(one) for one in listings])
    if less is not None:
        values -= [ndcg_at_10(one) for one in less]
    return _mean_interval(values, draws)


def reciprocal_rank(listing: Listing) -> float:
    """1 / rank of the first job of the listing's highest grade, its mean over all orders of tied
    jobs; NaN when all grades are 0."""
    best = listing.grades.max(initial=0)
    if best == 0:
        return math.nan
    top = listing.scores[listing.grades == best].max()
    rivals = listing.scores[listing.grades < best]
    above, tied = int(np.sum(rivals > top)), int(np.sum(rivals == top))
    firsts = int(np.sum(listing.scores[listing.grades == best] == top))
    mean, left = 0.0, 1.0  # left: the chance that the tied places so far are rivals'
    for place in range(tied + 1):
        waiting = firsts + tied - place
        mean += left * firsts / waiting / (above + place + 1)
        left *= (tied - place) / waiting
    return mean


def mrr_interval(listings: Sequence[Listing], draws: Draws) -> Interval:
    """Mean reciprocal rank with its interval."""
    return _mean_interval(np.array([reciprocal_rank(one) for one in listings]), draws)


def order_interval(
    listings: Sequence[Listing], draws: Draws, less: Sequence[Listing] | None = None
) -> Interval:
    """Share of same-query pairs of different grade that the scores order as the grades do, ties
    counting half, with its interval; minus that of `less` over the same pairs, paired."""
    right, total = _ordered(listings)
    if less is not None:
        right = right - _ordered(less)[0]
    return _share_interval(right, total, draws)


def _ordered(listings: Sequence[Listing]) -> tuple[Vector, Vector]:
    """By query: pairs of different grade in the right order, and all of them."""
    right, total = np.zeros(len(listings)), np.zeros(len(listings))
    for place, one in enumerate(listings):
        of_grade = [one.scores[one.grades == grade] for grade in np.unique(one.grades)]
        known = [np.sort(scores[~np.isnan(scores)]) for scores in of_grade]
        for (less, below), (more, above) in combinations(zip(of_grade, known, strict=True), 2):
            won = np.searchsorted(below, above, "left") + np.searchsorted(below, above, "right")
            right[place] += won.sum() / 2
            total[place] += len(less) * len(more)
    return right, total


def _share_interval(parts: Vector, total: Vector, draws: Draws) -> Interval:
    """The sum of parts over that of totals. A resample without anything to count does not count."""
    sums, counts = _sums(parts, draws), _sums(total, draws)
    sampled = np.where(counts > 0, sums / np.maximum(counts, 1), math.nan)
    value = float(parts.sum() / total.sum()) if total.any() else math.nan
    return _interval(value, sampled, total > 0)


def _mean_interval(values: Vector, draws: Draws) -> Interval:
    """The mean over queries that have a value, with its interval."""
    known = ~np.isnan(values)
    return _share_interval(np.where(known, values, 0.0), known.astype(float), draws)


def reliability(listings: Sequence[Listing]) -> list[tuple[float, float, int]]:
    """(mean p, mean judged p, pairs) of every tenth of [0, 1] that holds a pair."""
    points = []
    for summed_p, summed_target, count in _tenths(listings).sum(axis=0):
        if count:
            points.append((float(summed_p / count), float(summed_target / count), int(count)))
    return points


def ece_interval(listings: Sequence[Listing], draws: Draws) -> Interval:
    """Expected calibration error of p against what was judged, a target or grade / 4, over ten bins
    (Guo et al., ICML 2017), with its interval. Scores must be probabilities. Drawing queries adds
    to this error, once in the figure and once more in the draws of it: both are taken off (of
    calibrated rankers on 60 queries 62 of 100 intervals held the truth, with one taken off 9), and
    the figure, which keeps the first, lies inside."""
    cells = _tenths(listings)

    def error(summed: Vector) -> Vector:
        found: Vector = np.abs(summed[..., 0] - summed[..., 1]).sum(-1) / summed[..., 2].sum(-1)
        return found

    value = float(error(cells.sum(axis=0)))
    sampled = error(_sums(cells, draws))
    sampled = np.maximum(sampled - 2 * (sampled.mean() - value), 0.0)
    found = _interval(value, sampled, np.ones(len(listings), dtype=bool))
    if math.isnan(found.low):
        return found
    return replace(found, low=min(found.low, value), high=max(found.high, value))


def _tenths(listings: Sequence[Listing]) -> Vector:
    """Sums of p and of judged p, and the number of pairs, by query and tenth: [N, 10, 3]."""
    cells = np.zeros((len(listings), 10, 3))
    for place, one in enumerate(listings):
        tenth = np.clip((one.scores * 10).astype(int), 0, 9)
        values = np.stack([one.scores, one.wanted, np.ones(len(tenth))], axis=1)
        np.add.at(cells[place], tenth, values)
    return cells


def auc_interval(
    listings: Sequence[Listing], draws: Draws, less: Sequence[Listing] | None = None
) -> Interval:
    """AUC with its interval; minus that of `less` over the same pairs, paired."""
    ours, theirs = _auc(listings), _auc(less) if less is not None else None

    def auc(times: Vector) -> float:
        return ours(times) - (theirs(times) if theirs is not None else 0.0)

    counted = np.array([np.isin(one.grades, (0, MAX_GRADE)).any() for one in listings])
    sampled = np.array([auc(times.astype(float)) for times in draws])
    return _interval(auc(np.ones(len(listings))), sampled, counted)


def _auc(listings: Sequence[Listing]) -> Callable[[Vector], float]:
    """The AUC where each query is there so many times; all is sorted once."""
    scores = np.concatenate([one.scores for one in listings])
    grades = np.concatenate([one.grades for one in listings])
    query = np.repeat(np.arange(len(listings)), [len(one.scores) for one in listings])
    top, zero = grades == MAX_GRADE, grades == 0
    order = np.argsort(scores[zero], kind="stable")
    ordered = scores[zero][order]
    below = np.searchsorted(ordered, scores[top], side="left")
    upto = np.searchsorted(ordered, scores[top], side="right")

    def auc(times: Vector) -> float:
        mass = np.concatenate([[0.0], np.cumsum(times[query[zero][order]])])
        tops = times[query[top]]
        total = tops.sum() * mass[-1]
        return float(tops @ (mass[below] + mass[upto]) / 2 / total) if total else math.nan

    return auc


def pair_order_agreement(a: Sequence[Listing], b: Sequence[Listing], margin: float) -> float:
    """Share of same-query pairs that b orders as a does, among those that a sets apart by more
    than `margin`; NaN when there are none, so that a flat model is not taken for a good one."""
    agree = total = 0
    for left, right in zip(a, b, strict=True):
        gap = left.scores[:, None] - left.scores[None, :]
        other = right.scores[:, None] - right.scores[None, :]
        apart = gap > margin
        total += int(apart.sum())
        agree += int((apart & (other > 0)).sum())
    return agree / total if total else math.nan


def align(listings: Sequence[Listing], reference: Sequence[Listing]) -> list[Listing]:
    """`listings` in the order of the reference's queries and jobs.

    Raises DataError when they do not hold the same pairs: figures of other queries compare nothing.
    """
    by_query = {listing.query: listing for listing in listings}
    aligned = []
    for wanted in reference:
        found = by_query.pop(wanted.query, None)
        if found is None or sorted(found.job_ids) != sorted(wanted.job_ids):
            raise DataError(
                f"query {wanted.query!r} has other jobs in one row than in another, or is missing",
                "score all rows on the same data: `control evaluate` again",
            )
        place = {job_id: index for index, job_id in enumerate(found.job_ids)}
        order = [place[job_id] for job_id in wanted.job_ids]
        aligned.append(
            replace(
                found,
                scores=found.scores[order],
                grades=found.grades[order],
                targets=found.wanted[order],
                job_ids=wanted.job_ids,
            )
        )
    if by_query:
        raise DataError(
            f"a row has {len(by_query)} queries more, such as {next(iter(by_query))!r}",
            "score all rows on the same data: `control evaluate` again",
        )
    return aligned


def _interval(value: float, sampled: Vector, counted: npt.NDArray[np.bool_]) -> Interval:
    """Of one query that counts there is no interval."""
    if counted.sum() < 2 or not np.isfinite(sampled).any():
        return Interval(value=value, low=math.nan, high=math.nan)
    low, high = np.nanpercentile(sampled, [2.5, 97.5])
    return Interval(value=value, low=float(low), high=float(high))

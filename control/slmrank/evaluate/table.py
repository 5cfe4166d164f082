"""The quality table: one row per stage, on the same queries, with paired intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slmrank.data.records import MAX_GRADE
from slmrank.errors import DataError
from slmrank.evaluate.metrics import (
    Draws,
    Interval,
    Listing,
    align,
    auc_interval,
    ece_interval,
    mean_abs_dp,
    mrr_interval,
    ndcg_interval,
    order_interval,
    resamples,
)
from slmrank.spec.train import EvaluateSpec


@dataclass(frozen=True, kw_only=True)
class ScoredRow:
    """One row's input: its listings, and sizes when it has a model."""

    name: str
    text: str
    listings: Sequence[Listing]
    parameters: int | None = None
    prompt_tokens: float | None = None
    probabilistic: bool = True


@dataclass(frozen=True, kw_only=True)
class KindFigures:
    """The figures of one kind of query, on the row's own resamples."""

    queries: int
    ndcg10: Interval
    auc: Interval


@dataclass(frozen=True, kw_only=True)
class QualityRow:
    """One row of the table; deltas and `mean_abs_dp` are against the reference row, `ece` is of
    rows whose scores are probabilities, `kinds` has the figures by kind of query."""

    name: str
    text: str
    queries: int
    pairs: int
    parameters: int | None
    prompt_tokens: float | None
    ndcg10: Interval
    auc: Interval
    delta_ndcg10: Interval | None
    delta_auc: Interval | None
    mean_abs_dp: float | None
    mrr: Interval
    order: Interval
    delta_order: Interval | None
    ece: Interval | None
    kinds: dict[str, KindFigures]


def quality_table(
    rows: Sequence[ScoredRow], reference: ScoredRow, spec: EvaluateSpec
) -> list[QualityRow]:
    """Metrics of rows over the same queries; `reference` is the row to compare with.

    Raises DataError when a row was scored on other pairs.
    """
    draws = resamples(len(reference.listings), spec.bootstrap, spec.seed)
    return [_row(row, reference, draws) for row in rows]


def read_scores(path: Path) -> list[Listing]:
    """Listings from a `scores.jsonl`, one per query in file order."""
    groups: dict[str, list[dict[str, Any]]] = {}
    try:
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                record = json.loads(line)
                groups.setdefault(record["query"], []).append(record)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"cannot read {path}: {error}", "run `control evaluate` again") from error
    return [
        Listing(
            scores=np.array([record["score"] for record in group], dtype=float),
            grades=np.array([record["grade"] for record in group], dtype=float),
            targets=np.array(
                [record.get("target", record["grade"] / MAX_GRADE) for record in group]
            ),
            query=query,
            job_ids=tuple(record["job_id"] for record in group),
            kind=next((kind for record in group if (kind := record.get("kind"))), ""),
        )
        for query, group in groups.items()
    ]


def _row(row: ScoredRow, base: ScoredRow, draws: Draws) -> QualityRow:
    compared = row is not base
    listings = align(row.listings, base.listings) if compared else row.listings
    return QualityRow(
        name=row.name,
        text=row.text,
        queries=len(listings),
        pairs=sum(len(one.scores) for one in listings),
        parameters=row.parameters,
        prompt_tokens=row.prompt_tokens,
        ndcg10=ndcg_interval(listings, draws),
        auc=auc_interval(listings, draws),
        delta_ndcg10=ndcg_interval(listings, draws, base.listings) if compared else None,
        delta_auc=auc_interval(listings, draws, base.listings) if compared else None,
        mean_abs_dp=(
            mean_abs_dp(listings, base.listings)
            if compared and row.probabilistic and base.probabilistic
            else None
        ),
        mrr=mrr_interval(listings, draws),
        order=order_interval(listings, draws),
        delta_order=order_interval(listings, draws, base.listings) if compared else None,
        ece=ece_interval(listings, draws) if row.probabilistic else None,
        kinds=_by_kind(listings, draws),
    )


def _by_kind(listings: Sequence[Listing], draws: Draws) -> dict[str, KindFigures]:
    groups: dict[str, list[int]] = {}
    for place, one in enumerate(listings):
        if one.kind:
            groups.setdefault(one.kind, []).append(place)
    figures = {}
    for kind, places in sorted(groups.items()):
        group, drawn = [listings[place] for place in places], draws[:, places]
        figures[kind] = KindFigures(
            queries=len(group),
            ndcg10=ndcg_interval(group, drawn),
            auc=auc_interval(group, drawn),
        )
    return figures

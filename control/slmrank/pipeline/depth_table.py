"""What ranking depth costs in quality: only the first jobs of each listing, in BM25's order, are
ranked by the engine, the others stay behind them as BM25 had them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from slmrank.evaluate.metrics import Listing, align
from slmrank.evaluate.page import figures_of, interval_bars, sizes_of
from slmrank.evaluate.table import QualityRow, ScoredRow, quality_table, read_scores
from slmrank.hashing import hash_value
from slmrank.html_page import Table
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.score_step import score_step
from slmrank.pipeline.stages.scores import SCORES_FILE
from slmrank.pipeline.steps import Runner, Step
from slmrank.pyplot import plain_plot

SHARES = (1.0, 0.75, 0.5, 0.25, 0.1, 0.0)


def depth_steps(bundle: Bundle, on: str) -> list[Step]:
    """The first stage's scores, and the engine's. Raises SpecError for a set that is none."""
    return [score_step(bundle, "bm25", on=on), score_step(bundle, "engine", on=on)]


def at_depth(ranked: Listing, first: Listing, share: float) -> Listing:
    """A listing of which the first `share` (at least one job, unless it is 0) are ranked; `first`
    holds the same jobs with the scores of the stage before."""
    # Jobs without a word of the query tie, and in the file the good ones may stand first.
    drawn = np.array([hash_value(f"{first.query} {job_id}") for job_id in first.job_ids])
    order = np.lexsort((drawn, -first.scores) if len(drawn) else (-first.scores,))
    kept = max(1, round(share * len(order))) if share else 0
    # Below every p, and those that the first stage does not tell apart alike.
    scores = -1.0 - np.unique(-first.scores, return_inverse=True)[1]
    scores[order[:kept]] = ranked.scores[order[:kept]]
    return replace(ranked, scores=scores)


def measure_depth_table(bundle: Bundle, on: str, runner: Runner) -> list[QualityRow]:
    """One row per share of `SHARES`; the first, everything, is the reference of the others."""
    first, ranked = (
        read_scores(runner.run(step).path / SCORES_FILE) for step in depth_steps(bundle, on)
    )
    first = align(first, ranked)
    rows = [
        ScoredRow(
            name=f"{share:.0%}",
            text="summary",
            listings=[at_depth(*pair, share) for pair in zip(ranked, first, strict=True)],
            probabilistic=False,
        )
        for share in SHARES
    ]
    return quality_table(rows, rows[0], bundle.spec.evaluate)


def depth_table(rows: Sequence[QualityRow]) -> Table:
    """The rows as text."""
    columns = ("NDCG@10", "delta", "order")
    cells = [[row.name, *figures_of(row, columns)] for row in rows]
    return sizes_of(rows[0]), ("ranked", *columns), cells


def draw_depth_table(rows: Sequence[QualityRow]) -> bytes:
    """A PNG: NDCG@10 over the share of jobs that is ranked, with 95 % intervals."""
    values = [row.ndcg10 for row in rows]

    def draw(axes: Any) -> None:
        interval_bars(axes, [100 * share for share in SHARES], values, marker="o")
        axes.set_xlabel("jobs of a listing that are ranked, in BM25's order (%)")
        axes.set_ylabel("NDCG@10")

    return plain_plot(draw)

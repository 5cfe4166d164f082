"""`control depth-table`: from everything ranked to nothing but the first stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slmrank.evaluate.metrics import Listing, mean_ndcg
from slmrank.evaluate.table import read_scores
from slmrank.pipeline.depth_table import at_depth, depth_steps
from slmrank.pipeline.stages.scores import SCORES_FILE
from slmrank.pipeline.steps import run


def listing(*scores: float) -> Listing:
    return Listing(scores=np.array(scores), grades=np.arange(len(scores), dtype=float))


def order(one: Listing) -> list[int]:
    return np.argsort(-one.scores, kind="stable").tolist()


@pytest.mark.parametrize(
    ("share", "wanted"),
    [(1.0, [0, 1, 2, 3]), (0.5, [2, 3, 1, 0]), (0.1, [3, 2, 1, 0]), (0.0, [3, 2, 1, 0])],
)
def test_what_is_not_ranked_stays_behind_in_the_first_stages_order(
    share: float, wanted: list[int]
) -> None:
    assert order(at_depth(listing(0.9, 0.8, 0.7, 0.1), listing(1, 2, 3, 4), share)) == wanted


def test_ties_of_the_first_stage_are_not_broken_by_the_order_of_the_file() -> None:
    """Pairs often list the good job first: cutting seemed to cost nothing."""
    count = 40
    ids = tuple(f"job {n}" for n in range(count))
    grades = np.array([4.0] + [0.0] * (count - 1))

    def cut(turn: int) -> float:
        first, ranked = (
            Listing(
                scores=np.roll(scores, turn),
                grades=np.roll(grades, turn),
                query="q",
                job_ids=(*ids[-turn:], *ids[:-turn]) if turn else ids,
            )
            for scores in (np.zeros(count), np.linspace(1, 0, count))
        )
        return mean_ndcg([at_depth(ranked, first, 0.25)])

    assert cut(0) == cut(7) == cut(25)


def test_jobs_that_the_first_stage_does_not_tell_apart_share_their_place() -> None:
    """Sorted judgments made its row 1.000 where the first stage's own was 0.453."""
    first = listing(2, 2, 1, 1)
    assert mean_ndcg([at_depth(listing(1, 2, 3, 4), first, 0.0)]) == mean_ndcg([first])
    cut = at_depth(listing(0.1, 0.2, 0.3, 0.4), first, 0.25)
    assert order(cut) == [0, 1, 2, 3]
    assert cut.scores[2] == cut.scores[3]


@pytest.mark.long
@pytest.mark.slow
def test_its_ends_are_the_engine_and_bm25(tiny: Any, control: Any, tmp_path: Path) -> None:
    base = ("depth-table", tiny.spec, "--artifacts", tiny.artifacts, "--out", tmp_path)
    done = control(*base, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["name"] for row in rows] == ["100%", "75%", "50%", "25%", "10%", "0%"]
    bm25, engine = (
        mean_ndcg(read_scores(run(step, tiny.store).path / SCORES_FILE))
        for step in depth_steps(tiny.bundle, "own")
    )
    assert rows[0]["ndcg10"]["value"] == pytest.approx(engine)
    assert rows[-1]["ndcg10"]["value"] == pytest.approx(bm25, abs=0.02)  # BM25's ties are ordered
    assert (tmp_path / "depth-tiny-own.png").stat().st_size > 5000
    assert "ranked" in control(*base).stdout

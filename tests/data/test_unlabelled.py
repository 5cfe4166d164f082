"""Queries without judgments: where they come from, and what they never show."""

from __future__ import annotations

from slmrank.data.records import Job, Pair
from slmrank.data.unlabelled import DRAWN, FOUND, unlabelled_pairs

JOBS = {
    f"j{number}": Job(
        job_id=f"j{number}",
        title=f"Welder {number}" if number < 8 else "",
        description=f"weld the frames of ship {number} and check their seams",
    )
    for number in range(12)
}
JUDGED = [
    Pair(query="welder 3", job_id=job_id, grade=4, split="train") for job_id in list(JOBS)[:10]
]

# "welder 6" is asked in dev or test.
KNOWN = {"welder 3", "welder 6"}


def test_titles_first_then_words_and_only_jobs_that_training_shows() -> None:
    pairs = unlabelled_pairs(JOBS, JUDGED, 11, seed=1, known=KNOWN)
    queries = list(dict.fromkeys(pair.query for pair in pairs))
    assert len(queries) == 11
    titles = {f"welder {number}" for number in range(8)} - KNOWN
    assert set(queries[:6]) == titles
    assert all(2 <= len(query.split()) <= 3 and "the" not in query.split() for query in queries[6:])
    # j10 and j11 are judged nowhere: they may be held back.
    assert {pair.job_id for pair in pairs} <= {pair.job_id for pair in JUDGED}
    own = [pair.job_id for pair in pairs if pair.query == "welder 5"]
    assert own[0] == "j5"
    assert len(own) == len(set(own)) <= FOUND + DRAWN
    assert pairs == unlabelled_pairs(JOBS, JUDGED, 11, seed=1, known=KNOWN)
    assert pairs != unlabelled_pairs(JOBS, JUDGED, 11, seed=2, known=KNOWN)


def test_no_spelling_of_a_held_back_query_and_nothing_too_long() -> None:
    pairs = unlabelled_pairs(
        JOBS, JUDGED, 20, seed=1, known=["WELDER  6 "], usable=lambda query: "ship" not in query
    )
    queries = {pair.query for pair in pairs}
    assert "welder 6" not in queries
    assert queries
    assert not [query for query in queries if "ship" in query]

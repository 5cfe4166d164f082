"""What a string matcher could live on."""

from __future__ import annotations

from slmrank.data.records import LabelledSet
from slmrank.data.words import words_of


def words_in_titles(labelled: LabelledSet) -> dict[str, float]:
    """Share of query words that stand in the title of an exact job, by split."""
    shares: dict[str, float] = {}
    for split, pairs in labelled.pairs.items():
        exact = [
            (words_of(pair.query), set(words_of(labelled.jobs[pair.job_id].title)))
            for pair in pairs
            if pair.grade == 4
        ]
        words = sum(len(query) for query, _ in exact)
        found = sum(word in title for query, title in exact for word in query)
        shares[split] = round(found / max(words, 1), 3)
    return shares

"""Example queries: a work activity, or two of them, in a person's words.

Never the occupation's title, which its postings carry: a ranker that was trained on such queries
learned to match strings (AUC 0.91 here, 0.53 to 0.68 on queries that people type).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from slmrank.data.onet import Occupation, Occupations
from slmrank.data.postings import HeldOut
from slmrank.data.wording import lower_first, phrases

NEEDED = {"activity": 1, "two_activities": 2}
KIND_WEIGHTS = (3, 1)


@dataclass(frozen=True, kw_only=True)
class Query:
    """A search text and the activity ids that it names."""

    text: str
    activities: frozenset[str]
    kind: str


def queries_for(
    occupation: Occupation, held_out: HeldOut, table: Occupations, count: int, rng: random.Random
) -> list[Query]:
    """Up to `count` distinct queries of mixed kinds for one occupation."""
    made: dict[str, Query] = {}
    for _ in range(count * 4):
        if len(made) == count:
            break
        kind = rng.choices(list(NEEDED), KIND_WEIGHTS)[0]
        query = _make(kind, occupation, held_out, table, rng)
        if query is not None:
            made.setdefault(query.text, query)
    return list(made.values())


def _make(
    kind: str, occupation: Occupation, held_out: HeldOut, table: Occupations, rng: random.Random
) -> Query | None:
    needed = NEEDED[kind]
    if len(held_out.activities) < needed:
        return None
    asked = rng.sample(held_out.activities, needed)
    named = [lower_first(table.activity_titles[name]) for name in asked]
    slots = {"activity": named[0], "other": named[-1]}
    text = rng.choice(phrases()[f"query_{kind}"]).format_map(slots)
    return Query(text=text, activities=frozenset(asked), kind=kind)

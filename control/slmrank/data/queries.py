"""Example queries: a title in a person's form, a work activity, two of them, or both kinds."""

from __future__ import annotations

import random
from dataclasses import dataclass

from slmrank.data.onet import Occupation, Occupations
from slmrank.data.postings import HeldOut
from slmrank.data.wording import lower_first, person_title, phrases

KINDS = ("title", "activity", "both", "two_activities")
KIND_WEIGHTS = (4, 3, 2, 1)


@dataclass(frozen=True, kw_only=True)
class Query:
    """A search text, the occupation behind it and the activity ids that it names."""

    text: str
    occupation: str
    activities: frozenset[str]


def queries_for(
    occupation: Occupation, held_out: HeldOut, table: Occupations, count: int, rng: random.Random
) -> list[Query]:
    """Up to `count` distinct queries of mixed kinds for one occupation."""
    made: dict[str, Query] = {}
    for _ in range(count * 4):
        if len(made) == count:
            break
        kind = rng.choices(KINDS, KIND_WEIGHTS)[0]
        query = _make(kind, occupation, held_out, table, rng)
        if query is not None:
            made.setdefault(query.text, query)
    return list(made.values())


def _make(
    kind: str, occupation: Occupation, held_out: HeldOut, table: Occupations, rng: random.Random
) -> Query | None:
    words = phrases()
    needed = {"title": 0, "activity": 1, "both": 1, "two_activities": 2}[kind]
    if len(held_out.activities) < needed:
        return None
    asked = rng.sample(held_out.activities, needed)
    named = [lower_first(table.activity_titles[name]) for name in asked]
    slots = {
        "title": person_title(occupation.title).lower(),
        "place": rng.choice(words["city"][:-1]).split(",")[0],
        "activity": named[0] if named else "",
        "other": named[-1] if named else "",
    }
    text = rng.choice(words[f"query_{kind}"]).format_map(slots)
    return Query(text=text, occupation=occupation.code, activities=frozenset(asked))

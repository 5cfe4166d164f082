"""Graded pairs of what people type and postings, from a release of the O*NET database.

A posting carries one of its occupation's titles, or is the taxonomy's own entry; queries are other
titles, headlines and duties that the posting leaves out (`title_queries`). Grades follow the
release's lists of related occupations; half of the negatives are what BM25 retrieves. Split by
occupation.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from slmrank.data.bm25 import Bm25
from slmrank.data.onet import Occupation, Occupations, Task
from slmrank.data.onet_database import TitledOccupation
from slmrank.data.postings import HeldOut, hold_out, posting
from slmrank.data.records import SPLITS, Job, LabelledSet, Pair, Split
from slmrank.data.relevance import candidates
from slmrank.data.title_queries import queries_of
from slmrank.data.words import words_of
from slmrank.spec.data import OnetDatabaseData

HARD_SHARE = 0.5
RELATED_SHARE = 0.2


def build_title_set(
    occupations: Sequence[TitledOccupation],
    held_back: frozenset[str] | None,
    spec: OnetDatabaseData,
) -> LabelledSet:
    """Jobs and pairs (pure: same input, same output). `held_back` codes are the test split."""
    rng = random.Random(spec.seed)
    jobs: dict[str, Job] = {}
    pairs: dict[Split, list[Pair]] = {}
    asked: set[str] = set()
    for split, members in _split(occupations, held_back, spec, rng).items():
        entries = 0.0 if split == "test" else spec.entry_share
        pool: dict[str, Job] = {}
        owner: dict[str, str] = {}
        duties: dict[str, list[str]] = {}
        for one in members:
            table = _as_table(one)
            left_out = hold_out(table.occupations[0], rng)
            duties[one.code] = [one.tasks[place] for place in sorted(left_out.tasks)]
            for number in range(spec.postings_per_occupation):
                job_id = f"{one.code}-{number + 1}"
                made = _entry if rng.random() < entries else _posting
                pool[job_id], owner[job_id] = made(one, left_out, table, job_id, rng), one.code
        index = Bm25(pool)
        pairs[split] = []
        for one in members:
            grades = {
                job_id: 4 if code == one.code else one.related.get(code, 0)
                for job_id, code in owner.items()
            }
            shown = [words_of(pool[job_id].title) for job_id in pool if owner[job_id] == one.code]
            wanted = spec.queries_per_occupation
            found = queries_of(one, duties[one.code], shown, spec.query_kinds, wanted, rng)
            for query, kind in found.items():
                if query.lower() in asked:
                    continue
                asked.add(query.lower())
                count = getattr(spec.candidates, split)
                wrong = [job_id for job_id, grade in grades.items() if grade < 4]
                hard = [one for one in index.top(query, count * 3) if grades[one] < 4]
                hard, near = hard[: int(count * HARD_SHARE)], int(count * RELATED_SHARE)
                pairs[split] += [
                    Pair(query=query, job_id=job_id, grade=grades[job_id], split=split, kind=kind)
                    for job_id in candidates(grades, hard, near, wrong, count, rng)
                ]
        jobs |= pool
    return LabelledSet(jobs=jobs, pairs={split: pairs[split] for split in SPLITS})


def _split(
    occupations: Sequence[TitledOccupation],
    held_back: frozenset[str] | None,
    spec: OnetDatabaseData,
    rng: random.Random,
) -> dict[Split, list[TitledOccupation]]:
    shuffled = list(occupations)
    rng.shuffle(shuffled)
    if held_back is None:
        held_back = frozenset(
            one.code for one in shuffled[: round(len(shuffled) * spec.test_share)]
        )
    rest = [one for one in shuffled if one.code not in held_back]
    devs = round(len(rest) * spec.dev_share)
    tests = [one for one in shuffled if one.code in held_back]
    return {"train": rest[devs:], "dev": rest[:devs], "test": tests}


def _as_table(one: TitledOccupation) -> Occupations:
    """The occupation as the posting writer reads it: each task is its own activity."""
    tasks = tuple(
        Task(text=text, activities=(str(number),)) for number, text in enumerate(one.tasks)
    )
    names = {str(number): text.rstrip(".") for number, text in enumerate(one.tasks)}
    occupation = Occupation(code=one.code, title=one.title, tasks=tasks)
    return Occupations(occupations=(occupation,), activity_titles=names, rarity={})


def _posting(
    one: TitledOccupation, left_out: HeldOut, table: Occupations, job_id: str, rng: random.Random
) -> Job:
    """A posting of the example set's shape under one of the occupation's titles."""
    title = rng.choice([one.title, *one.titles])
    return posting(replace(table.occupations[0], title=title), left_out, table, job_id, rng)


def _entry(
    one: TitledOccupation, left_out: HeldOut, _table: Occupations, job_id: str, rng: random.Random
) -> Job:
    """The occupation as a taxonomy lists it: its own title, what it is, some of its tasks."""
    tasks = [text for place, text in enumerate(one.tasks) if place not in left_out.tasks]
    chosen = rng.sample(tasks, min(len(tasks), rng.randint(0, 8)))
    description = " ".join([one.description, *chosen])
    return Job(job_id=job_id, title=one.title, description=description)

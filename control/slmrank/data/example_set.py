"""The example job-search set: O*NET occupations turned into postings, queries and graded pairs.

Split by occupation: no occupation of the test set is asked for in training, and no set of
activities that one of its queries names, in whatever words (one of them alone, or with another, may
be). Everything follows from the table and one seed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from slmrank.data.bm25 import Bm25
from slmrank.data.onet import Occupation, Occupations
from slmrank.data.postings import HeldOut, hold_out, posting
from slmrank.data.queries import Query, queries_for
from slmrank.data.records import SPLITS, Job, LabelledSet, Pair, Split
from slmrank.data.relevance import grade_of, relation
from slmrank.spec.data import OnetData

RETRIEVED_SHARE = 0.375
RELATED_SHARE = 0.375


def build_example_set(table: Occupations, spec: OnetData) -> LabelledSet:
    """Build jobs and pairs from the occupation table (pure: same input, same output)."""
    rng = random.Random(spec.seed)
    splits = split_occupations(table.occupations, spec, rng)
    held_out = {one.code: hold_out(one, rng) for one in table.occupations}
    jobs, occupation_of = _postings(table, held_out, spec, rng)
    pairs: dict[Split, list[Pair]] = {}
    asked_before: set[frozenset[str]] = set()
    for split in SPLITS:
        members = splits[split]
        codes = {one.code for one in members}
        pool = {job_id: job for job_id, job in jobs.items() if occupation_of[job_id].code in codes}
        index = Bm25(pool)
        pairs[split] = []
        for one in members:
            relations = {other.code: relation(one, other, table.rarity) for other in members}
            count = spec.queries_per_occupation
            for query in queries_for(one, held_out[one.code], table, count, rng):
                # The same activities in other words would be the same question.
                if query.activities in asked_before:
                    continue
                asked_before.add(query.activities)
                grades = _grades(query, relations, members, occupation_of, pool)
                chosen = _candidates(query, grades, index, getattr(spec.candidates, split), rng)
                pairs[split] += [
                    Pair(
                        query=query.text,
                        job_id=job_id,
                        grade=grades[job_id],
                        split=split,
                        kind=query.kind,
                    )
                    for job_id in chosen
                ]
    return LabelledSet(jobs=jobs, pairs=pairs)


def split_occupations(
    occupations: Sequence[Occupation], spec: OnetData, rng: random.Random
) -> dict[Split, list[Occupation]]:
    """Deal occupations into train, dev and test."""
    shuffled = list(occupations)
    rng.shuffle(shuffled)
    tests = round(len(shuffled) * spec.test_share)
    devs = round(len(shuffled) * spec.dev_share)
    return {
        "test": shuffled[:tests],
        "dev": shuffled[tests : tests + devs],
        "train": shuffled[tests + devs :],
    }


def _postings(
    table: Occupations,
    held_out: Mapping[str, HeldOut],
    spec: OnetData,
    rng: random.Random,
) -> tuple[dict[str, Job], dict[str, Occupation]]:
    jobs: dict[str, Job] = {}
    occupation_of: dict[str, Occupation] = {}
    for occupation in table.occupations:
        for copy in range(spec.postings_per_occupation):
            job_id = f"{occupation.code}-{copy + 1}"
            jobs[job_id] = posting(occupation, held_out[occupation.code], table, job_id, rng)
            occupation_of[job_id] = occupation
    return jobs, occupation_of


def _grades(
    query: Query,
    relations: Mapping[str, int],
    members: Sequence[Occupation],
    occupation_of: Mapping[str, Occupation],
    pool: Mapping[str, Job],
) -> dict[str, int]:
    by_code = {
        other.code: grade_of(query.activities, relations[other.code], other.activities)
        for other in members
    }
    return {job_id: by_code[occupation_of[job_id].code] for job_id in pool}


def _candidates(
    query: Query, grades: Mapping[str, int], index: Bm25, count: int, rng: random.Random
) -> list[str]:
    """One exact match, what BM25 retrieves, related jobs of every grade, then random ones."""
    exact = [job_id for job_id, grade in grades.items() if grade == 4]
    chosen = dict.fromkeys(rng.sample(exact, 1))
    for job_id in index.top(query.text, int(count * RETRIEVED_SHARE)):
        chosen.setdefault(job_id)
    related = [job_id for job_id, grade in grades.items() if 1 <= grade <= 3]
    rng.shuffle(related)
    for job_id in related[: int(count * RELATED_SHARE)]:
        chosen.setdefault(job_id)
    rest = list(grades)
    rng.shuffle(rest)
    for job_id in rest:
        if len(chosen) >= count:
            break
        chosen.setdefault(job_id)
    ordered = list(chosen)[:count]
    rng.shuffle(ordered)
    return ordered

"""The example job-search set: O*NET occupations turned into postings, queries and graded pairs.

Split by occupation: no occupation of the test set is asked for in training, and no set of
activities that one of its queries names, in whatever words (one of them alone, or with another, may
be). Everything follows from the table and one seed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from slmrank.data.bm25 import Bm25
from slmrank.data.onet import Occupation, Occupations
from slmrank.data.postings import hold_out, posting
from slmrank.data.queries import queries_for
from slmrank.data.records import SPLITS, Job, LabelledSet, Pair, Split
from slmrank.data.relevance import candidates, grade_of, relation
from slmrank.spec.data import OnetData

RETRIEVED_SHARE = 0.375
RELATED_SHARE = 0.375


def build_example_set(table: Occupations, spec: OnetData) -> LabelledSet:
    """Build jobs and pairs from the occupation table (pure: same input, same output)."""
    rng = random.Random(spec.seed)
    splits = split_occupations(table.occupations, spec, rng)
    held_out = {one.code: hold_out(one, rng) for one in table.occupations}
    jobs: dict[str, Job] = {}
    code_of: dict[str, str] = {}
    for one in table.occupations:
        for copy in range(spec.postings_per_occupation):
            job_id = f"{one.code}-{copy + 1}"
            jobs[job_id] = posting(one, held_out[one.code], table, job_id, rng)
            code_of[job_id] = one.code
    pairs: dict[Split, list[Pair]] = {}
    asked_before: set[frozenset[str]] = set()
    for split in SPLITS:
        members = splits[split]
        codes = {one.code for one in members}
        pool = {job_id: job for job_id, job in jobs.items() if code_of[job_id] in codes}
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
                grade_by_code = {
                    other.code: grade_of(query.activities, relations[other.code], other.activities)
                    for other in members
                }
                grades = {job_id: grade_by_code[code_of[job_id]] for job_id in pool}
                wanted = getattr(spec.candidates, split)
                found = index.top(query.text, int(wanted * RETRIEVED_SHARE))
                near = int(wanted * RELATED_SHARE)
                chosen = candidates(grades, found, near, list(grades), wanted, rng)
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

"""Pairs that nobody judged, for a teacher to score: a catalogue has queries in it for nothing.

Queries are titles of jobs first, then runs of content words of descriptions. Each comes with the
jobs that BM25 finds for it and with as many drawn at random (distillation on pairs without labels:
arXiv 2510.22101 and 2502.14305).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping

from slmrank.data.bm25 import Bm25
from slmrank.data.records import Job, Pair
from slmrank.data.words import STOP_WORDS, same_query

FOUND, DRAWN = 4, 4  # jobs of a query: BM25's best, and any
KIND = "unlabelled"
RUN = 3  # most words of a query out of a description
ROUNDS = 100  # queries out of one description at most


def unlabelled_pairs(
    jobs: Mapping[str, Job],
    judged: Iterable[Pair],
    queries: int,
    seed: int,
    *,
    known: Iterable[str],
    usable: Callable[[str], bool] = lambda _: True,
) -> list[Pair]:
    """Pairs of at most so many `usable` queries, over the jobs of `judged`. None of the `known`
    queries is among them, however it is spelled, those of dev and test included: what is held back
    stays so. Their grade says nothing."""
    shown = {job_id: jobs[job_id] for job_id in sorted({pair.job_id for pair in judged})}
    asked = {same_query(query) for query in known}
    rng = random.Random(seed)
    index = Bm25(shown)
    pairs: list[Pair] = []
    for query in _queries(list(shown.values()), rng):
        if queries <= 0:
            break
        name = same_query(query)
        if name in asked or not usable(query):
            continue
        asked.add(name)
        queries -= 1
        found = [*index.top(query, FOUND), *rng.sample(list(shown), min(DRAWN, len(shown)))]
        pairs += [
            Pair(query=query, job_id=job_id, grade=0, split="train", kind=KIND)
            for job_id in dict.fromkeys(found)
        ]
    return pairs


def _queries(jobs: list[Job], rng: random.Random) -> Iterator[str]:
    """Titles, then up to `RUN` successive content words of each description, in rounds; may
    repeat."""
    rng.shuffle(jobs)
    yield from (job.title.lower() for job in jobs if job.title.strip())
    for _ in range(ROUNDS):
        for job in jobs:
            words = [word.strip(".,;:()") for word in job.description.lower().split()]
            content = [word for word in words if word and word not in STOP_WORDS]
            if content:
                start = rng.randrange(max(1, len(content) - RUN + 1))
                yield " ".join(content[start : start + rng.randint(2, RUN)])

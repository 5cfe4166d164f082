"""Pairs as token ids: the same items for training, calibration, parity and evaluation."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from slmrank.data.records import Job, Pair
from slmrank.errors import DataError, InvalidQuery
from slmrank.prompt.encoder import PromptEncoder
from slmrank.prompt.template import job_text
from slmrank.store.job_store import JobStore
from slmrank.tokens import Ids

Bodies = Callable[[Sequence[str]], list[Ids]]  # of jobs, by id: stored summaries, or full texts


@dataclass(frozen=True, kw_only=True)
class EncodedQuery:
    """One query with its judged items: prefix ids, item ids, job ids, grades, the p that training
    aims at (grade / 4 unless the pairs carry a target), and how many of the items were cut to the
    prompt's limit."""

    query: str
    prefix: Ids
    items: tuple[Ids, ...]
    job_ids: tuple[str, ...]
    grades: tuple[int, ...]
    targets: tuple[float, ...]
    truncated: int = 0

    @classmethod
    def unjudged(
        cls, query: str, prefix: Ids, items: Sequence[Ids], job_ids: Sequence[str] | None = None
    ) -> EncodedQuery:
        """A query to be scored, whose items nobody judged."""
        count = len(items)
        return cls(
            query=query,
            prefix=prefix,
            items=tuple(items),
            job_ids=tuple(job_ids or [""] * count),
            grades=(0,) * count,
            targets=(0.0,) * count,
        )

    def prompts(self) -> list[Ids]:
        """The whole prompt, prefix and item, of every item."""
        return [np.concatenate([self.prefix, item]) for item in self.items]

    def pick(self, places: Sequence[int]) -> EncodedQuery:
        """The items at these places, in this order."""
        return replace(
            self,
            items=tuple(self.items[place] for place in places),
            job_ids=tuple(self.job_ids[place] for place in places),
            grades=tuple(self.grades[place] for place in places),
            targets=tuple(self.targets[place] for place in places),
        )


def stored_bodies(store: JobStore, job_ids: Sequence[str]) -> list[Ids]:
    """Stored ids of title, place and summary. Raises DataError when the store lacks a job."""
    found = []
    for job_id, body in zip(job_ids, store.ids_many(job_ids), strict=True):
        if body is None:
            raise DataError(f"no summary of job {job_id!r}", "run `control summarize` again")
        found.append(body)
    return found


def full_bodies(
    encoder: PromptEncoder, jobs: Mapping[str, Job], job_ids: Sequence[str]
) -> list[Ids]:
    """Ids of title, place and the whole description."""
    return [encoder.body(job_text(jobs[one], jobs[one].description)) for one in job_ids]


def encode_pairs(
    pairs: Iterable[Pair], encoder: PromptEncoder, bodies: Bodies
) -> list[EncodedQuery]:
    """Pairs grouped by query, in order of first appearance. None is kept: they are made as they are
    read, 1.1 kB each."""
    groups: dict[str, tuple[list[str], list[int], list[float]]] = {}
    for pair in pairs:
        listed, grades, targets = groups.setdefault(pair.query, ([], [], []))
        listed.append(pair.job_id)
        grades.append(pair.grade)
        targets.append(pair.wanted)
    job_ids = list(dict.fromkeys(one for listed, *_ in groups.values() for one in listed))
    known = {one: encoder.item(body) for one, body in zip(job_ids, bodies(job_ids), strict=True)}
    encoded = []
    for query, (listed, grades, targets) in groups.items():
        try:
            prefix = encoder.prefix(query)
        except InvalidQuery as error:
            raise DataError(f"query {query[:60]!r}: {error.message}", error.hint) from error
        items = [known[one] for one in listed]
        encoded.append(
            EncodedQuery(
                query=query,
                prefix=prefix,
                items=tuple(item.ids for item in items),
                job_ids=tuple(listed),
                grades=tuple(grades),
                targets=tuple(targets),
                truncated=sum(item.truncated for item in items),
            )
        )
    return encoded


def corpus_figures(queries: Sequence[EncodedQuery]) -> dict[str, int]:
    """How much there is, and how many items were cut to the prompt's limit."""
    return {
        "queries": len(queries),
        "items": sum(len(query.items) for query in queries),
        "items_cut": sum(query.truncated for query in queries),
    }


def sample_queries(pairs: Sequence[Pair], count: int | None, seed: int) -> list[Pair]:
    """The pairs of `count` queries drawn by a seed (all when None), in their original order."""
    queries = list(dict.fromkeys(pair.query for pair in pairs))
    if count is None or count >= len(queries):
        return list(pairs)
    chosen = set(random.Random(seed).sample(queries, count))
    return [pair for pair in pairs if pair.query in chosen]

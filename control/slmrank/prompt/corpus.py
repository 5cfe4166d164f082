"""Pairs as token ids: the same items for training, calibration, parity and evaluation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from slmrank.data.records import Job, Pair, group_by_query
from slmrank.errors import DataError, ScoreError
from slmrank.prompt.encoder import Ids, Item, PromptEncoder, job_text


class JobItems(Protocol):
    """Where an item's ids come from: stored summaries or full texts."""

    def item(self, job_id: str) -> Item: ...


class _Stored(Protocol):
    def ids(self, job_id: str) -> Ids | None: ...


@dataclass(frozen=True, kw_only=True)
class EncodedQuery:
    """One query with its judged items: prefix ids, item ids, job ids and grades."""

    query: str
    prefix: Ids
    items: tuple[Ids, ...]
    job_ids: tuple[str, ...]
    grades: tuple[int, ...]

    def prompts(self) -> list[Ids]:
        """The whole prompt, prefix and item, of every item."""
        return [np.concatenate([self.prefix, item]) for item in self.items]

    def head(self, count: int) -> EncodedQuery:
        """The first `count` items only."""
        return EncodedQuery(
            query=self.query,
            prefix=self.prefix,
            items=self.items[:count],
            job_ids=self.job_ids[:count],
            grades=self.grades[:count],
        )


class SummaryItems:
    """Items from the summary store."""

    def __init__(self, encoder: PromptEncoder, store: _Stored) -> None:
        self._encoder = encoder
        self._store = store

    def item(self, job_id: str) -> Item:
        """Raises DataError when the store lacks the job."""
        body = self._store.ids(job_id)
        if body is None:
            raise DataError(f"no summary of job {job_id!r}", "run `control summarize` again")
        return self._encoder.item(body)


class FullTextItems:
    """Items with the whole description, cut only by the encoder's limit."""

    def __init__(self, encoder: PromptEncoder, jobs: dict[str, Job]) -> None:
        self._encoder = encoder
        self._jobs = jobs

    def item(self, job_id: str) -> Item:
        job = self._jobs[job_id]
        return self._encoder.item(self._encoder.body(job_text(job, job.description)))


def encode_pairs(
    pairs: Sequence[Pair], encoder: PromptEncoder, items: JobItems
) -> list[EncodedQuery]:
    """Pairs grouped by query, in order of first appearance."""
    known: dict[str, Ids] = {}
    encoded = []
    for query, group in group_by_query(pairs).items():
        for pair in group:
            if pair.job_id not in known:
                known[pair.job_id] = items.item(pair.job_id).ids
        try:
            prefix = encoder.prefix(query)
        except ScoreError as error:
            raise DataError(f"query {query[:60]!r}: {error.message}", error.hint) from error
        encoded.append(
            EncodedQuery(
                query=query,
                prefix=prefix,
                items=tuple(known[pair.job_id] for pair in group),
                job_ids=tuple(pair.job_id for pair in group),
                grades=tuple(pair.grade for pair in group),
            )
        )
    return encoded


def sample_queries(pairs: Sequence[Pair], count: int | None, seed: int) -> list[Pair]:
    """The pairs of `count` queries drawn by a seed (all when None), in their original order."""
    queries = list(group_by_query(pairs))
    if count is None or count >= len(queries):
        return list(pairs)
    chosen = set(random.Random(seed).sample(queries, count))
    return [pair for pair in pairs if pair.query in chosen]

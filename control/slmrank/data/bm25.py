"""Okapi BM25 over job texts: the lexical stand-in for the retrieval stage before the ranker."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from slmrank.data.records import Job
from slmrank.data.words import words_of


class Bm25:
    """BM25 scores (k1 = 1.2, b = 0.75, Lucene's non-negative idf) of jobs for a query."""

    def __init__(self, jobs: Mapping[str, Job], k1: float = 1.2, b: float = 0.75) -> None:
        self._counts = {
            job.job_id: Counter(words_of(f"{job.title} {job.title} {job.description}"))
            for job in jobs.values()
        }
        lengths = {job_id: counts.total() for job_id, counts in self._counts.items()}
        average = sum(lengths.values()) / max(len(lengths), 1)
        self._norms = {
            job_id: k1 * (1 - b + b * length / average) for job_id, length in lengths.items()
        }
        self._k1 = k1
        seen: Counter[str] = Counter()
        self._postings: dict[str, list[str]] = {}
        for job_id, counts in self._counts.items():
            seen.update(counts.keys())
            for word in counts:
                self._postings.setdefault(word, []).append(job_id)
        total = len(self._counts)
        self._idf = {
            word: math.log(1 + (total - count + 0.5) / (count + 0.5))
            for word, count in seen.items()
        }

    def scores(self, query: str, job_ids: Sequence[str]) -> list[float]:
        """One score per job id, 0 or more."""
        asked = words_of(query)
        return [self._score(asked, job_id) for job_id in job_ids]

    def top(self, query: str, count: int) -> list[str]:
        """The ids of the best `count` jobs that share a word with the query, best first."""
        asked = words_of(query)
        touched = {job_id for word in set(asked) for job_id in self._postings.get(word, ())}
        ranked = sorted(touched, key=lambda job_id: (-self._score(asked, job_id), job_id))
        return ranked[:count]

    def _score(self, asked: Sequence[str], job_id: str) -> float:
        counts, norm = self._counts[job_id], self._norms[job_id]
        total = 0.0
        for word in asked:
            count = counts.get(word, 0)
            if count:
                total += self._idf[word] * count * (self._k1 + 1) / (count + norm)
        return total

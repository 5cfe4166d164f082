"""Okapi BM25 over job texts: the lexical stand-in for the retrieval stage before the ranker."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from slmrank.data.records import Job
from slmrank.data.words import words_of


class Bm25:
    """BM25 scores (k1 = 1.2, b = 0.75, Lucene's non-negative idf) of jobs for a query; titles count
    twice."""

    def __init__(self, jobs: Mapping[str, Job], job_ids: Collection[str] | None = None) -> None:
        """Over all `jobs`, or those with `job_ids`."""
        from bm25s import BM25  # it loads scipy: 0.1 s of every verb otherwise

        # Sorted, so that a stable order by score puts equal jobs in the order of their ids.
        self._job_ids = sorted(jobs if job_ids is None else job_ids)
        self._places = {job_id: place for place, job_id in enumerate(self._job_ids)}
        vocabulary: dict[str, int] = {}
        texts = []
        for job_id in self._job_ids:
            job = jobs[job_id]
            words = words_of(f"{job.title} {job.title} {job.description}")
            ids = (vocabulary.setdefault(word, len(vocabulary)) for word in words)
            texts.append(array("i", ids))
        self._vocabulary = vocabulary
        self._index = None
        if vocabulary:
            # Double precision: rounded scores would order near-equal jobs differently elsewhere.
            self._index = BM25(k1=1.2, b=0.75, method="lucene", dtype="float64")
            self._index.index((texts, vocabulary), create_empty_token=False, show_progress=False)

    def scores(self, query: str, job_ids: Sequence[str]) -> list[float]:
        """One score per job id, 0 or more."""
        every = self._scores(query)
        return [float(every[self._places[job_id]]) for job_id in job_ids]

    def top(self, query: str, count: int) -> list[str]:
        """The ids of the best `count` jobs that share a word with the query, best first."""
        every = self._scores(query)
        touched = np.flatnonzero(every)
        best = touched[np.argsort(-every[touched], kind="stable")[:count]]
        return [self._job_ids[place] for place in best.tolist()]

    def _scores(self, query: str) -> npt.NDArray[np.float64]:
        asked = [self._vocabulary[word] for word in words_of(query) if word in self._vocabulary]
        if self._index is None or not asked:
            return np.zeros(len(self._job_ids))
        found: npt.NDArray[np.float64] = self._index.get_scores_from_ids(asked)
        return found

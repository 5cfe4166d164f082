"""Hard negatives: the jobs that a ranker wrongly likes, among those that retrieval puts before it.

What nobody judged may still be right, so a job counts as a mistake only when its p stays clearly
below that of the query's best judged job (as in NV-Retriever, arXiv 2407.15831, by a margin).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pydantic import Field

from slmrank.data.bm25 import Bm25
from slmrank.data.records import SPLITS, LabelledSet, Pair
from slmrank.spec.section import Section

RELEVANT = 3  # grades from here on are what a mistake is compared with


class Mining(Section):
    """How mistakes are chosen."""

    retrieve: int = Field(50, ge=1)
    """unjudged jobs that BM25 puts before the ranker, per query"""
    keep: int = Field(4, ge=1, description="mistakes kept per query, the worst ones")
    least_p: float = Field(0.2, ge=0, le=1, description="p from which a job is a mistake")
    margin: float = Field(0.1, ge=0, le=1)
    """how far its p must stay below the best judged job's: closer ones may be right"""


def minable(labelled: LabelledSet) -> set[str]:
    """The ids of jobs that may be mistakes: those that only dev or test pairs name are held back
    from training."""
    trained = {pair.job_id for pair in labelled.pairs["train"]}
    judged = {pair.job_id for split in SPLITS for pair in labelled.pairs[split]}
    return set(labelled.jobs) - (judged - trained)


def unjudged(query: str, known: Collection[str], index: Bm25, mining: Mining) -> list[str]:
    """The ids that BM25 retrieves for a query and nobody judged for it, best first; `known` were
    judged."""
    found = index.top(query, mining.retrieve + len(known))
    return [job_id for job_id in found if job_id not in known][: mining.retrieve]


def mistakes(
    judged: Sequence[Pair], p_of: Mapping[str, float], found: Sequence[str], mining: Mining
) -> list[Pair]:
    """New pairs of grade 0 for one query; `p_of` is the ranker's p by job id. None where no judged
    job is relevant, for then nothing says what too high is."""
    best = max((p_of[pair.job_id] for pair in judged if pair.grade >= RELEVANT), default=None)
    if best is None:
        return []
    wrong = [job_id for job_id in found if mining.least_p <= p_of[job_id] <= best - mining.margin]
    wrong.sort(key=lambda job_id: (-p_of[job_id], job_id))
    like = judged[0].model_copy(update={"grade": 0, "target": None})
    return [like.model_copy(update={"job_id": job_id}) for job_id in wrong[: mining.keep]]

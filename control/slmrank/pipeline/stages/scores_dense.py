"""Scores of the bi-encoder, the row that a ranker must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slmrank.data.packaged import MINILM, downloads, fetch
from slmrank.data.records import LabelledSet, Pair, group_by_query
from slmrank.evaluate.dense import DenseScorer
from slmrank.pipeline.stages.inputs import checkpoint_of, stored_summaries
from slmrank.pipeline.steps import Making
from slmrank.prompt.corpus import stored_bodies
from slmrank.prompt.template import job_text

Scores = dict[tuple[str, str], float]


def scores_of(
    pairs: Sequence[Pair], labelled: LabelledSet, settings: Mapping[str, Any], making: Making
) -> Scores:
    """The bi-encoder's cosine, on whole postings or on the texts that the ranker reads."""
    groups = {
        query: [pair.job_id for pair in group] for query, group in group_by_query(pairs).items()
    }
    job_ids = list(dict.fromkeys(pair.job_id for pair in pairs))
    if settings["full_text"]:
        jobs = [labelled.jobs[job_id] for job_id in job_ids]
        texts = [job_text(job, job.description) for job in jobs]
    else:
        encoder = checkpoint_of(making.inputs["checkpoint"]).encoder()
        with stored_summaries(making) as store:
            bodies = stored_bodies(store, job_ids)
        texts = [encoder.text(body) for body in bodies]
    scorer = DenseScorer(fetch(MINILM, downloads(making.store.root)))
    making.draft.figures["parameters"] = scorer.parameters
    return scorer.scores(
        groups,
        dict(zip(job_ids, texts, strict=True)),
        lambda done, total: making.watcher.progress(done, total, "texts"),
    )

"""Make `trimmed`: the base model with a smaller vocabulary."""

from __future__ import annotations

from collections import Counter

from slmrank.compress.vocabulary import (
    choose_tokens,
    read_vocabulary,
    same_tokens_share,
    trim_checkpoint,
)
from slmrank.data.labelled import read_labelled
from slmrank.data.records import Split
from slmrank.model.checkpoint import CHECKPOINT_FOLDER, open_checkpoint, write_ranker
from slmrank.pipeline.steps import Making
from slmrank.prompt.encoder import PromptEncoder
from slmrank.prompt.template import job_text
from slmrank.spec.model import TrimSpec

TRAINED: tuple[Split, ...] = ("train", "dev")


def make_trimmed(spec: TrimSpec, making: Making) -> None:
    labelled = read_labelled(making.inputs["data"].path)
    before = open_checkpoint(making.inputs["checkpoint"].path / CHECKPOINT_FOLDER)
    encoder = before.encoder()
    jobs = [job_text(job, job.description) for job in labelled.jobs.values()]
    known = sorted({pair.query for split in TRAINED for pair in labelled.pairs[split]})
    # Counted as they are served: a query gets a leading space and the template's tail.
    counts: Counter[int] = Counter()
    for job in jobs:
        counts.update(encoder.body(job).tolist())
    for query in known:
        counts.update(encoder.prefix(query).tolist())
    always = [before.labels.yes, before.labels.no, *encoder.fixed_ids.tolist()]
    kept = choose_tokens(read_vocabulary(before.path), counts, always, spec.tokens)
    folder = making.draft.path / CHECKPOINT_FOLDER
    figures = trim_checkpoint(before.path, folder, kept)
    after = write_ranker(
        folder,
        before.template,
        max_item_tokens=before.max_item_tokens,
        max_query_tokens=before.max_query_tokens,
    )
    unseen = sorted({pair.query for pair in labelled.pairs["test"]})
    figures["jobs_tokenised_alike"] = same_tokens_share(before, after, PromptEncoder.body, jobs)
    for name, queries in (("known", known), ("test", unseen)):
        share = same_tokens_share(before, after, PromptEncoder.prefix, queries)
        figures[f"{name}_queries_tokenised_alike"] = share
    making.draft.figures.update(figures)

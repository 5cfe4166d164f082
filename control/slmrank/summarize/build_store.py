"""Summarise a catalogue into a store, reusing every entry of earlier stores that still holds.

An entry is found by its content key, which hashes the job and everything that decides its summary:
what happened to be found changes how long this takes, never what is written.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from slmrank.data.records import Job
from slmrank.errors import DataError
from slmrank.prompt.encoder import PromptEncoder
from slmrank.spec.compress import SummarizeSpec
from slmrank.store.job_store import Entry, JobStore
from slmrank.summarize.new_words import new_words_share
from slmrank.summarize.summarizer import Summarizer, content_key, summarize_entries

COMPARED_JOBS = 500
BATCH_JOBS = 64
Progress = Callable[[int, int], None]


def build_store(
    jobs: Mapping[str, Job],
    encoder: PromptEncoder,
    summarizer: Summarizer,
    identity: Mapping[str, Any],
    target: JobStore,
    earlier: Iterable[JobStore],
    progress: Progress,
) -> dict[str, Any]:
    """Write the entry of every job, and the identity, into `target`; returns figures.

    `identity` names tokenizer and summarizer; entries of `earlier` stores count when theirs is the
    same.
    """
    known = dict(identity)
    contents = {job.job_id: content_key(job, known) for job in jobs.values()}
    entries: dict[str, tuple[str, Entry]] = {}
    for store in earlier:
        if store.identity() != known:
            continue
        for job_id, content in contents.items():
            entry = None if job_id in entries else store.by_content(content)
            if entry is not None:
                entries[job_id] = (content, entry)
    missing = [job_id for job_id in jobs if job_id not in entries]
    started = time.perf_counter()
    for start in range(0, len(missing), BATCH_JOBS):
        batch = [jobs[job_id] for job_id in missing[start : start + BATCH_JOBS]]
        for job, entry in zip(batch, summarize_entries(batch, summarizer, encoder), strict=True):
            entries[job.job_id] = (contents[job.job_id], entry)
        progress(len(jobs) - len(missing) + start + len(batch), len(jobs))
    spent_s = time.perf_counter() - started
    # In the order of the catalogue, so that the files do not depend on what was found.
    target.put({job_id: entries[job_id] for job_id in jobs})
    target.set_identity(known)
    written = [entry for _, entry in entries.values()]
    cut = sum(len(entry.ids) > encoder.max_body_tokens for entry in written)
    return {
        "jobs": len(jobs),
        "computed": len(missing),
        "reused": len(jobs) - len(missing),
        "description_tokens_mean": _mean(entry.source_tokens for entry in written),
        "summary_tokens_mean": _mean(entry.summary_tokens for entry in written),
        "item_tokens_mean": _mean(len(entry.ids) for entry in written),
        "items_cut": cut,
        # Of some, for words are slow to compare: extractive ones have none.
        "new_words": new_words_share(
            (jobs[job_id], entries[job_id][1].summary) for job_id in list(jobs)[:COMPARED_JOBS]
        ),
        "ms_per_job": round(1000 * spent_s / len(missing), 3) if missing else None,
    }


def require_room(figures: Mapping[str, Any], spec: SummarizeSpec, encoder: PromptEncoder) -> None:
    """Raises DataError when more items are cut to the prompt's limit than the spec allows: training
    and serving would both read cut texts."""
    share = figures["items_cut"] / figures["jobs"]
    if share > spec.max_cut_share:
        raise DataError(
            f"{figures['items_cut']} of {figures['jobs']} items ({share:.1%}) are longer than "
            f"prompt.max_item_tokens {encoder.max_item_tokens} and would be cut; "
            f"summarize.max_cut_share allows {spec.max_cut_share:.1%}",
            "raise prompt.max_item_tokens, or lower summarize.budget_tokens "
            f"({spec.budget_tokens}) so that title and place fit beside the summary",
        )


def _mean(values: Iterable[int]) -> float:
    return round(statistics.mean(values), 1)

"""Summarise a catalogue into a store, reusing every entry of an earlier store that still holds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmrank.data.records import Job
from slmrank.hashing import hash_value
from slmrank.prompt.encoder import PromptEncoder, job_text
from slmrank.store.lmdb_store import Entry, SummaryStore
from slmrank.summarize.extractive import (
    Salience,
    fit_salience,
    load_salience,
    save_salience,
    summarize,
)

SALIENCE_FILE = "salience.json"
STORE_FOLDER = "store"
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class SummarySettings:
    """Method, budget in tokens of the summary alone, and the tokenizer the ids belong to."""

    method: str
    budget_tokens: int
    tokenizer_hash: str


def build_store(
    jobs: Mapping[str, Job],
    fit_on: Iterable[str],
    encoder: PromptEncoder,
    settings: SummarySettings,
    target: Path,
    earlier: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Write `store/` and `salience.json` into `target`; returns figures.

    `earlier` is a folder that this function wrote with the same settings. When at least half of the
    jobs stand in it unchanged, its salience table is kept and those entries are copied, so only
    changed jobs are computed. Otherwise the table is fitted on the jobs named by `fit_on`.
    """
    if earlier is not None and not _mostly_unchanged(jobs, earlier):
        earlier = None
    if earlier is not None:
        salience = load_salience(earlier / SALIENCE_FILE)
    else:
        salience = fit_salience(jobs[job_id] for job_id in fit_on)
    save_salience(target / SALIENCE_FILE, salience)
    old = SummaryStore(earlier / STORE_FOLDER) if earlier is not None else None
    (target / STORE_FOLDER).mkdir()
    entries: dict[str, tuple[str, Entry]] = {}
    reused = 0
    identity = {
        "tokenizer_hash": settings.tokenizer_hash,
        "method": settings.method,
        "budget_tokens": settings.budget_tokens,
        "salience": salience.hash,
    }
    try:
        for number, job in enumerate(jobs.values(), start=1):
            content = content_key(job, identity)
            entry = old.by_content(content) if old is not None else None
            if entry is not None:
                reused += 1
            else:
                entry = summarize_entry(job, salience, settings.budget_tokens, encoder)
            entries[job.job_id] = (content, entry)
            if number % 50 == 0 or number == len(jobs):
                progress(number, len(jobs))
    finally:
        if old is not None:
            old.close()
    with SummaryStore(target / STORE_FOLDER, write=True) as store:
        store.put(entries)
        store.set_identity(identity)
    (target / STORE_FOLDER / "lock.mdb").unlink(missing_ok=True)
    made = [entry for _, entry in entries.values()]
    return {
        "jobs": len(jobs),
        "salience": salience.hash,
        "computed": len(jobs) - reused,
        "reused": reused,
        "description_tokens_mean": round(statistics.mean(one.source_tokens for one in made), 1),
        "summary_tokens_mean": round(statistics.mean(one.summary_tokens for one in made), 1),
        "item_tokens_mean": round(statistics.mean(len(one.ids) for one in made), 1),
    }


def summarize_entry(job: Job, salience: Salience, budget: int, encoder: PromptEncoder) -> Entry:
    """The store entry of one job: summary, and the ids of title, place and summary."""
    summary = summarize(job, salience, budget, lambda text: len(encoder.body(text)))
    return Entry(
        summary=summary.text,
        ids=encoder.body(job_text(job, summary.text)),
        summary_tokens=summary.tokens,
        source_tokens=summary.source_tokens,
    )


def _mostly_unchanged(jobs: Mapping[str, Job], earlier: Path) -> bool:
    """Whether at least half of the jobs stand in an earlier store unchanged; another catalogue
    deserves its own salience table."""
    with SummaryStore(earlier / STORE_FOLDER) as store:
        identity = store.identity()
        known = sum(
            store.by_content(content_key(job, identity)) is not None for job in jobs.values()
        )
    return 2 * known >= len(jobs)


def content_key(job: Job, identity: Mapping[str, Any]) -> str:
    """What decides an entry: the job's fields except its id, and the store's identity."""
    fields = job.model_dump(exclude={"job_id"})
    return hash_value({"job": fields, "identity": dict(identity)})[:32]

"""What a summarizer is, and how a job becomes an entry of the store.

A summarizer is query-independent: its summary of a job depends on the job and on what was fitted
once, nothing else. So a job that a client sends with its fields gets the same summary as a stored
one, and a summary can be found by its content.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from slmrank.code_hash import code_hash
from slmrank.data.records import Job, Pair
from slmrank.hashing import hash_value
from slmrank.prompt.encoder import PromptEncoder
from slmrank.prompt.template import job_text
from slmrank.spec.compress import SummarizeSpec
from slmrank.store.job_store import Entry
from slmrank.tokens import Ids

# The ids of texts, as they stand in an item.
Encode = Callable[[Sequence[str]], list[Ids]]
Progress = Callable[[int, int, str], None]
FITTED_FOLDER = "summarizer"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The summary of one job's description, with token counts before and after."""

    text: str
    tokens: int
    source_tokens: int


class Summarizer(Protocol):
    """A fitted summarizer."""

    def identity(self) -> dict[str, Any]:
        """Everything that decides a summary beside the job: plain JSON values."""

    def summarize(self, jobs: Sequence[Job]) -> list[Summary]:
        """One summary per job, each at most the budget's tokens long."""

    def save(self, folder: Path) -> None:
        """Write what was fitted; `load` of the kind reads it again."""


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """What a summarizer is fitted on: jobs, and for kinds that need a ranker the folder of a
    trained one's checkpoint and the training pairs of these jobs. What is fitted must not depend on
    the budget: `load` applies it to the budget of its spec. `base` is the folder of the model that
    everything starts from, `work` keeps what a run that was killed goes on with."""

    spec: SummarizeSpec
    jobs: Sequence[Job]
    encode: Encode
    base: Path | None = None
    ranker: Path | None = None
    work: Path | None = None
    pairs: Sequence[Pair] = ()
    device: str = "cpu"
    progress: Progress = lambda _done, _total, _note: None


class SummarizerKind(Protocol):
    """How summarizers of one name come about. `needs_ranker`: it is fitted with a trained ranker,
    which is then trained on the summaries of the default kind first."""

    needs_ranker: bool

    def fit(self, fitting: Fitting) -> Summarizer: ...

    def load(self, folder: Path, spec: SummarizeSpec, encode: Encode) -> Summarizer: ...


def placed(summarizer: Summarizer, device: str) -> Summarizer:
    """The summarizer on a device, where it runs a model: by the field's name, for an import would
    hang every summary on the code of those that do."""
    if not is_dataclass(summarizer) or isinstance(summarizer, type):
        return summarizer
    if "device" not in {one.name for one in fields(summarizer) if one.init}:
        return summarizer
    found: Summarizer = replace(summarizer, device=device)
    return found


def summarize_entries(
    jobs: Sequence[Job], summarizer: Summarizer, encoder: PromptEncoder
) -> list[Entry]:
    """The store entries of jobs: summary, and the ids of title, place and summary. The one place
    where a job becomes the text of an item, for the store and for jobs that clients send."""
    summaries = summarizer.summarize(jobs)
    texts = [job_text(job, one.text) for job, one in zip(jobs, summaries, strict=True)]
    return [
        Entry(
            summary=summary.text,
            ids=ids,
            summary_tokens=summary.tokens,
            source_tokens=summary.source_tokens,
        )
        for summary, ids in zip(summaries, encoder.bodies(texts), strict=True)
    ]


def identity_of(
    tokenizer_hash: str, encoder: PromptEncoder, summarizer: Summarizer
) -> dict[str, Any]:
    """Everything that decides an entry beside the job; a summarizer's code too, whoever wrote it:
    entries of an older one would be taken for its own."""
    return {
        "tokenizer_hash": tokenizer_hash,
        "body_form": encoder.body_form,
        **summarizer.identity(),
        "code": code_hash(type(summarizer).__module__),
    }


def content_key(job: Job, identity: dict[str, Any]) -> str:
    """What decides an entry: the job's fields except its id, and the store's identity."""
    fields = job.model_dump(exclude={"job_id"})
    return hash_value({"job": fields, "identity": identity})[:32]

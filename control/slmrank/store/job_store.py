"""The summary store: job id -> token ids of the job's text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from slmrank.errors import ArtifactError
from slmrank.tokens import Ids


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored job text: its summary, the ids of the whole text, and token counts."""

    summary: str
    ids: Ids
    summary_tokens: int
    source_tokens: int


class JobStore(Protocol):
    """An open store. Readers may be many; a writer is alone."""

    def identity(self) -> dict[str, Any]:
        """What the ids belong to: tokenizer and summarizer, as `set_identity` wrote it."""

    def set_identity(self, identity: Mapping[str, Any]) -> None: ...

    def put(self, entries: Mapping[str, tuple[str, Entry]]) -> None:
        """Write job id -> (content key, entry), all or nothing."""

    def ids_many(self, job_ids: Sequence[str]) -> list[Ids | None]:
        """Token ids [length] of each job's text, None for an unknown job, an empty array for an
        entry that is damaged."""

    def get(self, job_id: str) -> Entry | None:
        """The whole entry of a job, or None."""

    def by_content(self, content: str) -> Entry | None:
        """The entry with a content key, or None."""

    def job_ids(self) -> Iterator[str]:
        """Every job id, sorted by its bytes."""

    def __len__(self) -> int: ...

    def close(self) -> None: ...


class StoreKind(Protocol):
    """How a scheme opens a store."""

    def open(self, place: str, folder: Path, *, write: bool) -> JobStore: ...

    def files(self, place: str, folder: Path) -> Path | None:
        """The folder with an embedded store's files, else None."""


def require_tokenizer(store: JobStore, tokenizer_hash: str) -> None:
    """Raises ArtifactError when the store's ids belong to another tokenizer."""
    stored = store.identity().get("tokenizer_hash")
    if stored != tokenizer_hash:
        raise ArtifactError(
            f"the summary store was written for tokenizer {stored}, the engine has "
            f"{tokenizer_hash}",
            "run `control summarize` and `control repo` again",
        )

"""The summary store: job id -> token ids of the job's text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from slmrank.data.records import MAX_JOB_ID_BYTES
from slmrank.errors import ArtifactError, RepositoryError
from slmrank.tokens import Ids

# How whoever connects to a shared store is known to it; never in a spec. The last one names a file
# with the authorities that its certificate is checked by.
STORE_USER, STORE_PASSWORD, STORE_AUTHORITY = (
    "SLMRANK_STORE_USER",
    "SLMRANK_STORE_PASSWORD",
    "SLMRANK_STORE_CA",
)
# Beside a repository's stage: the identity of the summaries that it was made with.
IDENTITY_FILE = "identity.json"


def read_identity(folder: Path) -> dict[str, Any]:
    """Raises RepositoryError when the folder of a stage says none."""
    try:
        return dict(json.loads((folder / IDENTITY_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RepositoryError(
            f"{folder} has no usable {IDENTITY_FILE}: {error}", "run `control repo` again"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored job text: its summary, the ids of the whole text, and token counts."""

    summary: str
    ids: Ids
    summary_tokens: int
    source_tokens: int


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What a shared store was asked by this process. `up`: the last look-up succeeded."""

    up: bool
    failures: int
    from_memory: int
    from_store: int
    memory_bytes: int


class SummaryReader(Protocol):
    """What a server needs of a store."""

    def identity(self) -> dict[str, Any]:
        """What the ids belong to: tokenizer and summarizer."""

    def ids_many(self, job_ids: Sequence[str]) -> list[Ids | None]:
        """Token ids [length] of each job's text, None for an unknown job, an empty array for an
        entry that is damaged. Raises StoreUnavailable when a shared store cannot be asked."""

    def close(self) -> None: ...


@runtime_checkable
class SharedReader(SummaryReader, Protocol):
    """The reader of a store that all servers share."""

    def traffic(self) -> Traffic: ...


class JobStore(SummaryReader, Protocol):
    """An open embedded store. Readers may be many; a writer is alone."""

    def set_identity(self, identity: Mapping[str, Any]) -> None: ...

    def put(self, entries: Mapping[str, tuple[str, Entry]]) -> None:
        """Write job id -> (content key, entry), all or nothing."""

    def get(self, job_id: str) -> Entry | None:
        """The whole entry of a job, or None."""

    def by_content(self, content: str) -> Entry | None:
        """The entry with a content key, or None."""

    def job_ids(self) -> Iterator[str]:
        """Every job id, sorted by its bytes."""

    def __len__(self) -> int: ...


class StoreKind(Protocol):
    """How a scheme opens an embedded store."""

    def open(self, place: str, folder: Path, *, write: bool) -> JobStore: ...

    def files(self, place: str, folder: Path) -> Path:
        """The folder with the store's files."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What became current. `before`: the version until then; `carried`: changes of single jobs that
    are newer than the catalogue; `repeated`: rows whose job stands again behind them; `others`:
    identities of other tokenizers and summarizers."""

    version: str
    before: str | None
    jobs: int
    repeated: int
    value_bytes: int
    carried: int
    others: int


def entries_of(store: JobStore, size: int = 1000) -> Iterator[list[tuple[str, Ids]]]:
    """Every job of a store with its ids, in batches."""
    names = iter(store.job_ids())
    while batch := list(islice(names, size)):
        found = zip(batch, store.ids_many(batch), strict=True)
        yield [(job_id, ids) for job_id, ids in found if ids is not None]


class SharedWriter(Protocol):
    """Fills a shared store with the summaries of one identity."""

    def publish(
        self,
        batches: Iterable[Sequence[tuple[str, Ids]]],
        name: str,
        progress: Callable[[int], None],
        *,
        as_of: str,
        drop_others: bool,
    ) -> Published: ...

    def change(self, changes: Sequence[tuple[str, str, Ids | None]]) -> list[bool]:
        """Apply (job id, order, ids; None deletes) to the current version; False for one that is
        older than what was applied. Raises StoreUnavailable when nothing is published."""

    def close(self) -> None: ...


@runtime_checkable
class SharedKind(Protocol):
    """How a scheme reaches a store that all servers share."""

    def check(self, place: str) -> None:
        """Raises SpecError when this is no place of such a store."""

    def port(self, place: str) -> int:
        """The TCP port that servers must reach."""

    def reader(self, place: str, folder: Path) -> SharedReader:
        """The reader of the repository stage in `folder`."""

    def writer(self, place: str, identity: dict[str, Any]) -> SharedWriter: ...


def stored_id(job_id: str) -> bytes | None:
    """A job id as stores keep it; None for one that no stored job can have."""
    raw = job_id.encode("utf-8", "replace")
    return raw if 0 < len(raw) <= MAX_JOB_ID_BYTES else None


def require_tokenizer(store: SummaryReader, tokenizer_hash: str) -> None:
    """Raises ArtifactError when the store's ids belong to another tokenizer."""
    stored = store.identity().get("tokenizer_hash")
    if stored != tokenizer_hash:
        raise ArtifactError(
            f"the summary store was written for tokenizer {stored}, the engine has "
            f"{tokenizer_hash}",
            "run `control summarize` and `control repo` again",
        )

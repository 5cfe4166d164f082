"""The summary store: job id -> token ids of the job's text, in LMDB.

Three tables: `jobs` (job id -> content key), `ids` (content key -> int32 token ids, ready for the
prompt) and `texts` (content key -> JSON with the summary and its token counts). The content key
hashes everything that decides an entry, so a re-run copies what did not change. `meta` names the
tokenizer and template that the ids belong to; a reader with others must refuse the store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb
import numpy as np

from slmrank.data.records import MAX_JOB_ID_BYTES
from slmrank.errors import ArtifactError
from slmrank.prompt.encoder import Ids

MAP_SIZE = 1 << 36  # address space, not disk: the file grows with its content


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored job text: its summary, the ids of the whole text, and token counts."""

    summary: str
    ids: Ids
    summary_tokens: int
    source_tokens: int


class SummaryStore:
    """One LMDB directory, open for reading, or for writing when `write` is set."""

    def __init__(self, path: Path, *, write: bool = False) -> None:
        if not write and not (path / "data.mdb").is_file():
            raise ArtifactError(f"no summary store at {path}", "make it with `control summarize`")
        self._env = lmdb.open(
            str(path), map_size=MAP_SIZE, max_dbs=4, readonly=not write, lock=write, sync=write
        )
        names = (b"jobs", b"ids", b"texts", b"meta")
        self._jobs, self._ids, self._texts, self._meta = (
            self._env.open_db(name, create=write) for name in names
        )

    def __enter__(self) -> SummaryStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._env.close()

    def identity(self) -> dict[str, Any]:
        """What the ids belong to, as written by `set_identity`."""
        with self._env.begin(db=self._meta) as reading:
            stored = reading.get(b"identity")
        return dict(json.loads(stored)) if stored else {}

    def set_identity(self, identity: Mapping[str, Any]) -> None:
        with self._env.begin(db=self._meta, write=True) as writing:
            writing.put(b"identity", json.dumps(dict(identity), sort_keys=True).encode())

    def put(self, entries: Mapping[str, tuple[str, Entry]]) -> None:
        """Write job id -> (content key, entry), all or nothing."""
        with self._env.begin(write=True) as writing:
            for job_id, (content, entry) in entries.items():
                key = content.encode()
                text = {
                    "summary": entry.summary,
                    "summary_tokens": entry.summary_tokens,
                    "source_tokens": entry.source_tokens,
                }
                writing.put(job_id.encode(), key, db=self._jobs)
                writing.put(key, entry.ids.astype("<i4").tobytes(), db=self._ids)
                writing.put(key, json.dumps(text, ensure_ascii=False).encode(), db=self._texts)

    def ids(self, job_id: str) -> Ids | None:
        """Token ids [length] of a job's text, or None for an unknown job."""
        raw = job_id.encode("utf-8", "replace")
        if not 0 < len(raw) <= MAX_JOB_ID_BYTES:
            return None
        with self._env.begin() as reading:
            key = reading.get(raw, db=self._jobs)
            stored = reading.get(key, db=self._ids) if key else None
        return None if stored is None else np.frombuffer(stored, dtype="<i4")

    def by_content(self, content: str) -> Entry | None:
        """The entry with a content key, or None."""
        with self._env.begin() as reading:
            stored = reading.get(content.encode(), db=self._ids)
            text = reading.get(content.encode(), db=self._texts)
        if stored is None or text is None:
            return None
        return Entry(ids=np.frombuffer(stored, dtype="<i4"), **json.loads(text))

    def get(self, job_id: str) -> Entry | None:
        """The entry of a job, or None for an unknown job."""
        with self._env.begin(db=self._jobs) as reading:
            key = reading.get(job_id.encode())
        return self.by_content(key.decode()) if key else None

    def job_ids(self) -> Iterator[str]:
        """Every job id, sorted by its bytes."""
        with self._env.begin(db=self._jobs) as reading, reading.cursor() as cursor:
            for key in cursor.iternext(values=False):
                yield key.decode()

    def __len__(self) -> int:
        with self._env.begin() as reading:
            return int(reading.stat(self._jobs)["entries"])

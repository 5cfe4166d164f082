"""The embedded summary store, in LMDB.

Three tables: `jobs` (job id -> content key), `ids` (content key -> int32 token ids, ready for the
prompt) and `texts` (content key -> JSON with the summary and its token counts). The content key
hashes everything that decides an entry, so a re-run copies what did not change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from slmrank.errors import ArtifactError, SpecError
from slmrank.store.job_store import Entry, JobStore, stored_id
from slmrank.tokens import EMPTY, Ids

MAP_SIZE = 1 << 36  # address space, not disk: the file grows with its content
STORE_FOLDER = "store"


class LmdbKind:
    """`lmdb:`, a folder below the bundle's."""

    def open(self, place: str, folder: Path, *, write: bool) -> JobStore:
        path = self.files(place, folder)
        if write:
            path.mkdir(parents=True, exist_ok=True)
        return LmdbStore(path, write=write)

    def files(self, place: str, folder: Path) -> Path:
        if place:
            raise SpecError(f"summarize.store lmdb:{place} names a place", "write lmdb: alone")
        return folder / STORE_FOLDER


class LmdbStore:
    """One LMDB directory, open for reading, or for writing when `write` is set."""

    def __init__(self, path: Path, *, write: bool = False) -> None:
        if not write and not (path / "data.mdb").is_file():
            raise ArtifactError(f"no summary store at {path}", "make it with `control summarize`")
        self._path, self._write = path, write
        names = (b"jobs", b"ids", b"texts", b"meta")
        # A reader maps what is there: some systems limit the addresses of a process.
        held = MAP_SIZE if write else (path / "data.mdb").stat().st_size
        try:
            self._env = lmdb.open(
                str(path), map_size=held, max_dbs=4, readonly=not write, lock=write, sync=write
            )
            pages = self._env.info()["last_pgno"] + 1
            if not write and pages * self._env.stat()["psize"] > held:
                # To read on would end the process.
                raise lmdb.Error(f"data.mdb was cut short at {held} bytes")
            self._jobs, self._ids, self._texts, self._meta = (
                self._env.open_db(name, create=write) for name in names
            )
        except lmdb.Error as error:
            twice = "already open" in str(error)
            raise ArtifactError(
                f"cannot open the summary store {path}: {error}",
                "close the one that is open, or start this process again"
                if twice
                else "make it again",
            ) from error

    def close(self) -> None:
        self._env.close()
        if self._write:
            (self._path / "lock.mdb").unlink(missing_ok=True)

    def identity(self) -> dict[str, Any]:
        with self._env.begin(db=self._meta) as reading:
            stored = reading.get(b"identity")
        return dict(json.loads(stored)) if stored else {}

    def set_identity(self, identity: Mapping[str, Any]) -> None:
        with self._env.begin(db=self._meta, write=True) as writing:
            writing.put(b"identity", json.dumps(dict(identity), sort_keys=True).encode())

    def put(self, entries: Mapping[str, tuple[str, Entry]]) -> None:
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

    def ids_many(self, job_ids: Sequence[str]) -> list[Ids | None]:
        found: list[Ids | None] = []
        with self._env.begin() as reading:
            for job_id in job_ids:
                raw = stored_id(job_id)
                key = reading.get(raw, db=self._jobs) if raw is not None else None
                stored = reading.get(key, db=self._ids) if key else None
                found.append(None if stored is None else _ids(stored))
        return found

    def by_content(self, content: str) -> Entry | None:
        with self._env.begin() as reading:
            stored = reading.get(content.encode(), db=self._ids)
            text = reading.get(content.encode(), db=self._texts)
        if stored is None or text is None:
            return None
        return Entry(ids=np.frombuffer(stored, dtype="<i4"), **json.loads(text))

    def get(self, job_id: str) -> Entry | None:
        with self._env.begin(db=self._jobs) as reading:
            key = reading.get(job_id.encode())
        return self.by_content(key.decode()) if key else None

    def job_ids(self) -> Iterator[str]:
        with self._env.begin(db=self._jobs) as reading, reading.cursor() as cursor:
            for key in cursor.iternext(values=False):
                yield key.decode()

    def __len__(self) -> int:
        with self._env.begin() as reading:
            return int(reading.stat(self._jobs)["entries"])


def _ids(stored: bytes) -> Ids:
    """The ids of an entry; none where the bytes cannot be any."""
    return np.frombuffer(stored, dtype="<i4") if len(stored) % 4 == 0 else EMPTY

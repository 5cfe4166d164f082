"""A summary store of somebody else, in this one file: registered, written, served."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slmrank.client.client import RankClient
from slmrank.errors import ArtifactError
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import run
from slmrank.plugins import VARIABLE
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.spec.reading import change_spec
from slmrank.store.job_store import Entry, JobStore
from slmrank.store.registry import STORES
from slmrank.tokens import Ids


class JsonStore:
    """Everything in one JSON file."""

    def __init__(self, path: Path, *, write: bool) -> None:
        if not write and not path.is_file():
            raise ArtifactError(f"no store at {path}", "make it")
        self._path = path
        self._data: dict[str, Any] = {"identity": {}, "jobs": {}}
        if path.is_file():
            self._data = json.loads(path.read_text())

    def identity(self) -> dict[str, Any]:
        return dict(self._data["identity"])

    def set_identity(self, identity: Mapping[str, Any]) -> None:
        self._data["identity"] = dict(identity)
        self._save()

    def put(self, entries: Mapping[str, tuple[str, Entry]]) -> None:
        for job_id, (content, entry) in entries.items():
            values = {**asdict(entry), "ids": entry.ids.tolist(), "content": content}
            self._data["jobs"][job_id] = values
        self._save()

    def ids_many(self, job_ids: Sequence[str]) -> list[Ids | None]:
        found = [self.get(job_id) for job_id in job_ids]
        return [None if entry is None else entry.ids for entry in found]

    def get(self, job_id: str) -> Entry | None:
        values = self._data["jobs"].get(job_id)
        return None if values is None else self._entry(values)

    def by_content(self, content: str) -> Entry | None:
        values = [one for one in self._data["jobs"].values() if one["content"] == content]
        return self._entry(values[0]) if values else None

    def job_ids(self) -> Iterator[str]:
        return iter(sorted(self._data["jobs"]))

    def __len__(self) -> int:
        return len(self._data["jobs"])

    def close(self) -> None: ...

    def _entry(self, values: Mapping[str, Any]) -> Entry:
        rest = {name: value for name, value in values.items() if name not in ("ids", "content")}
        return Entry(ids=np.array(values["ids"], dtype=np.int32), **rest)

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self._data))


class JsonKind:
    def open(self, place: str, folder: Path, *, write: bool) -> JobStore:
        return JsonStore(self.files(place, folder) / "jobs.json", write=write)

    def files(self, place: str, folder: Path) -> Path:
        return folder / place


STORES.register("json", JsonKind())


@pytest.mark.long
@pytest.mark.triton
def test_it_is_written_and_served(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, __file__)
    bundle = Bundle(change_spec(tiny.bundle.spec, {"summarize": {"store": "json:texts"}}))
    repository = run(bundle.repository, tiny.store).path
    assert (repository / "prepare" / "1" / "texts" / "jobs.json").is_file()
    assert not list(repository.rglob("*.mdb"))
    with Server(repository, ANY_PORTS) as server, RankClient(server.url) as client:
        known, unknown = client.score("nurse", ["job-1", "gone"])
    assert 0 < known.score < 1
    assert np.isnan(unknown.score)


def test_an_unknown_store_is_told_the_known_ones(tiny: Any, control: Any) -> None:
    done = control("summarize", tiny.spec, "--set", "summarize.store=lmbd:")
    assert done.returncode == 2
    assert "did you mean 'lmdb'" in done.stderr

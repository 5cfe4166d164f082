"""The summary store on disk."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from slmrank.errors import ArtifactError, SpecError
from slmrank.store.job_store import Entry
from slmrank.store.registry import open_store


def entry(*ids: int) -> Entry:
    return Entry(
        summary="short", ids=np.array(ids, dtype=np.int32), summary_tokens=1, source_tokens=9
    )


def test_round_trip(tmp_path: Path) -> None:
    with closing(open_store("lmdb:", tmp_path, write=True)) as store:
        store.put(
            {"a": ("k1", entry(1, 2)), "\u00e4/2": ("k2", entry(70_000)), "c": ("k1", entry(1, 2))}
        )
        store.set_identity({"tokenizer_hash": "t"})
    with closing(open_store("lmdb:", tmp_path)) as store:
        assert len(store) == 3
        assert sorted(store.job_ids()) == ["a", "c", "\u00e4/2"]
        found = store.get("\u00e4/2")
        assert found is not None
        assert found.ids.tolist() == [70_000]
        assert found.summary == "short"
        ids = store.ids_many(["c"])[0]
        assert ids is not None
        assert ids.tolist() == [1, 2]
        assert store.identity() == {"tokenizer_hash": "t"}


@pytest.mark.parametrize("job_id", ["", "unknown", "x" * 600, "\ud800"])
def test_unknown_ids_are_none(tmp_path: Path, job_id: str) -> None:
    with closing(open_store("lmdb:", tmp_path, write=True)) as store:
        store.put({"a": ("k1", entry(1))})
    with closing(open_store("lmdb:", tmp_path)) as store:
        assert store.ids_many([job_id, "a"])[0] is None


def test_a_missing_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no summary store"):
        open_store("lmdb:", tmp_path / "none")


def test_an_unknown_scheme_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no summary store 'lmbd'; did you mean 'lmdb'") as caught:
        open_store("lmbd:x", tmp_path)
    assert "lmdb" in caught.value.hint


def test_what_is_no_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="write lmdb: alone|names a place"):
        open_store("lmdb:other", tmp_path, write=True)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "data.mdb").write_bytes(b"garbage" * 1000)
    with pytest.raises(ArtifactError, match="cannot open the summary store"):
        open_store("lmdb:", tmp_path)


def test_a_store_that_was_cut_short_is_an_error_and_no_end(tmp_path: Path) -> None:
    """To read on behind the end of a mapped file ends the process."""
    ids = np.arange(300, dtype=np.int32)
    entry = Entry(summary="s" * 400, ids=ids, summary_tokens=1, source_tokens=1)
    with closing(open_store("lmdb:", tmp_path, write=True)) as written:
        written.put({f"job-{number}": ("k", entry) for number in range(500)})
    (data,) = tmp_path.rglob("data.mdb")
    whole = data.read_bytes()
    with closing(open_store("lmdb:", tmp_path)) as read:
        assert read.get("job-7") is not None
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="cut short"):
        open_store("lmdb:", tmp_path)

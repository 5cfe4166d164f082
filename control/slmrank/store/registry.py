"""Summary stores by url, which is `scheme:place`.

`lmdb:` is embedded: it lies inside the bundle and travels with it. Others are registered with
`STORES.register(scheme, kind)`.
"""

from __future__ import annotations

from pathlib import Path

from slmrank.registry import Registry
from slmrank.store.job_store import JobStore, StoreKind


def _built_in() -> None:
    from slmrank.store.lmdb_store import LmdbKind

    STORES.register("lmdb", LmdbKind())


STORES: Registry[StoreKind] = Registry("summary store", _built_in)


def store_kind(url: str) -> tuple[StoreKind, str]:
    """(kind, place) of a url. Raises SpecError for an unknown scheme."""
    scheme, _, place = url.partition(":")
    return STORES.get(scheme), place


def open_store(url: str, folder: Path, *, write: bool = False) -> JobStore:
    """Open the store of a url; `folder` is where an embedded one lies.

    Raises SpecError for an unknown scheme, ArtifactError when there is no store to read.
    """
    kind, place = store_kind(url)
    return kind.open(place, folder, write=write)

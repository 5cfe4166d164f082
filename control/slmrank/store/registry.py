"""Summary stores by url, which is `scheme:place`.

`lmdb:` is embedded: it lies inside the bundle and travels with it. `redis:` is shared: every server
reads it, `control publish` fills it. Others are registered with `STORES.register(scheme, kind)`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slmrank.errors import SpecError
from slmrank.registry import Registry
from slmrank.store.job_store import JobStore, SharedKind, SharedWriter, StoreKind, SummaryReader

EMBEDDED = "lmdb:"


def _built_in() -> None:
    from slmrank.store.lmdb_store import LmdbKind
    from slmrank.store.redis_reader import RedisKind

    STORES.register("lmdb", LmdbKind())
    for scheme in ("redis", "rediss"):
        STORES.register(scheme, RedisKind(scheme))


STORES: Registry[StoreKind | SharedKind] = Registry("summary store", _built_in)


def store_kind(url: str) -> tuple[StoreKind | SharedKind, str]:
    """(kind, place) of a url. Raises SpecError for an unknown scheme, or a place that is none."""
    scheme, _, place = url.partition(":")
    kind = STORES.get(scheme)
    if isinstance(kind, SharedKind):
        kind.check(place)
    return kind, place


def is_shared(url: str) -> bool:
    """Whether all servers read one store, instead of each its bundle's."""
    return isinstance(store_kind(url)[0], SharedKind)


def shared_port(url: str) -> int | None:
    """The TCP port of a shared store, None for an embedded one."""
    kind, place = store_kind(url)
    return kind.port(place) if isinstance(kind, SharedKind) else None


def embedded_url(url: str) -> str:
    """Where the pipeline keeps the summaries of a spec: a shared store is filled from an embedded
    one, so that what is trained and measured on does not change under it."""
    return EMBEDDED if is_shared(url) else url


def open_store(url: str, folder: Path, *, write: bool = False) -> JobStore:
    """Open the embedded store of a url in a folder.

    Raises SpecError for an unknown scheme, ArtifactError when there is no store to read.
    """
    kind, place = store_kind(url)
    if isinstance(kind, SharedKind):
        return open_store(EMBEDDED, folder, write=write)
    return kind.open(place, folder, write=write)


def open_reader(url: str, folder: Path) -> SummaryReader:
    """What a server reads: the shared store of a url, or the embedded one in the folder."""
    kind, place = store_kind(url)
    return kind.reader(place, folder) if isinstance(kind, SharedKind) else open_store(url, folder)


def shared_kind(url: str) -> tuple[SharedKind, str]:
    """(kind, place) of a store that all servers read. Raises SpecError for an embedded one."""
    kind, place = store_kind(url)
    if not isinstance(kind, SharedKind):
        raise SpecError(
            f"summarize.store is {url!r}, which lies inside each bundle: nothing shares it",
            "set summarize.store to redis://HOST:6379/0, or ship the bundle of `control repo`",
        )
    return kind, place


def open_writer(url: str, identity: dict[str, Any]) -> SharedWriter:
    """The writer of a shared store. Raises SpecError for an embedded one."""
    kind, place = shared_kind(url)
    return kind.writer(place, identity)

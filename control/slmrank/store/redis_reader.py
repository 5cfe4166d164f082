"""Summaries in Redis or Valkey, shared by every server: the reader.

One version of a catalogue is one hash, job id -> ids; a key names the current one. A request reads
both in one round trip: HMGET is atomic, so a request sees one version, and where the name has
changed meanwhile it asks again. A store that is down, late or empty fails the look-up as a whole
(`StoreUnavailable`); it never gives the ids of anything else.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slmrank.errors import StoreUnavailable
from slmrank.store.breaker import Breaker
from slmrank.store.ids_code import decode_ids
from slmrank.store.job_store import Traffic, read_identity, stored_id
from slmrank.store.recent import Recent
from slmrank.store.redis_address import WHOLE, Keys, connect, parse_address
from slmrank.store.redis_writer import RedisWriter
from slmrank.tokens import Ids


class RedisKind:
    """`redis://HOST:PORT/DB?catalogue=NAME` and `rediss://`. The pipeline keeps its summaries in
    artifacts; `control publish` copies them to the shared store."""

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme

    def check(self, place: str) -> None:
        """Raises SpecError when this is no address."""
        parse_address(f"{self._scheme}:{place}")

    def port(self, place: str) -> int:
        return parse_address(f"{self._scheme}:{place}").port

    def reader(self, place: str, folder: Path) -> RedisReader:
        """The reader of a repository, whose `identity.json` says which summaries are its own."""
        return RedisReader(f"{self._scheme}:{place}", read_identity(folder))

    def writer(self, place: str, identity: dict[str, Any]) -> RedisWriter:
        return RedisWriter(parse_address(f"{self._scheme}:{place}"), identity)


class RedisReader:
    """Looks summaries up; nothing is asked of the store before the first look-up, so that a server
    starts without it."""

    def __init__(self, url: str, identity: dict[str, Any]) -> None:
        self._address = parse_address(url)
        self._identity = identity
        self._keys = Keys(self._address.catalogue, identity)
        self._client = connect(self._address, timeout_s=self._address.deadline_ms / 1000)
        self._recent: Recent[Ids] = Recent(self._address.memory_mb * 2**20, lambda ids: ids.nbytes)
        self._breaker = Breaker(self._address.retry_ms / 1000)
        self._version: str | None = None
        self._from_memory = self._from_store = 0

    def identity(self) -> dict[str, Any]:
        return dict(self._identity)

    def close(self) -> None:
        self._client.close()

    def traffic(self) -> Traffic:
        return Traffic(
            up=self._breaker.up,
            failures=self._breaker.failures,
            from_memory=self._from_memory,
            from_store=self._from_store,
            memory_bytes=self._recent.size,
        )

    def ids_many(self, job_ids: Sequence[str]) -> list[Ids | None]:
        """Raises StoreUnavailable; until `retry_ms` after that at once, without asking again."""
        names = [stored_id(job_id) for job_id in job_ids]
        known = {name: self._recent.get(name) for name in names if name is not None}
        missing = [name for name, ids in known.items() if ids is None]
        self._from_memory += len(known) - len(missing)
        if missing:
            version = self._version
            found = self._ask(missing)
            if self._version != version and len(missing) < len(known):
                # What was at hand belongs to another version than what was fetched.
                missing = list(known)
                found = self._ask(missing)
            known.update(zip(missing, found, strict=True))
        return [None if name is None else known[name] for name in names]

    def _ask(self, names: Sequence[bytes]) -> list[Ids | None]:
        if self._breaker.open:
            raise StoreUnavailable(self._breaker.reason, "see the store's health")
        from redis.exceptions import RedisError

        try:
            stored = self._fetch(names)
        except (RedisError, OSError) as error:
            stored = str(error) or type(error).__name__
        if isinstance(stored, str):
            self._recent.clear()
            self._version = None
            self._breaker.failed(f"the summary store {self._address.place}: {stored}")
            raise StoreUnavailable(self._breaker.reason, "start it, or `control publish` to it")
        self._breaker.succeeded()
        self._from_store += len(names)
        found = [place for place, one in enumerate(stored) if one is not None]
        answer: list[Ids | None] = [None] * len(names)
        decoded = decode_ids([one for one in stored if one is not None])
        for place, ids in zip(found, decoded, strict=True):
            answer[place] = ids
            # A copy: the ids of one answer are views into one array, which each would keep whole.
            self._recent.put(names[place], ids.copy(), self._address.memory_s)
        return answer

    def _fetch(self, names: Sequence[bytes]) -> list[bytes | None] | str:
        """The stored bytes of each name in the current version, or what is wrong."""
        until = time.monotonic() + self._address.deadline_ms / 1000
        while True:
            pinned = self._version
            asked = self._client.pipeline(transaction=False)
            asked.get(self._keys.current)
            if pinned is not None:
                asked.hmget(self._keys.version(pinned), [WHOLE, *names])
            current, *fetched = asked.execute()
            if current is None:
                return (
                    f"nothing is published for catalogue {self._address.catalogue!r} and this "
                    f"repository's tokenizer and summarizer ({self._keys.namespace})"
                )
            current = current.decode()
            if current == pinned:
                whole, *values = fetched[0]
                if whole is None:
                    return f"version {current} is gone"
                return list(values)
            self._version = current
            self._recent.clear()
            if time.monotonic() > until:
                return f"its answers take longer than {self._address.deadline_ms} ms"

"""Scores in Redis or Valkey, shared by every server. A cache that does not answer holds nothing: it
never fails a request."""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping, Sequence

from slmrank.spec.repository import MEMORY, CacheSpec
from slmrank.store.breaker import Breaker
from slmrank.store.redis_address import connect, parse_address

PREFIX = b"slmrank:score:"
# The score, and the second since 1970 at which it ends: who keeps a copy keeps it no longer.
_VALUE = struct.Struct("<fI")


def check_place(spec: CacheSpec | None) -> None:
    """Raises SpecError where a shared cache's url is none; it may hold a password."""
    if spec is not None and spec.place != MEMORY:
        parse_address(spec.place, "repository.cache.place")


class RedisScores:
    """A float32 per key, with an end of its own."""

    def __init__(self, url: str) -> None:
        address = parse_address(url, "repository.cache.place")
        self._client = connect(address, timeout_s=address.deadline_ms / 1000)
        self._breaker = Breaker(address.retry_ms / 1000)

    @property
    def failures(self) -> int:
        return self._breaker.failures

    def get_many(self, keys: Sequence[bytes]) -> list[tuple[float, float] | None]:
        """(score, seconds that it still holds) of each key."""
        if not keys or self._breaker.open:
            return [None] * len(keys)
        from redis.exceptions import RedisError

        try:
            stored = self._client.mget([PREFIX + key for key in keys])
        except (RedisError, OSError) as error:
            self._breaker.failed(str(error))
            return [None] * len(keys)
        self._breaker.succeeded()
        now = time.time()
        read = [_VALUE.unpack(one) if one and len(one) == _VALUE.size else None for one in stored]
        return [None if one is None else (one[0], one[1] - now) for one in read]

    def put_many(self, scores: Mapping[bytes, tuple[float, float]]) -> None:
        """Keep key -> (score, seconds)."""
        if not scores or self._breaker.open:
            return
        from redis.exceptions import RedisError

        asked, now = self._client.pipeline(transaction=False), time.time()
        for key, (score, seconds) in scores.items():
            value = _VALUE.pack(score, min(int(now + seconds), 2**32 - 1))
            asked.set(PREFIX + key, value, px=max(1, round(1000 * seconds)))
        try:
            asked.execute()
        except (RedisError, OSError) as error:
            self._breaker.failed(str(error))

"""Scores in Redis or Valkey, shared by every server. A cache that does not answer holds nothing: it
never fails a request."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from slmrank.store.breaker import Breaker
from slmrank.store.redis_address import connect, parse_address

PREFIX = b"slmrank:score:"
_FLOAT = struct.Struct("<f")


class RedisScores:
    """One float32 per key, with an end of its own."""

    def __init__(self, url: str) -> None:
        address = parse_address(url, "repository.cache.place")
        self._client = connect(address, timeout_s=address.deadline_ms / 1000)
        self._breaker = Breaker(address.retry_ms / 1000)

    @property
    def failures(self) -> int:
        return self._breaker.failures

    def get_many(self, keys: Sequence[bytes]) -> list[float | None]:
        if not keys or self._breaker.open:
            return [None] * len(keys)
        from redis.exceptions import RedisError

        try:
            stored = self._client.mget([PREFIX + key for key in keys])
        except (RedisError, OSError) as error:
            self._breaker.failed(str(error))
            return [None] * len(keys)
        self._breaker.succeeded()
        return [
            _FLOAT.unpack(one)[0] if one and len(one) == _FLOAT.size else None for one in stored
        ]

    def put_many(self, scores: Mapping[bytes, tuple[float, float]]) -> None:
        """Keep key -> (score, seconds)."""
        if not scores or self._breaker.open:
            return
        from redis.exceptions import RedisError

        asked = self._client.pipeline(transaction=False)
        for key, (score, seconds) in scores.items():
            asked.set(PREFIX + key, _FLOAT.pack(score), px=max(1, round(1000 * seconds)))
        try:
            asked.execute()
        except (RedisError, OSError) as error:
            self._breaker.failed(str(error))

"""Summaries in Redis or Valkey: whole versions published, and single jobs changed.

A version is written beside the current one and becomes current in one step, with every change of a
single job that came in meanwhile. The version before stays for a grace, for requests under way.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from slmrank.errors import StoreUnavailable
from slmrank.store.ids_code import encode_ids
from slmrank.store.job_store import Published
from slmrank.store.redis_address import WHOLE, Keys, RedisAddress, asking, connect
from slmrank.tokens import Ids

TIMEOUT_S = 10.0
REMEDY = "is it running, and may this user write there?"
# An unfinished version disappears by itself.
UNFINISHED_S = 24 * 3600

# Changes carry an order (`Change.order`), kept per job in `seen`: one that was applied, or is older
# than one that was, changes nothing, however often and by whomever it is delivered. Under '', which
# is no job's id, `seen` holds the moment up to which the catalogue itself holds them.
_APPLY = """
local current = redis.call('GET', KEYS[1])
if not current or redis.call('HEXISTS', ARGV[1] .. current, '') == 0 then return -1 end
for _, order in ipairs(redis.call('HMGET', KEYS[2], ARGV[2], '')) do
  if order and order >= ARGV[3] then return 0 end
end
if ARGV[4] == '' then redis.call('HDEL', ARGV[1] .. current, ARGV[2])
else redis.call('HSET', ARGV[1] .. current, ARGV[2], ARGV[4]) end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
return 1
"""
# The new version becomes current, if it holds as many fields as were written: a server that started
# again or evicted it meanwhile has lost the first ones. Single changes after the catalogue's moment
# are carried over; those in a version that was evicted are lost, and must come again.
_SWITCH = """
if redis.call('HLEN', ARGV[1] .. ARGV[2]) < tonumber(ARGV[5]) then return {} end
local before = redis.call('GET', KEYS[1])
if not before or redis.call('HEXISTS', ARGV[1] .. before, '') == 0 then
  before = false
  redis.call('DEL', KEYS[2])
end
local changes, carried = redis.call('HGETALL', KEYS[2]), 0
for place = 1, #changes, 2 do
  local job = changes[place]
  if job == '' or changes[place + 1] <= ARGV[3] then redis.call('HDEL', KEYS[2], job)
  elseif before then
    local ids = redis.call('HGET', ARGV[1] .. before, job)
    if ids then redis.call('HSET', ARGV[1] .. ARGV[2], job, ids)
    else redis.call('HDEL', ARGV[1] .. ARGV[2], job) end
    carried = carried + 1
  end
end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[2], '', ARGV[3]) end
redis.call('PERSIST', ARGV[1] .. ARGV[2])
redis.call('PERSIST', KEYS[2])
redis.call('SET', KEYS[1], ARGV[2])
if before and before ~= ARGV[2] then redis.call('EXPIRE', ARGV[1] .. before, ARGV[4]) end
return {before or '', carried}
"""

_DISCARD = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return 0 end
redis.call('UNLINK', KEYS[2])
return 1
"""


class RedisWriter:
    """Writes the summaries of one identity."""

    def __init__(self, address: RedisAddress, identity: dict[str, Any]) -> None:
        self.address, self._identity = address, identity
        self._keys = Keys(address.catalogue, identity)
        self.client = connect(address, timeout_s=TIMEOUT_S)
        self._apply = self.client.register_script(_APPLY)
        self._switch = self.client.register_script(_SWITCH)

    @property
    def namespace(self) -> str:
        return self._keys.namespace

    def close(self) -> None:
        self.client.close()

    def publish(
        self,
        batches: Iterable[Sequence[tuple[str, Ids]]],
        name: str,
        progress: Callable[[int], None] = lambda _done: None,
        *,
        as_of: str = "",
        drop_others: bool = False,
    ) -> Published:
        """Make the jobs of all batches (id, ids) the current version.

        They hold the changes of single jobs up to the order `as_of`, so that these change nothing
        any more; later ones are carried over.
        `drop_others` ends the summaries of other tokenizers and summarizers after the grace.
        Raises StoreUnavailable; it says whether the version before is still the current one.
        """
        version = f"{name}-{time.time_ns() // 1_000_000}"
        key, done, written, fields = self._keys.version(version), 0, 0, 0
        own, switching = json.dumps(self._identity, sort_keys=True), False
        try:
            with asking(f"nothing was published to the summary store {self.address.place}", REMEDY):
                for batch in batches:
                    values = {job_id.encode(): encode_ids(ids) for job_id, ids in batch}
                    if not values:
                        continue
                    asked = self.client.pipeline(transaction=False)
                    asked.hset(key, mapping=values)
                    asked.expire(key, UNFINISHED_S)
                    fields += asked.execute()[0]
                    done += len(batch)
                    written += sum(map(len, values.values()))
                    progress(done)
                fields += self.client.hset(key, WHOLE, own)
                self.client.hset(self._keys.identities, self.namespace, own)
                arguments = [f"{self._keys.prefix}v:", version, as_of, self.address.grace_s, fields]
                switching = True
                switched = self._switch([self._keys.current, self._keys.seen], arguments)
                if not switched:
                    raise StoreUnavailable(
                        f"{self.address.place} lost jobs while they were published: it started "
                        "again, or evicts keys; the version before stays current",
                        "give it the memory (maxmemory), or policy noeviction, and publish again",
                    )
        except BaseException as error:
            current = self._discard(version)
            if current is False or not switching or not isinstance(error, Exception):
                raise
            told = "is current" if current else "may or may not be current"
            raise StoreUnavailable(
                f"version {version} {told} in {self.address.place}, whose answer was lost: "
                f"{error.__cause__ or error}",
                "nothing has to be done" if current else "publish again when it is back",
            ) from error
        with asking(f"version {version} is current, but other ones were not looked at", REMEDY):
            before, carried = switched
            others = self._others(drop=drop_others)
        return Published(
            version=version,
            before=before.decode() or None,
            jobs=fields - 1,  # one is WHOLE
            repeated=done - (fields - 1),
            value_bytes=written,
            carried=carried,
            others=others,
        )

    def change(self, changes: Sequence[tuple[str, str, Ids | None]]) -> list[bool]:
        """Apply (job id, order, ids; None deletes) to the current version, in one round trip; False
        for one that is older than what is there. Raises StoreUnavailable when nothing is published.
        """
        with asking(f"nothing was changed in the summary store {self.address.place}", REMEDY):
            asked = self.client.pipeline(transaction=False)
            for job_id, order, ids in changes:
                value = b"" if ids is None else encode_ids(ids)
                self._apply(
                    [self._keys.current, self._keys.seen],
                    [f"{self._keys.prefix}v:", job_id, order, value],
                    client=asked,
                )
            told = asked.execute()
        if -1 in told:
            raise StoreUnavailable(
                f"nothing is published in {self.address.place} for catalogue "
                f"{self.address.catalogue!r} and this summarizer ({self.namespace})",
                "run `control publish` first",
            )
        return [one == 1 for one in told]

    def _discard(self, version: str) -> bool | None:
        """End a version that is not current: half of a catalogue takes the memory that single
        changes need. Whether it is the current one, None where that is not known."""
        with contextlib.suppress(Exception):  # the first error is told
            keys = [self._keys.current, self._keys.version(version)]
            return not self.client.eval(_DISCARD, 2, *keys, version)
        return None

    def _others(self, *, drop: bool) -> int:
        """How many other identities the catalogue has; dropped, their keys end after the grace."""
        found = [
            one.decode()
            for one in self.client.hkeys(self._keys.identities)
            if one.decode() != self.namespace
        ]
        if drop:
            for namespace in found:
                pattern = f"slmrank:{{{self.address.catalogue}:{namespace}}}:*"
                for key in self.client.scan_iter(match=pattern, count=1000):
                    self.client.expire(key, self.address.grace_s)
                self.client.hdel(self._keys.identities, namespace)
        return len(found)

"""The score cache of the stage `ranker`: a pair that was scored a moment ago is not scored again.

A key is a hash over the prefix's ids, the item's ids and the engine: template, query, summary and
tokenizer stand in the ids, weights and calibration in the engine, so that what decides a score
cannot differ behind one key. Triton's own response cache keys whole requests: one new job among
fifty would miss them all, and nothing in it ends.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slmrank.spec.repository import MEMORY, CacheSpec
from slmrank.store.recent import Recent
from slmrank.store.redis_scores import RedisScores
from slmrank.tokens import Ids

Asked = tuple[Ids, Sequence[Ids]]  # the prefix and the items of one request
Scores = npt.NDArray[np.float32]
PARAMETER = "cache"
KEY_BYTES = 16


def cache_parameter(spec: CacheSpec, engine: Mapping[str, str]) -> str:
    """The parameter of the stage `ranker`; `engine` is everything beside the ids that decides a
    score."""
    return json.dumps({"spec": spec.settings(), "engine": dict(engine)}, sort_keys=True)


def open_cache(
    parameters: Mapping[str, Any], backend: Any, instance_name: str = ""
) -> ScoreCache | NoCache:
    """The cache that a stage's parameters ask for; `backend` is Triton's Python module, and
    `instance_name` is its own (`ranker_0_3`), which stages of earlier repositories do not give."""
    if PARAMETER not in parameters:
        return NoCache()
    given = json.loads(parameters[PARAMETER]["string_value"])
    return ScoreCache(
        CacheSpec.model_validate(given["spec"]), given["engine"], backend, instance_name
    )


@dataclass(frozen=True)
class Everything:
    """All of some requests must be scored."""

    missing: Sequence[Asked]

    def finish(self, scored: Sequence[Scores]) -> list[Scores]:
        return list(scored)


class NoCache:
    """Every pair is scored, every time."""

    def plan(self, asked: Sequence[Asked]) -> Everything:
        return Everything(asked)

    def publish(self) -> None: ...


@dataclass(kw_only=True)
class Planned:
    """What of some requests must be scored. `missing`: their prefixes and items, each pair once."""

    cache: ScoreCache
    keys: list[list[bytes | None]]
    known: dict[bytes, float]
    missing: list[Asked]
    missing_keys: list[list[bytes]]
    started: float

    def finish(self, scored: Sequence[Scores]) -> list[Scores]:
        """P [N] of every request, from those of `missing`; NaN for an item without ids."""
        new = {
            key: float(p)
            for keys, some in zip(self.missing_keys, scored, strict=True)
            for key, p in zip(keys, some, strict=True)
        }
        self.cache.keep(new, time.perf_counter() - self.started)
        every = {**self.known, **new}
        return [
            np.array([np.nan if key is None else every[key] for key in keys], dtype=np.float32)
            for keys in self.keys
        ]


class ScoreCache:
    """Scores of pairs, in this process and, where the spec names one, in a shared store."""

    def __init__(
        self,
        spec: CacheSpec,
        engine: Mapping[str, str],
        backend: Any = None,
        instance_name: str = "",
    ) -> None:
        self._spec = spec
        self._salt = hashlib.blake2b(json.dumps(dict(engine), sort_keys=True).encode()).digest()
        self._near: Recent[float] = Recent(spec.memory_mb * 2**20, lambda _score: 8)
        self._far = None if spec.place == MEMORY else RedisScores(spec.place)
        self._random = random.Random()
        self.hits = self.misses = 0
        self._scored_s = 0.0
        self.saved_s = 0.0
        self._metrics = None if backend is None else CacheMetrics(backend, self, instance_name)

    @property
    def memory_bytes(self) -> int:
        return self._near.size

    @property
    def failures(self) -> int:
        return 0 if self._far is None else self._far.failures

    def plan(self, asked: Sequence[Asked]) -> Planned:
        keys = [self._keys(prefix, items) for prefix, items in asked]
        wanted = {key for some in keys for key in some if key is not None}
        known = {key: p for key in wanted if (p := self._near.get(key)) is not None}
        rest = [key for key in wanted if key not in known]
        if self._far is not None and rest:
            for key, found in zip(rest, self._far.get_many(rest), strict=True):
                if found is not None:
                    known[key], left_s = found
                    self._near.put(key, known[key], min(left_s, self._lifetime_s()))
        missing: list[Asked] = []
        missing_keys: list[list[bytes]] = []
        claimed = set(known)
        for (prefix, items), some in zip(asked, keys, strict=True):
            chosen: dict[bytes, Ids] = {}
            for name, item in zip(some, items, strict=True):
                if name is not None and name not in claimed:
                    claimed.add(name)
                    chosen[name] = item
            if chosen:
                missing.append((prefix, list(chosen.values())))
                missing_keys.append(list(chosen))
        pairs = sum(key is not None for some in keys for key in some)
        new = sum(map(len, missing_keys))
        self.misses += new
        self.hits += pairs - new
        if self.misses > new:
            # What a pair took so far, queueing in the engine and all.
            self.saved_s += (pairs - new) * self._scored_s / (self.misses - new)
        return Planned(
            cache=self,
            keys=keys,
            known=known,
            missing=missing,
            missing_keys=missing_keys,
            started=time.perf_counter(),
        )

    def keep(self, scores: Mapping[bytes, float], taken_s: float) -> None:
        """Keep what was scored in so many seconds."""
        self._scored_s += taken_s
        # What failed is not kept: it may succeed the next time.
        ended = {key: (p, self._lifetime_s()) for key, p in scores.items() if not math.isnan(p)}
        for key, (p, seconds) in ended.items():
            self._near.put(key, p, seconds)
        if self._far is not None:
            self._far.put_many(ended)

    def publish(self) -> None:
        """Bring the metrics up to date."""
        if self._metrics is not None:
            self._metrics.publish()

    def _keys(self, prefix: Ids, items: Sequence[Ids]) -> list[bytes | None]:
        # The prefix's length keeps its end and the item's start apart.
        start = hashlib.blake2b(self._salt, digest_size=KEY_BYTES)
        start.update(len(prefix).to_bytes(4, "little"))
        start.update(np.ascontiguousarray(prefix, dtype="<i4").tobytes())
        keys: list[bytes | None] = []
        for item in items:
            if not len(item):
                keys.append(None)
                continue
            one = start.copy()
            one.update(np.ascontiguousarray(item, dtype="<i4").tobytes())
            keys.append(one.digest())
        return keys

    def _lifetime_s(self) -> float:
        """Spread, so that what came together does not end together."""
        return self._spec.ttl_s * (1 - self._spec.jitter * self._random.random())


class CacheMetrics:
    """The cache's figures among Triton's metrics; `backend` is its Python module."""

    def __init__(self, backend: Any, cache: ScoreCache, instance_name: str) -> None:
        self._cache, self._families, self._metrics = cache, [], {}
        for figure, name, text in (
            ("hits", "hits_total", "Pairs whose score was at hand"),
            ("misses", "misses_total", "Pairs that were scored"),
            ("failures", "failures_total", "Failed calls of a shared cache"),
            ("saved_s", "saved_seconds_total", "Seconds that the pairs at hand would have taken"),
            ("memory_bytes", "memory_bytes", "Scores held in the process"),
        ):
            kind = getattr(backend.MetricFamily, "COUNTER" if name != "memory_bytes" else "GAUGE")
            family = backend.MetricFamily(name=f"slmrank_cache_{name}", description=text, kind=kind)
            self._families.append(family)  # Triton forgets a family that nobody holds
            # All instances count in one counter; of one gauge the last of them would have the word.
            own = {"stage_instance": instance_name} if name == "memory_bytes" else {}
            self._metrics[figure] = family.Metric(labels=own)
        self._before: dict[str, float] = dict.fromkeys(self._metrics, 0.0)

    def publish(self) -> None:
        for figure, metric in self._metrics.items():
            value = getattr(self._cache, figure)
            if figure == "memory_bytes":
                metric.set(value)
            else:
                metric.increment(value - self._before[figure])
                self._before[figure] = value

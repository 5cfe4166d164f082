"""The score cache: hits where everything that decides a score is the same, and nowhere else."""

from __future__ import annotations

import itertools
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slmrank.client.client import RankClient
from slmrank.errors import SpecError
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import run
from slmrank.serving.score_cache import (
    PARAMETER,
    Asked,
    NoCache,
    ScoreCache,
    cache_parameter,
    open_cache,
)
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.spec.reading import change_spec
from slmrank.spec.repository import CacheSpec
from slmrank.store.redis_scores import RedisScores

from tests.redis_server import RedisServer

ENGINE = {"engine": "a", "code": "b"}
fresh = itertools.count(1)


def ids(*values: int) -> Any:
    return np.array(values, dtype=np.int32)


def scored(cache: ScoreCache | NoCache, asked: Sequence[Asked]) -> tuple[list[list[float]], int]:
    """Scores of requests, every scored pair with a number that no pair had before, and how many
    pairs that were."""
    planned = cache.plan(asked)
    made = [ids(*(next(fresh) for _ in items)).astype(np.float32) for _, items in planned.missing]
    return [one.tolist() for one in planned.finish(made)], sum(map(len, made))


def test_a_pair_is_scored_once() -> None:
    cache = ScoreCache(CacheSpec(), ENGINE)
    query, other = ids(1, 2), ids(3)
    ((first, second),), new = scored(cache, [(query, [ids(5), ids(6)])])
    assert new == 2
    answers, new = scored(cache, [(query, [ids(6), ids(), ids(5), ids(7)]), (other, [ids(5)])])
    assert new == 2
    assert answers[0][0] == second
    assert np.isnan(answers[0][1])
    assert answers[0][2] == first
    assert (cache.hits, cache.misses) == (2, 4)
    assert cache.memory_bytes > 0


def test_what_failed_is_asked_again() -> None:
    cache = ScoreCache(CacheSpec(), ENGINE)
    planned = cache.plan([(ids(1), [ids(2), ids(3)])])
    planned.finish([np.array([np.nan, 0.5], dtype=np.float32)])
    assert scored(cache, [(ids(1), [ids(2), ids(3)])])[1] == 1


def test_requests_that_are_joined_share_what_is_new() -> None:
    cache = ScoreCache(CacheSpec(), ENGINE)
    query = ids(1, 2)
    asked: list[Asked] = [(query, [ids(5), ids(5)]), (query, [ids(5), ids(6)]), (query, [ids(6)])]
    answers, new = scored(cache, asked)
    assert new == 2
    assert answers[0][0] == answers[0][1] == answers[1][0]
    assert answers[1][1] == answers[2][0]
    assert cache.plan([(query, [])]).missing == []


@given(
    st.lists(st.integers(0, 3), max_size=4),
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    st.lists(st.integers(0, 3), max_size=4),
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
)
def test_only_equal_ids_meet(
    prefix: list[int], item: list[int], prefix2: list[int], item2: list[int]
) -> None:
    """Also where prefix and item are cut elsewhere: [1] + [2, 3] is not [1, 2] + [3]."""
    cache = ScoreCache(CacheSpec(), ENGINE)
    scored(cache, [(ids(*prefix), [ids(*item)])])
    _, new = scored(cache, [(ids(*prefix2), [ids(*item2)])])
    assert new == int((prefix, item) != (prefix2, item2))


def test_every_setting_that_decides_a_score_decides_the_key(tiny: Any) -> None:
    """Engines of other checkpoints, precisions and calibrations are other artifacts."""
    specs = [
        {},
        {"engine": {"openvino": {"calibration_prompts": 8}}},
        {"engine": {"openvino": {"precision": "bfloat16"}}},
        {"recover": {"steps": 2}},
    ]
    engines = {Bundle(change_spec(tiny.bundle.spec, one)).engine.key for one in specs}
    assert len(engines) == len(specs)
    keys = {
        ScoreCache(CacheSpec(), {**ENGINE, name: value})._keys(ids(1), [ids(2)])[0]
        for name in ENGINE
        for value in engines
    }
    assert len(keys) == len(ENGINE) * len(specs)


def test_scores_end() -> None:
    cache = ScoreCache(CacheSpec(ttl_s=0.1, jitter=0.5), ENGINE)
    scored(cache, [(ids(1), [ids(2)])])
    assert scored(cache, [(ids(1), [ids(2)])])[1] == 0
    time.sleep(0.11)
    assert scored(cache, [(ids(1), [ids(2)])])[1] == 1
    lives = [ScoreCache(CacheSpec(ttl_s=10, jitter=0.2), ENGINE)._lifetime_s() for _ in range(50)]
    assert 8 <= min(lives) < max(lives) <= 10


def test_the_parameter_is_the_cache() -> None:
    text = cache_parameter(CacheSpec(ttl_s=5), ENGINE)
    cache = open_cache({PARAMETER: {"string_value": text}}, None, "ranker_0_1")
    assert isinstance(cache, ScoreCache)
    assert cache._spec == CacheSpec(ttl_s=5)
    none = open_cache({}, None, "ranker_0_1")
    query: Asked = (ids(1), [ids(2), ids(2)])
    assert scored(none, [query])[1] == 2


def test_a_shared_cache_is_one_for_all_and_may_go_away(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    spec = CacheSpec(place=redis.url(retry_ms=50), ttl_s=5)
    first, second = ScoreCache(spec, ENGINE), ScoreCache(spec, ENGINE)
    query: list[Asked] = [(ids(1), [ids(2), ids(3)])]
    answer, new = scored(first, query)
    assert (new, scored(second, query)) == (2, (answer, 0))
    assert scored(ScoreCache(spec, {**ENGINE, "code": "c"}), query)[1] == 2
    key = first._keys(*query[0])[0]
    assert key is not None
    shared = RedisScores(spec.place)
    (kept,) = shared.get_many([key])
    assert kept is not None
    assert 3 <= kept[1] <= 5, "a copy ends with what it is of"
    assert 0 < shared._client.pttl(b"slmrank:score:" + key) <= 5000
    shared._client.set(b"slmrank:score:" + key, b"broken")
    assert shared.get_many([key]) == [None]
    redis.kill()
    third = ScoreCache(spec, ENGINE)
    assert scored(third, query)[1] == 2
    assert scored(third, query)[1] == 0
    assert third.failures == 1
    redis.start()
    time.sleep(0.1)
    assert scored(ScoreCache(spec, ENGINE), [(ids(1), [ids(3)])])[1] == 0
    redis.kill()
    with pytest.raises(SpecError, match=r"repository.cache.place 'redis://h/x' is no address"):
        ScoreCache(CacheSpec(place="redis://h/x"), ENGINE)


@pytest.mark.long
@pytest.mark.triton
def test_a_server_with_a_cache_gives_what_it_gave(tiny: Any, control: Any) -> None:
    changes = {"repository": {"cache": {"ttl_s": 600}}}
    bundle = Bundle(change_spec(tiny.bundle.spec, changes))
    repository = run(bundle.repository, tiny.store).path
    jobs = [f"job-{number}" for number in range(20)]
    with Server(repository, ANY_PORTS) as server, RankClient(server.url) as client:
        first = [one.score for one in client.score("nurse shift", jobs[:10])]
        again = [one.score for one in client.score("nurse shift", jobs)]
        assert again[:10] == first
        assert [one.score for one in client.score("nurse shift", jobs[::-1])] == again[::-1]
        other = [one.score for one in client.score("welder", jobs)]
        assert other != again
        with urllib.request.urlopen(
            f"http://127.0.0.1:{server.ports.metrics}/metrics", timeout=10
        ) as reply:
            told = dict(
                line.rsplit(" ", 1)
                for line in reply.read().decode().splitlines()
                if line.startswith("slmrank_cache")
            )
        assert float(told["slmrank_cache_hits_total"]) == 30
        assert float(told["slmrank_cache_misses_total"]) == 40
        assert float(told["slmrank_cache_saved_seconds_total"]) > 0
        assert float(told['slmrank_cache_memory_bytes{stage_instance="ranker_0_0"}']) > 0
        for setting in ("cache", "depth"):
            change = f"repository.{setting}={{}}"
            done = control("sweep", tiny.spec, "--artifacts", tiny.artifacts, "--set", change)
            assert done.returncode == 10
            assert f"repository.{setting}=null" in done.stderr

"""Ranking depth under load: the controller, its signal, and a real server that is flooded."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slmrank.client.asked import ItemText
from slmrank.client.client import RankClient
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import run
from slmrank.serving.depth import Depth, DepthController, first_items, not_ranked
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.spec.reading import change_spec
from slmrank.spec.repository import DepthSpec
from slmrank.triton.status import Status

SPEC = DepthSpec(target_ms=50, floor=10, step=8)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 5)), max_size=60), st.integers(1, 1000))
def test_it_stays_between_the_floor_and_everything(
    observed: list[tuple[float, float]], jobs: int
) -> None:
    controller, now = DepthController(SPEC), 0.0
    for delay_s, passed_s in observed:
        now += passed_s
        before = controller.share
        share = controller.update(delay_s, now)
        assert SPEC.least_share <= share <= 1
        assert share - before <= SPEC.rise_per_s * passed_s + 1e-9
        depth = controller.depth(jobs)
        assert min(jobs, SPEC.floor) <= depth <= jobs
        assert depth in (jobs, SPEC.floor) or depth % SPEC.step == 0


@given(st.lists(st.floats(0, SPEC.target_ms / 1000), max_size=60))
def test_delays_within_the_target_cut_nothing(delays_s: list[float]) -> None:
    controller = DepthController(SPEC)
    for tick, delay_s in enumerate(delays_s):
        assert controller.update(delay_s, tick / 100) == 1.0


def test_down_is_fast_and_up_is_slow() -> None:
    controller = DepthController(SPEC)
    for tick in range(10):
        assert controller.update(0.0, tick / 10) == 1.0
    for tick in range(10, 15):
        controller.update(0.3, tick / 10)
    assert controller.share == SPEC.least_share  # within half a second
    controller.update(0.3, 30)  # long at its end: nothing winds up behind it
    controller.update(0.0, 30.1)
    controller.update(0.0, 31.1)
    assert controller.share == pytest.approx(SPEC.least_share + 1.1 * SPEC.rise_per_s)
    assert controller.update(0.0, 100) == 1.0


@pytest.mark.parametrize("offered", [1.5, 3.0, 6.0])
def test_a_queue_that_is_offered_too_much_settles_at_the_target(offered: float) -> None:
    """A server of one unit of work a second, offered more than that when all jobs are ranked."""
    controller, backlog_s, seen = DepthController(SPEC), 0.0, []
    for tick in range(4000):
        share = controller.update(backlog_s, tick / 100)
        backlog_s = max(0.0, backlog_s + (offered * share - 1.0) / 100)
        seen.append((share, backlog_s))
    shares, delays = np.array(seen[-1000:]).T
    assert delays.mean() == pytest.approx(SPEC.target_ms / 1000, rel=0.25)
    assert shares.mean() == pytest.approx(1 / offered, rel=0.1)
    assert delays.max() < 5 * SPEC.target_ms / 1000


class Backend:
    """A stand-in for Triton's Python module, whose requests are dicts of arrays."""

    class MetricFamily:
        COUNTER, GAUGE = "counter", "gauge"

        def __init__(self, **_: Any) -> None: ...

        def Metric(self, labels: dict[str, str]) -> Any:
            return SimpleNamespace(set=lambda _: None, increment=lambda _: None)

    Tensor = staticmethod(lambda name, values: (name, values))

    @staticmethod
    def get_input_tensor_by_name(request: dict[str, Any], name: str) -> Any:
        return SimpleNamespace(as_numpy=lambda: np.array(request[name]))


def prepared(ticket: float, status: int = 0) -> dict[str, Any]:
    return {"prepared_at": [[ticket]], "prepared_status": [[status] * 40]}


@pytest.mark.parametrize("made_up", [0.0, -math.inf, math.nan, 1e18, "overtaken"])
def test_what_says_nothing_of_the_queue_moves_nothing(
    made_up: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller of the stage itself may send any number; and what can wait is overtaken by design.
    One in twenty of either held everybody at a seventh of the jobs."""
    now = 100.0
    monkeypatch.setattr("slmrank.serving.depth.time", SimpleNamespace(monotonic=lambda: now))
    depth = Depth(SPEC, Backend, "ranker_0_1")
    depth.begin([prepared(now)])
    for _ in range(20):
        now += 0.01
        depth.begin([prepared(now - 5 if made_up == "overtaken" else made_up)])
        assert depth.begin([prepared(now)]) == [40]
    now += 1
    assert depth.begin([prepared(now - 0.9)])[0] < 40  # what does say something moves it


def test_a_status_that_is_none_fails_nobody_else() -> None:
    depth = Depth(SPEC, Backend, "ranker_0_1")
    odd = prepared(time.monotonic(), status=99)
    [count] = depth.begin([odd])
    assert depth.answer(odd, count, np.zeros(40, np.int32))


def test_what_is_behind_the_depth_has_no_ids_and_says_so() -> None:
    items = [np.arange(one, dtype=np.int32) for one in (3, 0, 2, 4)]
    assert [len(one) for one in first_items(items, 2)] == [3, 0, 0, 0]
    assert [len(one) for one in first_items(items, 9)] == [3, 0, 2, 4]
    assert [len(one) for one in first_items(items, None)] == [3, 0, 2, 4]
    status = np.array([Status.OK, Status.UNKNOWN_JOB, Status.TRUNCATED, Status.UNKNOWN_JOB])
    assert [Status(one) for one in not_ranked(status, 1)] == [
        Status.OK,
        Status.UNKNOWN_JOB,
        Status.NOT_RANKED,
        Status.UNKNOWN_JOB,
    ]
    assert not_ranked(status, 4).tolist() == status.tolist()


@pytest.mark.long
@pytest.mark.triton
def test_a_flooded_server_ranks_fewer_jobs_and_all_of_them_later(tiny: Any) -> None:
    depth = {"target_ms": 20, "floor": 5, "step": 5, "rise_per_s": 5}
    changes = {"repository": {"depth": depth, "queue_timeout_us": 60_000_000}}
    bundle = Bundle(change_spec(tiny.bundle.spec, changes))
    jobs = [ItemText(text=f"Job: nurse {number} works by day and night") for number in range(300)]
    with Server(run(bundle.repository, tiny.store).path, ANY_PORTS) as server:

        def ask(_: int) -> list[Any]:
            with RankClient(server.url, timeout_s=120) as client:
                return list(client.score("nurse shift", jobs))

        (full,) = [[one.status for one in ask(0)]]
        assert set(full) == {Status.OK}
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(ask, range(60)))
        depths = []
        for items in answers:
            ranked = sum(one.status is Status.OK for one in items)
            depths.append(ranked)
            assert ranked >= 5
            assert {one.status for one in items[ranked:]} <= {Status.NOT_RANKED}
            assert all(math.isnan(one.score) for one in items[ranked:])
        assert min(depths) < len(jobs)
        until = time.monotonic() + 60  # a machine that is busy otherwise is a queue as well
        while not all(one.status is Status.OK for one in ask(0)):
            assert time.monotonic() < until
            time.sleep(0.5)

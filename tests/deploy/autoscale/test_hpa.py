"""The HPA port against the recorded trace of the real controller, and its rules one by one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slmrank.deploy.autoscale.hpa import Autoscaler, propose
from slmrank.deploy.scaling import behavior

from tests.deploy import releases

# Recorded from kube-controller-manager 1.36 (reference: k8s.md 3): target 4, up 2 pods in 15 s, down
# 1 pod in 15 s, window 20 s, sync 2 s, load 18 and, from 37 s on, 3.
GOLDEN = [(0, 3), (16, 5), (56, 4), (72, 3), (88, 2), (104, 1)]


def policy(kind: str, value: int, period_s: float) -> dict[str, Any]:
    return {"type": kind, "value": value, "periodSeconds": period_s}


def pods(value: int, period_s: float) -> dict[str, Any]:
    return policy("Pods", value, period_s)


def rules(window_s: float, *policies: dict[str, Any], select: str = "Max") -> dict[str, Any]:
    window = {"stabilizationWindowSeconds": window_s}
    return {**window, "selectPolicy": select, "policies": list(policies)}


# What Kubernetes does where a manifest says nothing.
DEFAULT = {
    "scaleUp": rules(0, policy("Percent", 100, 15), pods(4, 15)),
    "scaleDown": rules(300, policy("Percent", 100, 15)),
}


def test_the_recorded_trace_is_reproduced_exactly() -> None:
    scaler = Autoscaler(
        minimum=1,
        maximum=5,
        behavior={"scaleUp": rules(0, pods(2, 15)), "scaleDown": rules(20, pods(1, 15))},
    )
    size, changes = 1, []
    for now in range(0, 200, 2):
        load = 18 if now < 37 else 3
        wanted = scaler.step(now, size, [propose(load, 4, current=size, ready=size)])
        if wanted != size:
            changes.append((now, wanted))
        size = wanted
    assert changes == GOLDEN


@pytest.mark.parametrize(
    ("total", "target", "current", "ready", "wanted"),
    [
        (18, 4, 1, 1, 5),  # ceil(18 / 4)
        (12, 4, 3, 3, 3),  # at the target
        (13.1, 4, 3, 3, 3),  # within 10 %
        (13.3, 4, 3, 3, 4),  # above
        (10.7, 4, 3, 3, 3),  # 11 % below, and still three
        (3, 4, 5, 5, 1),
        (0, 4, 5, 5, 0),
        (40, 4, 8, 4, 10),  # four pods are pending: counted as idle
        (20, 4, 8, 4, 8),  # with them there is nothing to add
        (8, 4, 8, 4, 6),  # when removing, those without a metric count as loaded to the target
        (50, 100, 4, 2, 3),
        (8, 4, 3, 0, 3),  # nobody to ask
        (0.3, 0.1, 3, 3, 3),  # 0.3 / 0.1 is 2.9999999999999996
    ],
)
def test_proposals(total: float, target: float, current: int, ready: int, wanted: int) -> None:
    assert propose(total, target, current=current, ready=ready) == wanted


def test_the_largest_proposal_of_several_metrics_counts() -> None:
    scaler = Autoscaler(minimum=1, maximum=10, behavior=DEFAULT)
    assert scaler.step(0, 2, [1, 4, 3]) == 4


def test_defaults_double_or_add_four_and_shrink_after_five_minutes() -> None:
    scaler = Autoscaler(minimum=1, maximum=100, behavior=DEFAULT)
    size, sizes = 1, []
    for now in range(0, 61, 15):
        size = scaler.step(now, size, [100])
        sizes.append(size)
    assert sizes == [5, 10, 20, 40, 80]
    now = 60
    while size == 80:
        now += 15
        size = scaler.step(now, size, [7])
    assert (now, size) == (360, 7)


def test_the_size_that_is_found_holds_for_the_first_window() -> None:
    scaler = Autoscaler(minimum=1, maximum=9, behavior=DEFAULT)
    assert [scaler.step(at, 5, [2]) for at in (0, 150, 299)] == [5, 5, 5]
    assert scaler.step(300, 5, [2]) == 2


def test_percent_policies_and_min_and_disabled() -> None:
    half = policy("Percent", 50, 60)
    slow = {
        "scaleUp": rules(0, half, pods(1, 60), select="Min"),
        "scaleDown": rules(0, half, select="Disabled"),
    }
    scaler = Autoscaler(minimum=1, maximum=100, behavior=slow)
    assert scaler.step(0, 10, [50]) == 11
    assert scaler.step(15, 11, [50]) == 11
    assert scaler.step(60, 11, [50]) == 12
    assert scaler.step(200, 12, [1]) == 12
    fast = {**DEFAULT, "scaleDown": rules(0, half, pods(1, 60))}
    assert Autoscaler(minimum=1, maximum=100, behavior=fast).step(0, 10, [1]) == 5


def test_stabilisation_upwards_waits_for_the_smallest_answer() -> None:
    slow = {**DEFAULT, "scaleUp": {**DEFAULT["scaleUp"], "stabilizationWindowSeconds": 60}}
    scaler = Autoscaler(minimum=1, maximum=100, behavior=slow)
    assert scaler.step(0, 2, [2]) == 2
    assert scaler.step(15, 2, [6]) == 2
    assert scaler.step(60, 2, [6]) == 6


@pytest.mark.parametrize(("current", "wanted"), [(0, 2), (1, 2), (9, 8)])
def test_bounds_are_taken_at_once(current: int, wanted: int) -> None:
    assert Autoscaler(minimum=2, maximum=8, behavior=DEFAULT).step(0, current, [5]) == wanted


def test_the_manifests_behaviour_is_read() -> None:
    scaler = Autoscaler(minimum=1, maximum=100, behavior=behavior(releases.cpu()))
    assert [scaler.step(at, size, [100]) for at, size in ((0, 1), (15, 5))] == [5, 10]
    assert [scaler.step(at, 10, [1]) for at in (30, 300)] == [10, 10]
    assert [scaler.step(at, 10, [1]) for at in (315, 330)] == [9, 10]
    assert scaler.step(375, 9, [1]) == 8


@settings(max_examples=100, deadline=None)
@given(
    minimum=st.integers(1, 5),
    more=st.integers(0, 30),
    window=st.sampled_from([0, 30, 300]),
    up=st.integers(1, 6),
    down=st.integers(1, 6),
    high=st.integers(0, 60),
)
def test_no_minute_sees_more_than_the_policies_allow(
    minimum: int, more: int, window: int, up: int, down: int, high: int
) -> None:
    limited = {"scaleUp": rules(0, pods(up, 60)), "scaleDown": rules(window, pods(down, 60))}
    maximum = minimum + more
    scaler = Autoscaler(minimum=minimum, maximum=maximum, behavior=limited)
    sizes = [minimum]
    for number in range(240):
        wanted = high if number < 120 else 0
        sizes.append(scaler.step(number * 15.0, sizes[-1], [wanted]))
    assert set(sizes) <= set(range(minimum, maximum + 1))
    assert sizes[120] == min(max(high, minimum), maximum)
    # 1,800 s, of which the window holds back up to 300.
    assert sizes[-1] <= max(minimum, sizes[120] - 24 * down)
    for index in range(4, len(sizes)):
        assert -down <= sizes[index] - sizes[index - 4] <= up

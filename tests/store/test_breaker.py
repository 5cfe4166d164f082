"""The breaker: how long nobody asks after a failure."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from slmrank.store import breaker
from slmrank.store.breaker import Breaker


def test_a_pause_is_at_least_so_long_and_ten_times_what_the_failure_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name server that hangs holds a look-up beyond its deadline: the stage stood still for nine
    tenths of the time."""
    clock = SimpleNamespace(now=10.0)
    monkeypatch.setattr(breaker.time, "monotonic", lambda: clock.now)
    one = Breaker(0.25)
    for took, pause in ((0.01, 0.25), (2.0, 20.0)):
        assert not one.open
        clock.now += took
        one.failed("late")
        clock.now += pause - 0.001
        assert one.open
        clock.now += 0.002
    assert not one.open
    one.succeeded()
    assert one.up

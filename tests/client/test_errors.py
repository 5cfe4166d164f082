"""One class per failure; what is asked again and what is not."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slmrank.client import client as module
from slmrank.client.client import RankClient, build_inputs, explain
from slmrank.errors import (
    DeadlineExceeded,
    InvalidQuery,
    InvalidRequest,
    Overloaded,
    ScoreError,
    ServerFault,
    Unreachable,
)
from tritonclient.utils import InferenceServerException, deserialize_bytes_tensor

FULL = "[request id: 1] Exceeds maximum queue size"


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        ("StatusCode.UNAVAILABLE", FULL, Overloaded),
        ("StatusCode.UNAVAILABLE", "Request timeout expired", Overloaded),
        ("StatusCode.UNAVAILABLE", "failed to connect", Unreachable),
        ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceeded),
        (
            "StatusCode.INTERNAL",
            "in ensemble 'rank', InvalidQuery: query is empty. Fix: send one",
            InvalidQuery,
        ),
        ("StatusCode.INTERNAL", "InvalidRequest: 9 jobs. Fix: split", InvalidRequest),
        ("StatusCode.INTERNAL", "KeyError: 'x'", ServerFault),
    ],
)
def test_every_failure_has_its_class(status: str, text: str, kind: type[ScoreError]) -> None:
    found = explain(InferenceServerException(text, status), "host:1")
    assert type(found) is kind
    assert found.hint
    assert "InvalidQuery" not in found.message


def answering(monkeypatch: pytest.MonkeyPatch, failures: list[Exception], **options: Any) -> Any:
    """A client whose server fails so often before it answers, and the count of its calls."""
    calls = SimpleNamespace(count=0)

    def config(_model: str, **_: Any) -> Any:
        calls.count += 1
        if failures:
            raise failures.pop(0)
        return SimpleNamespace(config=SimpleNamespace(parameters={}))

    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.001)
    client = RankClient("127.0.0.1:1", **options)
    client._client = SimpleNamespace(get_model_config=config, close=lambda: None)
    return client, calls


def full() -> InferenceServerException:
    return InferenceServerException(FULL, "StatusCode.UNAVAILABLE")


def broken() -> InferenceServerException:
    return InferenceServerException("connection reset", "StatusCode.UNAVAILABLE")


def test_a_full_queue_is_not_asked_again_unless_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    client, calls = answering(monkeypatch, [full()] * 3)
    started = time.monotonic()
    with pytest.raises(Overloaded):
        client.describe()
    assert calls.count == 1
    assert time.monotonic() - started < 1
    client, calls = answering(monkeypatch, [full()] * 3, retry_overload=True)
    client.describe()
    assert calls.count == 4


def test_a_broken_connection_is_asked_again_inside_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, calls = answering(monkeypatch, [broken()] * 2)
    client.describe()
    assert calls.count == 3
    client, calls = answering(monkeypatch, [broken()] * 10**6, timeout_s=0.2)
    started = time.monotonic()
    with pytest.raises(Unreachable):
        client.describe()
    assert time.monotonic() - started < 1


def test_who_answers_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    client, calls = answering(monkeypatch, [])
    for _ in range(3):
        client.describe()
    assert calls.count == 1


@given(count=st.integers(0, 60), limit=st.integers(1, 17))
def test_any_listing_is_split_and_put_together_in_order(count: int, limit: int) -> None:
    client = RankClient("127.0.0.1:1")
    client._identity = {"max_items": str(limit)}
    sizes: list[int] = []

    def infer(_model: str, inputs: Any, **_: Any) -> Any:
        ids = [int(one) for one in deserialize_bytes_tensor(inputs[1]._raw_content)]
        sizes.append(len(ids))
        values = {"score": np.array([ids], float), "status": np.zeros((1, len(ids)), int)}
        return SimpleNamespace(as_numpy=values.get)

    client._client = SimpleNamespace(infer=infer)
    found = client.score("q", [str(number) for number in range(count)])
    assert [one.score for one in found] == list(range(count))
    assert [one.index for one in found] == list(range(count))
    assert [one.job_id for one in found] == [str(number) for number in range(count)]
    assert len(sizes) == -(-count // limit)
    assert max(sizes, default=0) <= limit


def test_a_lone_surrogate_is_refused_before_it_is_sent() -> None:
    with pytest.raises(InvalidRequest, match="query is not valid Unicode at position 1"):
        build_inputs("a\ud800", ["job-1"])

"""One class per failure; what is asked again, what twice, and how a listing is split."""

from __future__ import annotations

import asyncio
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slmrank.client import aio as module
from slmrank.client.aio import AsyncRankClient
from slmrank.client.answer import Answer
from slmrank.client.asked import Asked, ItemText
from slmrank.client.client import RankClient
from slmrank.client.replicas import Replica
from slmrank.client.request import build_inputs, explain, rows_of, split
from slmrank.client.tracing import CallSpan, continued
from slmrank.data.records import Job
from slmrank.errors import (
    DeadlineExceeded,
    InvalidQuery,
    InvalidRequest,
    Overloaded,
    ScoreError,
    ServerFault,
    Unreachable,
)
from slmrank.triton.config import MAX_REQUEST_FIELDS_BYTES, MAX_REQUEST_TEXT_BYTES
from tritonclient.utils import InferenceServerException, deserialize_bytes_tensor

FULL = "[request id: 1] Exceeds maximum queue size"


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        ("StatusCode.UNAVAILABLE", FULL, Overloaded),
        ("StatusCode.UNAVAILABLE", "Request timeout expired", Overloaded),
        ("StatusCode.UNAVAILABLE", "failed to connect", Unreachable),
        # A server that ends says so: 1 of 4 runs of 600 calls during a roll-out met it.
        (
            "StatusCode.NOT_FOUND",
            "Request for unknown model: 'rank' has no available versions",
            Unreachable,
        ),
        ("StatusCode.NOT_FOUND", "Request for unknown model: 'rank' is not found", ServerFault),
        ("StatusCode.INTERNAL", "Stub process 'ranker_0_0' is not healthy.", Unreachable),
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


class Answering:
    """A server that fails so often before it answers, slowly where `delays` says so."""

    def __init__(self, failures: list[Exception], delays: list[float] | None = None) -> None:
        self.failures = failures
        self.delays = delays or []
        self.calls = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.sizes: list[int] = []
        self.headers: dict[str, str] = {}

    async def _turn(self) -> None:
        self.calls += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.delays.pop(0) if self.delays else 0)
        finally:
            self.in_flight -= 1
        if self.failures:
            raise self.failures.pop(0)

    async def get_model_config(self, _model: str, **_: Any) -> Any:
        await self._turn()
        return SimpleNamespace(config=SimpleNamespace(parameters={}))

    async def infer(self, _model: str, inputs: Any, *, headers: Any = None, **_: Any) -> Any:
        self.headers = headers or {}
        await self._turn()
        ids = [int(one) for one in deserialize_bytes_tensor(inputs[1]._raw_content)]
        self.sizes.append(len(ids))
        values = {
            "score": np.array([ids], float),
            "status": np.zeros((1, len(ids)), int),
            "served": np.array([[b'{"engine": "e1"}']], object),
            "prepare_us": np.array([[1000]]),
            "ranker_us": np.array([[self.calls]]),
        }
        return SimpleNamespace(as_numpy=values.get)

    async def close(self) -> None: ...


def asking(
    server: Answering, *, max_items: int | None = None, replicas: int = 1, **options: Any
) -> AsyncRankClient:
    client = AsyncRankClient("127.0.0.1:1", **options)
    places = [f"127.0.0.1:{one + 1}" for one in range(replicas)]
    client._replicas._known = {place: Replica(place, server) for place in places}
    client._replicas._resolved_at = math.inf
    if max_items is not None:
        client._identity = {"max_items": str(max_items)}
    return client


def full() -> InferenceServerException:
    return InferenceServerException(FULL, "StatusCode.UNAVAILABLE")


def broken_model() -> InferenceServerException:
    return InferenceServerException("KeyError: 'x'", "StatusCode.INTERNAL")


def broken() -> InferenceServerException:
    return InferenceServerException("connection reset", "StatusCode.UNAVAILABLE")


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.001)


@pytest.mark.usefixtures("short_pauses")
def test_a_full_queue_is_not_asked_again_unless_wanted() -> None:
    server = Answering([full()] * 3)
    with pytest.raises(Overloaded):
        asyncio.run(asking(server).describe())
    assert server.calls == 1
    server = Answering([full()] * 3)
    asyncio.run(asking(server, retry_overload=True).describe())
    assert server.calls == 4


@pytest.mark.usefixtures("short_pauses")
def test_a_broken_connection_is_asked_again_inside_the_deadline() -> None:
    server = Answering([broken()] * 2)
    asyncio.run(asking(server).describe())
    assert server.calls == 3
    started = time.monotonic()
    with pytest.raises(Unreachable):
        asyncio.run(asking(Answering([broken()] * 10**6), timeout_s=0.2).describe())
    assert time.monotonic() - started < 1


@pytest.mark.usefixtures("short_pauses")
def test_who_answers_is_asked_once_and_again_after_a_lost_connection() -> None:
    async def calls(failures: list[Exception]) -> int:
        server = Answering([])
        client = asking(server)
        await client.score("q", ["1"])
        assert server.calls == 2
        server.failures = failures
        await client.score("q", ["1"])
        await client.score("q", ["1"])
        return server.calls

    assert asyncio.run(calls([])) == 4
    assert asyncio.run(calls([broken()])) == 6


def test_a_server_that_went_is_not_described() -> None:
    async def described() -> None:
        server = Answering([])
        client = asking(server, timeout_s=0.2)
        await client.describe()
        server.failures = [broken()] * 100
        with pytest.raises(Unreachable):
            await client.describe()

    asyncio.run(described())


def test_a_slow_part_is_asked_once_more_and_the_first_answer_counts() -> None:
    async def seconds(
        delays: list[float], failures: list[Exception], replicas: int = 2
    ) -> tuple[float, int, int]:
        server = Answering(failures, delays)
        client = asking(server, max_items=9, replicas=replicas, hedge_s=0.05)
        started = time.monotonic()
        assert [one.score for one in await client.score("q", ["7"])] == [7.0]
        return time.monotonic() - started, server.calls, server.in_flight

    taken, calls, left = asyncio.run(seconds([5.0, 0.0], []))
    assert (taken < 2, calls, left) == (True, 2, 0)  # the slow one was cancelled
    assert asyncio.run(seconds([0.0], []))[1] == 1
    # A lone server that is slow is not asked twice.
    assert asyncio.run(seconds([0.2, 0.0], [], replicas=1))[1] == 1
    # A part that fails while the other one runs does not decide.
    assert asyncio.run(seconds([0.2, 0.0], [full()]))[1] == 2


def late() -> InferenceServerException:
    return InferenceServerException("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED")


def test_not_every_call_is_asked_twice_when_all_are_slow() -> None:
    async def calls() -> int:
        server = Answering([], [0.03] * 999)
        client = asking(server, max_items=9, replicas=2, hedge_s=0.005)
        for _ in range(60):
            await client.score("q", ["7"])
        return server.calls

    assert 70 <= asyncio.run(calls()) <= 79  # ten at once, then a tenth of them


def test_a_hung_replica_is_covered_at_any_rate_of_calls() -> None:
    """Its hedges were counted among those of slow fleets, and ran out within a minute."""

    async def answered() -> int:
        good, hung = Answering([]), Answering([], [60.0] * 999)
        client = asking(good, max_items=9, replicas=2, hedge_s=0.002)
        client._replicas._known["127.0.0.1:2"] = Replica("127.0.0.1:2", hung)
        for _ in range(60):
            client._replicas._known["127.0.0.1:2"].resting_until = 0.0  # its rest is over
            await client.score("q", ["7"], timeout_s=2)
        return hung.calls

    assert asyncio.run(answered()) > 20


def test_a_forked_process_says_why_it_cannot_ask() -> None:
    """Its call waited for ever."""
    client = RankClient("127.0.0.1:1")
    client._asking = asking(Answering([]), max_items=3)
    assert len(client.score("q", ["7"])) == 1
    pipe = os.pipe()
    child = os.fork()
    if not child:
        try:
            client.score("q", ["7"])
        except Unreachable as error:
            os.write(pipe[1], error.message.encode())
        finally:
            os._exit(0)
    os.close(pipe[1])
    with os.fdopen(pipe[0], "rb") as told:
        assert told.read() == b"this process was forked from one that had used a client"
    os.waitpid(child, 0)


def test_an_empty_text_of_ones_own_is_not_the_stored_jobs() -> None:
    for text in ("", " "):
        (row,) = rows_of([ItemText(job_id="a", text=text)])
        assert (row.job_id, row.fields, row.text) == ("a", b"{}", b"")


def test_a_replica_that_misses_deadlines_is_passed_over() -> None:
    """Hung, or on a machine that lost power: it gives no other sign, and took half of all calls."""

    async def missed() -> int:
        good, hung = Answering([]), Answering([late() for _ in range(99)])
        client = asking(good, max_items=9, replicas=2)
        client._replicas._known["127.0.0.1:2"] = Replica("127.0.0.1:2", hung)
        count = 0
        for _ in range(40):
            try:
                await client.score("q", ["7"])
            except DeadlineExceeded:
                count += 1
        return count

    assert asyncio.run(missed()) == 1


def test_a_caller_in_a_hurry_takes_no_replica_from_the_others() -> None:
    async def resting() -> int:
        client = asking(Answering([late()]), max_items=9, replicas=2)
        with pytest.raises(DeadlineExceeded):
            await client.score("q", ["7"], timeout_s=0.02)
        return sum(one.resting_until > 0 for one in client._replicas._known.values())

    assert asyncio.run(resting()) == 0


def test_a_lower_limit_is_learnt_after_one_refusal() -> None:
    async def ask() -> None:
        server = Answering([InferenceServerException("InvalidRequest: too many jobs. Fix: less")])
        client = asking(server, max_items=9)
        with pytest.raises(InvalidRequest):
            await client.score("q", ["7"])
        assert client._identity is None
        await client.score("q", ["7"])

    asyncio.run(ask())


def test_a_long_listing_is_split_again_when_the_limit_fell() -> None:
    """Whoever is asked for the limit then may be of the other release: the refusal tells it."""

    async def ask() -> list[int]:
        told = "InvalidRequest: request has 5 jobs, the limit is 2. Fix: split it"
        server = Answering([InferenceServerException(told)])
        client = asking(server, max_items=9)
        jobs = [str(one) for one in range(5)]
        assert len(await client.score("q", jobs)) == 5
        assert len(await client.score("q", jobs)) == 5  # not refused again
        return sorted(server.sizes)

    assert asyncio.run(ask()) == [1, 1, 2, 2, 2, 2]


def test_jobs_may_come_from_a_generator_and_a_query_is_a_text() -> None:
    client = asking(Answering([]), max_items=9)
    assert len(asyncio.run(client.score("q", (one for one in "12")))) == 2  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="the query is a bytes"):
        asyncio.run(asking(Answering([]), max_items=9).score(b"q", ["a"]))  # type: ignore[arg-type]


def test_a_refusal_is_told_though_nobody_answers_any_more() -> None:
    class Gone(Answering):
        async def get_model_config(self, _model: str, **_: Any) -> Any:
            raise broken()

    server = Gone([InferenceServerException("InvalidRequest: a long query. Fix: less")])
    client = asking(server, max_items=9, timeout_s=0.2)
    with pytest.raises(InvalidRequest, match="a long query"):
        asyncio.run(client.score("q", ["1", "2"]))


@pytest.mark.parametrize(
    "headers",
    [{"authorization": "Bearer x\n"}, {"x-a": "ü"}, {"Bad Key": "x"}, {"x-a": 1}],
)
def test_headers_that_cannot_be_sent_are_refused(headers: Any) -> None:
    with pytest.raises(InvalidRequest, match="header"):
        AsyncRankClient("127.0.0.1:1", headers=headers)


@pytest.mark.parametrize("jobs", ["abc", [{"job_id": "a"}], [None]])
def test_what_is_no_job_is_refused(jobs: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"is no job|is one str"):
        asyncio.run(asking(Answering([]), max_items=9).score("q", jobs))


def test_who_asks_how_a_server_is_does_not_hold_scoring() -> None:
    async def calls() -> int:
        server = Answering([], [0.3])
        client = asking(server, max_items=9)
        asked = asyncio.ensure_future(client.describe())
        await asyncio.sleep(0.01)
        started = time.monotonic()
        await asyncio.gather(*(client.score("q", ["7"]) for _ in range(20)))
        assert time.monotonic() - started < 0.25
        await asked
        return server.calls

    assert asyncio.run(calls()) == 21


def test_a_jobs_fields_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    dump = Job.model_dump
    monkeypatch.setattr(Job, "model_dump", lambda job, **how: encoded.append(1) or dump(job, **how))
    jobs = [Job(job_id=str(number), description="x") for number in range(30)]
    asyncio.run(asking(Answering([]), max_items=7).score("q", jobs))
    assert len(encoded) == len(jobs)


def test_a_bounded_number_of_parts_is_in_flight() -> None:
    server = Answering([], [0.01] * 30)
    client = asking(server, max_items=2, parts_in_flight=3)
    found = asyncio.run(client.score("q", [str(number) for number in range(19)]))
    assert [one.score for one in found] == list(range(19))
    assert server.most_in_flight == 3


@pytest.mark.usefixtures("short_pauses")
def test_the_parts_of_one_listing_wait_for_each_other() -> None:
    server = Answering([full()] * 5)
    client = asking(server, max_items=2)
    found = asyncio.run(client.score("q", [str(number) for number in range(9)]))
    assert [one.score for one in found] == list(range(9))
    assert server.calls == 5 + 5


def test_a_failed_part_fails_the_listing_and_ends_the_others() -> None:
    async def left() -> int:
        server = Answering([broken_model()], [0.0, *[5.0] * 9])
        with pytest.raises(ServerFault):
            await asking(server, max_items=1).score("q", ["1", "2", "3"])
        return server.in_flight

    started = time.monotonic()
    assert asyncio.run(left()) == 0
    assert time.monotonic() - started < 2


@given(count=st.integers(0, 60), limit=st.integers(1, 17), flight=st.integers(1, 5))
def test_any_listing_is_split_and_put_together_in_order(
    count: int, limit: int, flight: int
) -> None:
    server = Answering([])
    client = asking(server, max_items=limit, parts_in_flight=flight)
    found = asyncio.run(client.score("q", [str(number) for number in range(count)]))
    assert [one.score for one in found] == list(range(count))
    assert [one.index for one in found] == list(range(count))
    assert [one.job_id for one in found] == [str(number) for number in range(count)]
    assert len(server.sizes) == -(-count // limit)
    assert max(server.sizes, default=0) <= limit


@given(sizes=st.lists(st.integers(0, 400_000), max_size=40), limit=st.integers(1, 9))
def test_parts_hold_no_more_text_than_a_server_takes(sizes: list[int], limit: int) -> None:
    jobs: list[Asked] = [
        ItemText(text="x" * size) if size % 2 else Job(job_id="a", description="é" * (size // 2))
        for size in sizes
    ]
    parts = list(split(rows_of(jobs), limit))
    assert [row for _, part in parts for row in part] == rows_of(jobs)
    for start, rows in parts:
        part = jobs[start : start + len(rows)]
        assert rows_of(part) == rows
        texts = [len(one.text) for one in part if isinstance(one, ItemText)]
        fields = [2 * len(one.description) for one in part if isinstance(one, Job)]
        assert len(part) <= limit
        assert sum(texts) <= MAX_REQUEST_TEXT_BYTES
        assert sum(min(size, 131_072) for size in fields) <= MAX_REQUEST_FIELDS_BYTES


def test_an_answer_says_who_scored_each_part_and_how_long_it_took() -> None:
    server = Answering([])

    async def ask() -> Answer:
        client = asking(server, max_items=2, parts_in_flight=1)
        return await client.score("q", ["1", "2", "3"])

    answer = asyncio.run(ask())
    assert [item.score for item in answer] == [1, 2, 3]
    assert [(part.start, part.items) for part in answer.parts] == [(0, 2), (2, 1)]
    assert [part.served for part in answer.parts] == [{"engine": "e1"}] * 2
    assert [part.ranker_s for part in answer.parts] == [1e-6, 2e-6]
    assert all(part.total_s > 0 and part.prepare_s == 1e-3 for part in answer.parts)
    assert set(answer.parts[0].times_ms) == {"total", "prepare", "ranker"}


def test_a_call_is_a_span_and_carries_its_trace_on() -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    from opentelemetry import trace

    kept = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(kept))
    trace.set_tracer_provider(provider)
    server = Answering([])
    asyncio.run(asking(server, max_items=9).score("secret words", ["1", "2"]))
    failing = asking(Answering([full()]), max_items=9)
    with pytest.raises(Overloaded):
        asyncio.run(failing.score("q", ["1"]))
    good, bad = kept.get_finished_spans()
    assert good.name == "slmrank.score"
    assert good.attributes["slmrank.items"] == 2
    (event,) = good.events
    assert event.attributes["slmrank.engine"] == "e1"
    assert event.attributes["slmrank.prepare_ms"] == 1.0
    assert f"{good.context.trace_id:032x}" in server.headers["traceparent"]
    assert "secret" not in good.to_json()
    assert bad.status.status_code.name == "ERROR"


def test_a_call_inside_of_a_servers_span_is_below_it_and_names_are_as_grpc_takes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry import propagate, trace

    calling = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    with continued({"traceparent": calling}):
        assert f"{trace.get_current_span().get_span_context().trace_id:032x}" == "1" * 32
    server = sdk.TracerProvider().get_tracer("server")
    with server.start_as_current_span("POST") as own, continued({"traceparent": calling}):
        assert trace.get_current_span() is own
    monkeypatch.setattr(propagate, "inject", lambda to: to.update({"X-Amzn-Trace-Id": "Root=1"}))
    assert CallSpan().headers == {"x-amzn-trace-id": "Root=1"}


def test_the_blocking_client_gives_the_same_from_many_threads() -> None:
    client = RankClient("127.0.0.1:1")
    client._asking = asking(Answering([]), max_items=3)
    asked = [str(number) for number in range(8)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: client.score("q", asked), range(40)))
    assert all([one.score for one in scores] == list(range(8)) for scores in found)
    with pytest.raises(InvalidRequest):
        client.score("a\ud800", asked)


def test_a_lone_surrogate_is_refused_before_it_is_sent() -> None:
    with pytest.raises(InvalidRequest, match="query is not valid Unicode at position 1"):
        build_inputs("a\ud800", rows_of(["job-1"]))
    # A job with one fails alone, by the server's word.
    half = ItemText(job_id="half", text="a\ud83d")
    inputs = build_inputs("a", rows_of(["job-1", half]))
    texts = deserialize_bytes_tensor(inputs[2]._raw_content)
    assert texts.tolist() == [b"", b"a\xed\xa0\xbd"]


def test_a_limit_that_would_wait_for_ever_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="0 parts in flight"):
        AsyncRankClient("127.0.0.1:1", parts_in_flight=0)


def test_a_call_whose_connection_is_closed_fails_and_a_cancelled_one_is_cancelled() -> None:
    closed: list[Any] = [asyncio.CancelledError() for _ in range(99)]
    with pytest.raises(Unreachable, match="was closed"):
        asyncio.run(asking(Answering(closed), max_items=8, timeout_s=0.2).score("q", ["a"]))

    async def cancelled() -> None:
        waiting = asyncio.ensure_future(asking(Answering([], [60]), max_items=8).score("q", ["a"]))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(cancelled())


JOB = Job(job_id="a", description="b")


@pytest.mark.parametrize("jobs", ["a", {"job_id": "a"}, JOB, ItemText(text="a"), None])
def test_one_job_is_no_list_of_jobs(jobs: Any) -> None:
    """The keys of a dict were asked for as stored jobs."""
    with pytest.raises(InvalidRequest, match=f"jobs is one {type(jobs).__name__}"):
        rows_of(jobs)

"""The rerank endpoint's shapes, limits and errors, over a ranker that is a few lines."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from slmrank.cli.gateway import TokenFile
from slmrank.client.answer import Answer, ItemScore, Part
from slmrank.client.asked import Asked, ItemText
from slmrank.data.records import Job
from slmrank.errors import (
    DeadlineExceeded,
    InvalidQuery,
    Overloaded,
    ScoreError,
    ServerFault,
    Unreachable,
)
from slmrank.gateway.app import Limits, make_app
from slmrank.triton.status import Status

SAID = {"bundle": "demo", "engine_key": "e1"}


def id_of(job: Asked) -> str:
    return job if isinstance(job, str) else job.job_id


class LengthRanker:
    """A job's p is its text's length in percent; ids that start with `no` are unknown."""

    def __init__(
        self, failure: ScoreError | None = None, wait: asyncio.Event | None = None
    ) -> None:
        self.failure = failure
        self.wait = wait
        self.asked: list[Asked] = []

    async def score(self, _query: str, jobs: Sequence[Asked], **_: Any) -> Answer:
        self.asked = list(jobs)
        if self.wait is not None:
            await self.wait.wait()
        if self.failure is not None:
            raise self.failure
        found = []
        for index, job in enumerate(jobs):
            text = job.description if isinstance(job, Job) else id_of(job)
            status = Status.UNKNOWN_JOB if text.startswith("no") else Status.OK
            score = len(text) / 100 if status.scored else math.nan
            found.append(ItemScore(index=index, job_id=id_of(job), score=score, status=status))
        part = Part(
            start=0, items=len(found), served=SAID, total_s=0.5, prepare_s=0.001, ranker_s=0.25
        )
        return Answer(found, (part,))

    async def describe(self, **_: Any) -> dict[str, str]:
        if self.failure is not None:
            raise self.failure
        return SAID

    async def close(self) -> None: ...


def ask_app(app: Any, path: str, body: Any = None, **options: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            if body is None and not options.get("content"):
                return await client.get(path, **options)
            return await client.post(path, **({"json": body} if body else {}), **options)

    return asyncio.run(once())


def send(
    ranker: Any, path: str, body: Any = None, limits: Limits | None = None, **options: Any
) -> httpx.Response:
    return ask_app(make_app(ranker, limits or Limits()), path, body, **options)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_come_back_best_first(path: str) -> None:
    body = {
        "query": "q",
        "documents": ["aa", "a", "aaaa", "aaa"],
        "top_n": 3,
        "model": "rerank-v3.5",
    }
    reply = send(LengthRanker(), path, body)
    assert reply.status_code == 200
    answer = reply.json()
    assert [(one["index"], one["relevance_score"]) for one in answer["results"]] == [
        (2, 0.04),
        (3, 0.03),
        (0, 0.02),
    ]
    assert answer["id"] == reply.headers["x-request-id"]
    assert answer["model"] == "demo"
    assert "document" not in answer["results"][0]
    assert "warnings" not in answer["meta"]


def test_a_document_is_a_text_an_id_or_fields() -> None:
    ranker = LengthRanker()
    documents = [
        "a text",
        {"id": "stored-1"},
        {"id": "new", "title": "Cook", "description": "bake"},
        {"text": "only text", "title": ""},
        {"text": "with more", "id": 7, "url": "x", "scores": [1]},
        {"text": "t", "job_id": 9, "id": "x", "description": "meta", "company": 5, "title": "T"},
        {"id": 29},
        {"job_id": "own", "job_text": "as it is"},
    ]
    body = {"query": "q", "documents": documents, "return_documents": True}
    reply = send(ranker, "/v1/rerank", body).json()
    assert ranker.asked == [
        Job(job_id="#0", description="a text"),
        "stored-1",
        Job(job_id="new", title="Cook", description="bake"),
        Job(job_id="#3", description="only text"),
        Job(job_id="7", description="with more"),
        Job(job_id="9", description="t", title="T"),
        "29",
        ItemText(job_id="own", text="as it is"),
    ]
    shown = {one["index"]: one["document"] for one in reply["results"]}
    assert shown[0] == {"text": "a text"}
    assert shown[1]["id"] == "stored-1"
    assert shown[2]["text"] == "bake"
    assert shown[3]["text"] == "only text"
    assert shown[4] == {"text": "with more", "id": 7, "url": "x", "scores": [1]}
    assert shown[7]["text"] == "as it is"


def test_what_was_not_scored_is_told_and_left_out() -> None:
    body = {"query": "q", "documents": ["aa", {"id": "nowhere"}]}
    answer = send(LengthRanker(), "/v1/rerank", body).json()
    assert [one["index"] for one in answer["results"]] == [0]
    assert answer["meta"]["warnings"] == ["document 1: unknown job"]


def test_texts_are_answered_as_text_embeddings_inference_does() -> None:
    body = {"query": "q", "texts": ["a" * 50, "a", "no"], "return_text": True}
    reply = send(LengthRanker(), "/rerank", body)
    assert reply.json() == [
        {"index": 0, "score": 0.5, "text": "a" * 50},
        {"index": 1, "score": 0.01, "text": "a"},
        # Clients count on a score for every text (LlamaIndex asserts it).
        {"index": 2, "score": 0.0, "text": "no"},
    ]
    assert reply.headers["x-warnings"] == "document 2: unknown job"
    raw = send(LengthRanker(), "/rerank", {**body, "raw_scores": True}).json()
    assert raw[0]["score"] == pytest.approx(0, abs=1e-9)
    assert raw[1]["score"] == pytest.approx(math.log(0.01 / 0.99))
    assert raw[2]["score"] < raw[1]["score"]
    assert len(send(LengthRanker(), "/rerank", {**body, "top_n": 2}).json()) == 2


def test_null_is_what_was_not_set_and_jina_finds_its_usage() -> None:
    unset = dict.fromkeys(("return_documents", "texts", "top_n", "raw_scores", "model"))
    reply = send(LengthRanker(), "/v1/rerank", {"query": "q", "documents": ["a", "aa"], **unset})
    assert reply.status_code == 200, reply.json()
    assert reply.json()["usage"] == {"total_tokens": 0, "prompt_tokens": 0}
    reply = send(LengthRanker(), "/rerank", {"query": "q", "texts": ["a"], "documents": None})
    assert reply.status_code == 200, reply.json()


def test_scores_in_the_order_of_the_request() -> None:
    body = {"query": "q", "jobs": ["no-1", {"job_id": "x", "description": "aaa"}, "s"]}
    reply = send(LengthRanker(), "/v1/score", body)
    answer = reply.json()
    assert [one["job_id"] for one in answer["items"]] == ["no-1", "x", "s"]
    assert [one["score"] for one in answer["items"]] == [None, 0.03, 0.01]
    assert answer["items"][0]["status_text"] == "unknown job"
    times = {"total": 500.0, "prepare": 1.0, "ranker": 250.0}
    assert answer["parts"] == [{"start": 0, "items": 3, "served": SAID, "times_ms": times}]
    timing = reply.headers["server-timing"]
    assert timing == "total;dur=500.000, prepare;dur=1.000, ranker;dur=250.000"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"query": "q", "documents": []}, "there are no documents"),
        ({"query": "q", "documents": ["a"] * 4}, "4 documents, the limit is 3"),
        ({"query": "q", "documents": [{"txt": "a"}]}, "document 0: unknown keys txt"),
        ({"query": "q", "documents": [{"id": [7]}]}, "document 0: id is a list"),
        ({"query": "q", "documents": ["a"], "texts": ["a"]}, "both texts and documents"),
        ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
        ({"documents": ["a"]}, "query: Field required"),
        ({"query": 3, "documents": ["a"]}, "query: Input should be a valid string"),
    ],
)
def test_a_bad_request_names_value_and_rule(body: dict[str, Any], told: str) -> None:
    reply = send(LengthRanker(), "/v1/rerank", body, Limits(max_documents=3))
    assert reply.status_code == 422
    assert reply.headers["content-type"] == "application/problem+json"
    assert told in reply.json()["detail"]
    assert reply.json()["request_id"] == reply.headers["x-request-id"]


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (InvalidQuery("query is empty", "give a word"), 422),
        (Overloaded("full", "wait"), 503),
        (Unreachable("gone", "start it"), 503),
        (DeadlineExceeded("slow", "wait"), 504),
        (ServerFault("KeyError", "see the log"), 502),
    ],
)
def test_a_failure_of_the_ranker_has_its_status(failure: ScoreError, status: int) -> None:
    reply = send(LengthRanker(failure), "/v1/rerank", {"query": "q", "documents": ["a"]})
    assert reply.status_code == status
    assert reply.json()["message"] == f"{failure.message}. {failure.hint}"
    assert ("retry-after" in reply.headers) == (status == 503)


def test_a_body_above_the_limit_is_refused_declared_or_not() -> None:
    limits = Limits(max_request_bytes=500)
    body = {"query": "q", "documents": ["a" * 600]}
    assert send(LengthRanker(), "/v1/rerank", body, limits).status_code == 413

    async def parts() -> Any:
        for _ in range(100):
            yield b"[" * 10

    ranker = LengthRanker()
    reply = send(ranker, "/v1/rerank", None, limits, content=parts())
    assert reply.status_code == 413
    assert "500 bytes" in reply.json()["detail"]
    assert not ranker.asked
    assert send(LengthRanker(), "/v1/rerank", None, limits, content=b"{").status_code == 422


def test_a_million_wrong_elements_are_one_error() -> None:
    many = [1] * 200_000
    for body in (
        {"query": "q", "documents": many},
        {"query": "q", "texts": many},
        {"query": "q", "documents": [{"a": "b"}], "rank_fields": many},
        {"query": "q", "documents": [{"a": "b"}], "rank_fields": ["x" * 1000] * 60},
        dict.fromkeys(map(str, range(99))),
    ):
        started = time.process_time()
        reply = send(LengthRanker(), "/rerank", body)
        assert (reply.status_code, len(reply.json()["detail"]) < 200) == (422, True)
        assert time.process_time() - started < 2


def test_who_sends_half_of_a_request_does_not_keep_its_place() -> None:
    app = make_app(LengthRanker(), Limits(max_in_flight=1, body_s=0.2))
    sent: list[dict[str, Any]] = []
    head = [(b"content-type", b"application/json"), (b"content-length", b"40")]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "path": "/rerank", "raw_path": b"/rerank", "root_path": "", "scheme": "http",
        "query_string": b"", "headers": head, "client": ("c", 1), "server": ("s", 80),
    }  # fmt: skip

    async def half() -> int:
        messages = [{"type": "http.request", "body": b"{", "more_body": True}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await asyncio.Event().wait()
            raise AssertionError

        async def send_(message: Any) -> None:
            sent.append(message)

        await asyncio.wait_for(app(scope, receive, send_), 5)
        return int(sent[0]["status"])

    assert asyncio.run(half()) == 408
    assert ask_app(app, "/rerank", {"query": "q", "documents": ["a"]}).status_code == 200


def test_a_fault_of_the_gateways_own_is_told_and_counted() -> None:
    class Broken(LengthRanker):
        async def score(self, _query: str, jobs: Sequence[Asked], **_: Any) -> Answer:
            raise RecursionError("inside")

    app = make_app(Broken(), Limits())
    reply = ask_app(app, "/rerank", {"query": "q", "documents": ["a"]})
    assert (reply.status_code, reply.json()["title"]) == (500, "The gateway failed")
    assert "x-request-id" in reply.headers
    assert "inside" not in reply.text
    assert 'status="500"} 1.0' in ask_app(app, "/metrics").text


def test_who_may_ask() -> None:
    limits, body = Limits(tokens=("one", "two")), {"query": "q", "documents": ["a"]}
    for token, status in (("two", 200), ("tw", 401), ("", 401), ("ü", 401)):
        headers = {"authorization": f"Bearer {token}".encode()} if token else {}
        reply = send(LengthRanker(), "/v1/rerank", body, limits, headers=headers)
        assert reply.status_code == status
        assert reply.headers.get("www-authenticate") == (None if status == 200 else "Bearer")
    assert send(LengthRanker(), "/health", None, limits).status_code == 200


def test_more_requests_than_the_limit_are_refused_at_once() -> None:
    async def statuses() -> list[int]:
        go_on = asyncio.Event()
        transport = httpx.ASGITransport(
            make_app(LengthRanker(wait=go_on), Limits(max_in_flight=2))  # type: ignore[arg-type]
        )
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            body = {"query": "q", "documents": ["a"]}
            tasks = [asyncio.ensure_future(client.post("/v1/rerank", json=body)) for _ in range(5)]
            done, _ = await asyncio.wait(tasks, timeout=5, return_when=asyncio.FIRST_COMPLETED)
            while len(done) < 3:
                done, _ = await asyncio.wait(tasks, timeout=0.1)
            go_on.set()
            return [reply.status_code for reply in await asyncio.gather(*tasks)]

    assert sorted(asyncio.run(statuses())) == [200, 200, 503, 503, 503]


def test_a_request_id_is_kept_unless_it_is_none() -> None:
    for sent, kept in (("abc-1", True), ("a b", False), ("x" * 99, False), ("x" * 64, True)):
        reply = send(LengthRanker(), "/health/live", headers={"x-request-id": sent})
        assert (reply.headers["x-request-id"] == sent) == kept
        assert reply.headers["x-request-id"]


def test_health_and_metrics() -> None:
    assert send(LengthRanker(), "/health").json() == SAID
    reply = send(LengthRanker(Unreachable("gone", "start it")), "/health")
    assert reply.status_code == 503
    assert reply.json()["hint"] == "start it"

    async def counted() -> str:
        app = make_app(LengthRanker(), Limits())  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            await client.post("/v1/rerank", json={"query": "q", "documents": ["a", {"id": "no"}]})
            await client.post("/nothing", json={})
            await client.post("/rerank", content=b"{", headers={"content-type": "text/plain"})
            return (await client.get("/metrics")).text

    page = asyncio.run(counted())
    assert 'slmrank_gateway_requests_total{route="/v1/rerank",status="200"} 1.0' in page
    assert 'slmrank_gateway_documents_total{status="unknown_job"} 1.0' in page
    assert 'route="other",status="404"' in page
    assert 'route="/rerank",status="422"' in page


def test_the_description_of_the_endpoint_names_every_route() -> None:
    paths = send(LengthRanker(), "/openapi.json").json()["paths"]
    assert set(paths) == {
        "/v1/rerank",
        "/v2/rerank",
        "/rerank",
        "/v1/score",
        "/health",
        "/health/live",
    }
    told = paths["/rerank"]["post"]
    assert told["security"] == [{"HTTPBearer": []}]
    assert set(told["responses"]["400"]["content"]) == {"application/problem+json"}


def test_refusals_say_what_would_be_taken() -> None:
    reply = send(LengthRanker(), "/rerank")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    headers = {"content-type": "application/json"}
    reply = send(LengthRanker(), "/rerank", content=b"\x1f\x8b", headers=headers)
    assert reply.status_code == 400
    assert "not compressed" in reply.json()["hint"]
    form = {"content-type": "application/x-www-form-urlencoded"}
    body = b'{"query": "q", "documents": ["a"]}'
    reply = ask_app(make_app(LengthRanker(), Limits()), "/rerank", content=body, headers=form)  # type: ignore[arg-type]
    assert (reply.status_code, reply.json()["hint"]) == (422, "send content-type: application/json")


def test_what_was_sent_is_not_repeated_without_bound() -> None:
    many = {f"key{number}": "x" for number in range(9)} | {"k" * 1000: "x"}
    for document, told in ((many, "and 5 more"), ({"k" * 1000: 5}, "is 5, not a string")):
        reply = send(LengthRanker(), "/rerank", {"query": "q", "documents": [document]})
        assert reply.status_code == 422
        assert told in reply.json()["detail"]
        assert "k" * 100 not in reply.text


def test_a_document_without_a_text_is_given_back_with_one() -> None:
    body = {"query": "q", "documents": [{"text": None, "description": "bake"}]}
    reply = send(LengthRanker(), "/rerank", {**body, "return_documents": True})
    assert reply.json()["results"][0]["document"]["text"] == "bake"


def test_a_refusal_before_routing_is_counted_as_its_routes() -> None:
    app = make_app(LengthRanker(), Limits(tokens=("one",)))  # type: ignore[arg-type]
    ask_app(app, "/rerank", {"query": "q", "documents": ["a"]})
    assert 'route="/rerank",status="401"} 1.0' in ask_app(app, "/metrics").text


@pytest.mark.parametrize(
    ("path", "body", "shown"),
    [
        ("/v1/score", b'{"query": "q\\ud800", "jobs": ["a\\ud800"]}', '"job_id":"a?"'),
        (
            "/v1/rerank",
            b'{"query": "q", "documents": ["a\\ud800"], "return_documents": true}',
            '"document":{"text":"a?"}',
        ),
        ("/rerank", b'{"query": "q", "texts": ["a\\ud800"], "return_text": true}', '"text":"a?"'),
    ],
)
def test_half_a_surrogate_pair_is_given_back_as_a_mark(path: str, body: bytes, shown: str) -> None:
    """It has no UTF-8 form: the whole answer was lost for it."""
    headers = {"content-type": "application/json"}
    reply = send(LengthRanker(), path, content=body, headers=headers)
    assert reply.status_code == 200
    assert shown in reply.text


def test_nobody_works_for_a_caller_that_went_away() -> None:
    ended: list[str] = []

    class Slow(LengthRanker):
        async def score(self, query: str, jobs: Sequence[Asked], **how: Any) -> Answer:
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise
            return await super().score(query, jobs, **how)

    app, sent = make_app(Slow(), Limits()), []
    body = b'{"query": "q", "documents": ["a"]}'
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        await asyncio.sleep(0.01)
        return left.pop(0) if left else {"type": "http.disconnect"}

    async def keep(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/rerank",
        "raw_path": b"/v1/rerank",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("gateway", 80),
        "scheme": "http",
    }
    started = time.monotonic()
    asyncio.run(app(scope, receive, keep))
    assert time.monotonic() - started < 4
    assert ended == ["cancelled"]
    counted = ask_app(app, "/metrics").text
    assert 'slmrank_gateway_requests_total{route="/v1/rerank",status="499"} 1.0' in counted


def test_tokens_are_those_of_the_file_as_it_is(tmp_path: Path, capsys: Any) -> None:
    """One that was taken out was let in for the life of the process."""
    path = tmp_path / "tokens"
    path.write_text("old\n")
    file = TokenFile(path)
    app = make_app(LengthRanker(), Limits(tokens=file.known))  # type: ignore[arg-type]

    def ask(token: str) -> int:
        body = {"query": "q", "documents": ["a"]}
        headers = {"authorization": f"Bearer {token}"}
        return ask_app(app, "/rerank", body, headers=headers).status_code

    assert (ask("old"), ask("new")) == (200, 401)
    path.write_text("new one\n".replace(" one", ""))
    os.utime(path, ns=(1, 1))
    assert (ask("old"), ask("new")) == (401, 200)
    path.write_text("")
    os.utime(path, ns=(2, 2))
    assert (ask("old"), ask("new")) == (401, 200)
    assert "the tokens before hold" in capsys.readouterr().err


def test_a_deep_document_is_refused_before_it_is_scored() -> None:
    def nested(levels: int) -> Any:
        return [] if levels == 0 else [nested(levels - 1)]

    class Never(LengthRanker):
        async def score(self, _query: str, jobs: Sequence[Asked], **_: Any) -> Answer:
            raise AssertionError("asked")

    body = {"query": "q", "documents": [{"text": "a", "x": nested(60)}], "return_documents": True}
    assert send(LengthRanker(), "/rerank", body).json()["results"][0]["document"]["x"] == nested(60)
    body["documents"] = [{"text": "a", "x": nested(400)}]
    assert send(LengthRanker(), "/rerank", body | {"return_documents": False}).status_code == 200
    reply = send(Never(), "/rerank", body)
    assert (reply.status_code, "64 levels" in reply.text) == (422, True)


def test_rank_fields_choose_what_is_ranked() -> None:
    """They were let through as if they meant nothing, and other fields were ranked."""
    ranker = LengthRanker()
    documents = [{"text": "x", "title": "Nurse", "body": "b"}, {"text": "x", "title": "Cook"}]
    body = {"query": "q", "documents": documents, "rank_fields": ["body", "text"]}
    assert send(ranker, "/v1/rerank", body).status_code == 200
    assert ranker.asked == [
        Job(job_id="#0", description="b\nx"),
        Job(job_id="#1", description="x"),
    ]
    reply = send(ranker, "/v1/rerank", body | {"rank_fields": ["nothing"]})
    assert (reply.status_code, "rank_fields nothing" in reply.text) == (422, True)


@pytest.mark.parametrize(
    ("more", "given"),
    [
        ({}, False),
        ({"model": "rerank-v3.5"}, False),
        ({"model": "jina-reranker-v2-base-multilingual"}, True),
        ({"model": "jina-reranker-v2-base-multilingual", "return_documents": False}, False),
        ({"return_documents": True}, True),
    ],
)
def test_jinas_clients_get_documents_unasked(more: dict[str, Any], given: bool) -> None:
    reply = send(LengthRanker(), "/v1/rerank", {"query": "q", "documents": ["aa"], **more})
    assert ("document" in reply.json()["results"][0]) == given


@pytest.mark.parametrize("path", ["/health", "/health/live"])
def test_probes_may_ask_for_the_head_alone(path: str) -> None:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(make_app(LengthRanker(), Limits()))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.head(path)

    assert asyncio.run(once()).status_code == 200

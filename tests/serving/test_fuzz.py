"""Broken requests against the real server (FUZZ_REQUESTS=10000 for as many; the inner loop has fewer):
it lives, answers each of them, and what was
good in them scores as ever."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from slmrank.client.client import RankClient
from slmrank.serving.server import ANY_PORTS, Server
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.conftest import TinyBundle
from tests.serving.fuzz import draw, http_body, inner_message, message, mutate

pytestmark = [pytest.mark.triton, pytest.mark.slow]
REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "2000"))
HTTP_SHARE = 0.2
AT_ONCE = 12
QUERIES = ("nurse shift 3", "welder", "night cook, part time", "lehrer für Mathematik", "x")
# A joined pass sums in another order than a lone one.
TOLERANCE = 1e-3
# What a person must never read: the inside of our own code.
INSIDE = re.compile(r"Traceback|\b\w+Error: |line \d+, in|'NoneType'|has no attribute")
OURS = re.compile(r"(InvalidQuery|InvalidRequest): .+\. Fix: ")


def reference(server: Server, jobs: list[dict[str, str]]) -> dict[str, dict[str, float]]:
    ids = [job["job_id"] for job in jobs]
    with RankClient(server.url) as client:
        return {
            query: {item.job_id: item.score for item in client.score(query, ids)}
            for query in QUERIES
        }


def judge(sent: Any, scores: list[float], faults: list[str]) -> None:
    """Compare what came back with what was expected of the items that were left whole."""
    for place, expected in enumerate(sent.expected):
        if expected is None:
            continue
        found = scores[place] if place < len(scores) else float("nan")
        if not abs(found - expected) <= TOLERANCE:
            faults.append(f"{sent.told}: item {place} scored {found}, reference {expected}")


def refused(sent: Any, text: str, faults: list[str], outcomes: Counter[Any]) -> None:
    if "Request timeout expired" in text or "Exceeds maximum queue size" in text:
        outcomes["refused for its queue"] += 1  # a busy machine's overload, no fault
        return
    if INSIDE.search(OURS.sub("", text)):
        faults.append(f"{sent.told}: {text[:300]}")
    if any(one is not None for one in sent.expected):
        faults.append(f"{sent.told}: good items refused: {text[:300]}")


@pytest.fixture(scope="module")
def jobs(tiny: TinyBundle) -> list[dict[str, str]]:
    return [json.loads(line) for line in tiny.jobs.read_text().splitlines()]


def fields_of(jobs: list[dict[str, str]]) -> dict[str, str]:
    return {
        job["job_id"]: json.dumps({key: one for key, one in job.items() if key != "job_id"})
        for job in jobs
    }


@pytest.mark.long
def test_grpc_answers_every_broken_request(tiny_server: Server, jobs: list[dict[str, str]]) -> None:
    answers, fields = reference(tiny_server, jobs), fields_of(jobs)
    rng, faults, outcomes = random.Random(1), [], Counter()
    scored = 0

    async def run() -> None:
        nonlocal scored
        options = [("grpc.max_send_message_length", 2**31 - 1)]
        async with grpc.aio.insecure_channel(tiny_server.url, options=options) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            free = asyncio.Semaphore(AT_ONCE)

            async def one(sent: Any, made: Any) -> None:
                nonlocal scored
                async with free:
                    try:
                        reply = await stub.ModelInfer(made, timeout=30)
                    except grpc.aio.AioRpcError as error:
                        outcomes[error.code().name] += 1
                        refused(sent, str(error.details()), faults, outcomes)
                        return
                outcomes["OK"] += 1
                if all(expected is None for expected in sent.expected):
                    return
                place = [tensor.name for tensor in reply.outputs].index("score")
                scores = np.frombuffer(reply.raw_output_contents[place], np.float32).tolist()
                scored += sum(expected is not None for expected in sent.expected)
                judge(sent, scores, faults)

            tasks = []
            for _ in range(round(REQUESTS * (1 - HTTP_SHARE))):
                sent = draw(rng, answers, fields)
                made = message(sent)
                if rng.random() < 0.1:
                    made = inner_message(rng, sent)
                elif rng.random() < 0.5:
                    mutate(rng, made, sent)
                tasks.append(asyncio.ensure_future(one(sent, made)))
                if len(tasks) >= 200:
                    await asyncio.gather(*tasks)
                    tasks.clear()
            await asyncio.gather(*tasks)

    asyncio.run(run())
    print(dict(outcomes), scored)
    assert faults[:5] == []
    assert "DEADLINE_EXCEEDED" not in outcomes
    assert outcomes["UNAVAILABLE"] == outcomes["refused for its queue"] < REQUESTS / 50
    assert outcomes["OK"] > REQUESTS / 5
    assert scored > REQUESTS / 2
    assert reference(tiny_server, jobs)["welder"] == pytest.approx(answers["welder"], abs=TOLERANCE)


@pytest.mark.long
def test_http_answers_every_broken_request(
    tiny_repository: Path, jobs: list[dict[str, str]]
) -> None:
    fields = fields_of(jobs)
    rng, faults, outcomes = random.Random(2), [], Counter()
    with Server(tiny_repository, ANY_PORTS, http="all") as server:
        answers = reference(server, jobs)

        async def run() -> None:
            base = f"http://{server.address}:{server.ports.http}"
            async with httpx.AsyncClient(base_url=base, timeout=30) as client:
                free = asyncio.Semaphore(AT_ONCE)

                async def one() -> None:
                    sent = draw(rng, answers, fields)
                    body, headers = http_body(rng, sent)
                    async with free:
                        reply = await client.post(
                            "/v2/models/rank/infer", content=body, headers=headers
                        )
                    outcomes[reply.status_code] += 1
                    if reply.status_code != 200:
                        refused(sent, reply.text, faults, outcomes)
                    elif any(expected is not None for expected in sent.expected):
                        outputs = json.loads(re.sub(r"\bnan\b|NaN", "null", reply.text))["outputs"]
                        data = next(
                            tensor["data"] for tensor in outputs if tensor["name"] == "score"
                        )
                        judge(sent, [float("nan") if x is None else x for x in data], faults)

                for _ in range(round(REQUESTS * HTTP_SHARE / 50)):
                    await asyncio.gather(*(one() for _ in range(50)))

        asyncio.run(run())
        print(dict(outcomes))
        assert faults[:5] == []
        # The ensemble gives the refusals of its stages as 500.
        assert set(outcomes) <= {200, 400, 500, 503, "refused for its queue"}, outcomes
        assert outcomes[200] > REQUESTS * HTTP_SHARE / 6
        assert reference(server, jobs)["welder"] == pytest.approx(answers["welder"], abs=TOLERANCE)


@pytest.mark.parametrize("left_out", ["query", "job_id"])
def test_an_input_that_is_left_out_is_named(tiny_server: Server, left_out: str) -> None:
    """Triton counts inputs, and took an optional one in its place."""
    given = {"query": "nurse", "job_id": "", "job": "", "job_text": "a nurse"}
    del given[left_out]
    inputs = []
    for name, text in given.items():
        tensor = triton.InferInput(name, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=object))
        inputs.append(tensor)
    with (
        triton.InferenceServerClient(tiny_server.url) as client,
        pytest.raises(InferenceServerException, match=f"InvalidRequest: {left_out} is missing"),
    ):
        client.infer("prepare", inputs)

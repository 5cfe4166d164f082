"""The real server behind the real gateway, asked by clients that people already use.

`cohere` is installed with the tests; the frameworks' integrations where they are installed:
`pip install langchain-cohere llama-index-postprocessor-cohere-rerank cohere-haystack`.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from slmrank.client.aio import AsyncRankClient
from slmrank.client.answer import rank_order
from slmrank.client.client import RankClient
from slmrank.data.records import Job

pytestmark = [pytest.mark.triton, pytest.mark.slow]
QUERY = "night nurse"
TEXTS = [
    "Bake bread and clean the kitchen every morning.",
    "Care for patients during the night shift; give medicine.",
    "Drive a truck through the mountains.",
    "Teach children to read and write.",
]


@pytest.fixture(scope="module")
def gateway(tiny_server: Any) -> Iterator[str]:
    """The url of `control gateway` in front of the tiny server."""
    command = [sys.executable, "-m", "slmrank.cli.main", "gateway", "--url", tiny_server.url]
    process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = "http://" + process.stdout.readline().split()[-1]
    try:
        assert httpx.get(f"{url}/health/live").status_code == 200
        yield url
    finally:
        process.terminate()
        assert process.wait(20) == 0


@pytest.fixture(scope="module")
def best(tiny_server: Any) -> list[tuple[int, float]]:
    """Place and score of the texts as the gRPC client ranks them."""
    jobs = [Job(job_id=str(place), description=text) for place, text in enumerate(TEXTS)]
    with RankClient(tiny_server.url) as client:
        return [(item.index, item.score) for item in rank_order(client.score(QUERY, jobs))]


def test_plain_http(gateway: str, best: list[tuple[int, float]], control: Any) -> None:
    reply = httpx.post(f"{gateway}/v1/rerank", json={"query": QUERY, "documents": TEXTS})
    found = [(one["index"], one["relevance_score"]) for one in reply.json()["results"]]
    assert found == best  # to the bit, through JSON
    tei = httpx.post(f"{gateway}/rerank", json={"query": QUERY, "texts": TEXTS}).json()
    assert [(one["index"], one["score"]) for one in tei] == best
    assert "tokenizer_hash" in httpx.get(f"{gateway}/health").json()


def test_cohere(gateway: str, best: list[tuple[int, float]]) -> None:
    cohere = pytest.importorskip("cohere")
    for make in (cohere.Client, cohere.ClientV2):
        client = make(api_key="none", base_url=gateway)
        if make is cohere.Client and hasattr(client, "v2") and not hasattr(client, "rerank"):
            continue
        found = client.rerank(model="any", query=QUERY, documents=TEXTS, top_n=3)
        assert [(one.index, one.relevance_score) for one in found.results] == best[:3]


def test_langchain(gateway: str, best: list[tuple[int, float]]) -> None:
    cohere, module = pytest.importorskip("cohere"), pytest.importorskip("langchain_cohere")
    client = cohere.ClientV2(api_key="none", base_url=gateway)
    reranker = module.CohereRerank(model="any", client=client, cohere_api_key="none", top_n=4)
    found = reranker.rerank(TEXTS, QUERY)
    assert [one["index"] for one in found] == [index for index, _ in best]


def test_llama_index(gateway: str, best: list[tuple[int, float]]) -> None:
    module = pytest.importorskip("llama_index.postprocessor.cohere_rerank")
    schema = pytest.importorskip("llama_index.core.schema")
    reranker = module.CohereRerank(top_n=4, model="any", api_key="none", base_url=gateway)
    nodes = [schema.NodeWithScore(node=schema.TextNode(text=text)) for text in TEXTS]
    found = reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert [one.text for one in found] == [TEXTS[index] for index, _ in best]


def test_haystack(gateway: str, best: list[tuple[int, float]]) -> None:
    module = pytest.importorskip("haystack_integrations.components.rankers.cohere")
    haystack = pytest.importorskip("haystack")
    secret = pytest.importorskip("haystack.utils").Secret.from_token("none")
    ranker = module.CohereRanker(model="any", api_key=secret, api_base_url=gateway)
    documents = [haystack.Document(content=text) for text in TEXTS]
    found = ranker.run(query=QUERY, documents=documents, top_k=4)["documents"]
    assert [one.content for one in found] == [TEXTS[index] for index, _ in best]


def test_good_and_broken_requests_at_once(gateway: str, tiny_server: Any) -> None:
    """Every good one is answered, and to the bit as gRPC answers."""

    async def ask() -> tuple[list[int], list[Any]]:
        async with (
            AsyncRankClient(tiny_server.url) as grpc,
            httpx.AsyncClient(base_url=gateway, timeout=30) as client,
        ):
            expected = await grpc.score(QUERY, ["a", "b", Job(job_id="x", description=TEXTS[1])])
            body: dict[str, Any] = {
                "query": QUERY,
                "jobs": ["a", "b", {"id": "x", "text": TEXTS[1]}],
            }
            bad = [{"query": "", "jobs": ["a"]}, {"query": QUERY}, {"query": QUERY, "jobs": [[]]}]
            replies = []
            for _ in range(20):
                sent = [client.post("/v1/score", json=one) for one in [body, *bad]]
                replies += await asyncio.gather(*sent)
            # A busy machine's server may refuse for its queue; say so instead of "503 != 200".
            told = [reply.json()["detail"] for reply in replies if reply.status_code >= 500]
            assert not told, told
            good = [reply for reply in replies if reply.status_code == 200]
            for reply in good:
                found = [one["score"] for one in reply.json()["items"]]
                assert json.dumps(found) == json.dumps(
                    [None if one.score != one.score else one.score for one in expected]
                )
            return [reply.status_code for reply in replies], good

    statuses, good = asyncio.run(ask())
    assert statuses == [200, 422, 422, 422] * 20
    assert len(good) == 20

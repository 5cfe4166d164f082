"""The gateway's throughput beside the gRPC client's, alternating on one server.

    python perf/gateway.py build/demo.yaml --out perf/results/gateway.json

32 documents a request (ids of stored jobs), the same queries, a closed loop of coroutines for as
long; equal scores are shown first. Needs slmrank[local,gateway].
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
from slmrank.artifacts import ArtifactStore
from slmrank.client.aio import AsyncRankClient
from slmrank.data.labelled import read_labelled
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import run
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.spec.reading import load_spec

DOCUMENTS = 32


async def closed_loop(ask: Any, queries: list[str], level: int, seconds: float) -> float:
    """Documents per second that `level` coroutines get scored."""
    begin, done = time.perf_counter(), 0

    async def worker(number: int) -> None:
        nonlocal done
        place = number
        while time.perf_counter() - begin < seconds:
            await ask(queries[place % len(queries)])
            place += level
            done += 1

    await asyncio.gather(*(worker(number) for number in range(level)))
    return done * DOCUMENTS / (time.perf_counter() - begin)


async def measure(
    grpc_url: str, http_url: str, jobs: list[str], queries: list[str], given: Any
) -> dict[str, Any]:
    body = {"jobs": jobs}
    async with (
        AsyncRankClient(grpc_url) as client,
        httpx.AsyncClient(base_url=http_url, timeout=60) as http,
    ):

        async def over_grpc(query: str) -> list[float]:
            return [item.score for item in await client.score(query, jobs)]

        async def over_http(query: str) -> list[float]:
            reply = await http.post("/v1/score", json={"query": query, **body})
            return [item["score"] for item in reply.raise_for_status().json()["items"]]

        equal = all([await over_grpc(query) == await over_http(query) for query in queries[:4]])
        rows = []
        for level in given.levels:
            pairs = []
            for number in range(given.rounds):
                order = [over_grpc, over_http] if number % 2 == 0 else [over_http, over_grpc]
                rates = {
                    ask: await closed_loop(ask, queries, level, given.seconds) for ask in order
                }
                pairs.append((rates[over_grpc], rates[over_http]))
            ratios = [http / grpc for grpc, http in pairs]
            rows.append(
                {
                    "in_flight": level,
                    "grpc_documents_per_s": round(statistics.median(one for one, _ in pairs), 2),
                    "gateway_documents_per_s": round(statistics.median(one for _, one in pairs), 2),
                    "ratio": round(statistics.median(ratios), 3),
                    "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return {"equal_scores": equal, "documents": DOCUMENTS, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 4])
    given = parser.parse_args()
    bundle, store = Bundle(load_spec(given.spec, given.changes)), ArtifactStore(given.artifacts)
    labelled = read_labelled(run(bundle.data, store).path)
    jobs = list(islice(labelled.jobs, DOCUMENTS))
    queries = list(dict.fromkeys(pair.query for pair in labelled.pairs["test"]))[:32]
    with Server(run(bundle.repository, store).path, ANY_PORTS) as server:
        command = [sys.executable, "-m", "slmrank.cli.main", "gateway", "--url", server.url]
        command += ["--port", "0", "--timeout", "60"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as gateway:
            assert gateway.stdout is not None
            url = "http://" + gateway.stdout.readline().split()[-1]
            try:
                found = asyncio.run(measure(server.url, url, jobs, queries, given))
            finally:
                gateway.terminate()
    found["host"] = {"cores": os.cpu_count(), "python": platform.python_version()}
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Ranking depth in an overload: the same arrivals with and without `repository.depth`.

    python perf/depth.py build/demo.yaml --out perf/results/depth.json

Measures the rate at which one client after the other is answered, then sends requests at given
multiples of it (Poisson, one seed, open loop: nobody waits for an answer before the next is sent)
to a server with depth control and to one without, one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
from slmrank import AsyncRankClient, RankClient, Status
from slmrank.artifacts import ArtifactStore
from slmrank.data.labelled import read_labelled
from slmrank.errors import ScoreError
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import run
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.spec.reading import load_spec

ITEMS = 8
OBJECTIVE_MS = 2000.0
TRACE = ((0.6, 20.0), (2.5, 50.0), (0.6, 30.0))  # (multiple of the capacity, seconds)


async def drive(
    url: str, rate_of: list[tuple[float, float]], queries: list[str], jobs: list[str]
) -> list[dict[str, Any]]:
    """Every request's phase, latency and number of ranked jobs, or that it was refused."""
    rng = random.Random(1)
    found: list[dict[str, Any]] = []
    async with AsyncRankClient(url, timeout_s=60) as client:

        async def ask(phase: int, query: str, listed: list[str]) -> None:
            started = time.monotonic()
            try:
                answer = await client.score(query, listed)
            except ScoreError as error:
                found.append({"phase": phase, "refused": type(error).__name__})
                return
            ranked = sum(one.status in (Status.OK, Status.TRUNCATED) for one in answer)
            found.append(
                {"phase": phase, "ms": 1000 * (time.monotonic() - started), "ranked": ranked}
            )

        tasks, due = [], time.monotonic()
        for phase, (rate, seconds) in enumerate(rate_of):
            end = due + seconds
            while due < end:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                listed = rng.sample(jobs, ITEMS)
                tasks.append(asyncio.ensure_future(ask(phase, rng.choice(queries), listed)))
                due += rng.expovariate(rate)
        await asyncio.gather(*tasks)
    return found


def summary(found: list[dict[str, Any]], phase: int) -> dict[str, Any]:
    own = [one for one in found if one["phase"] == phase]
    answered = [one for one in own if "ms" in one]
    p50, p95, p99 = np.percentile([one["ms"] for one in answered], (50, 95, 99)).round().tolist()
    return {
        "requests": len(own),
        "refused": len(own) - len(answered),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "p99_within_objective": p99 <= OBJECTIVE_MS,
        "ranked_share": round(float(np.mean([one["ranked"] for one in answered])) / ITEMS, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--target-ms", type=float, default=200.0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    store = ArtifactStore(given.artifacts)
    depth = f"{{target_ms: {given.target_ms}, floor: 2, step: 2}}"
    patient = "repository.queue_timeout_us=60000000"
    bundles = {
        name: Bundle(load_spec(given.spec, (patient, f"repository.depth={value}")))
        for name, value in (("without", "null"), ("with", depth))
    }
    labelled = read_labelled(run(bundles["with"].data, store).path)
    jobs = sorted(labelled.jobs)
    queries = sorted({pair.query for pair in labelled.pairs["test"]})
    result: dict[str, Any] = {
        "items": ITEMS,
        "target_ms": given.target_ms,
        "objective_ms": OBJECTIVE_MS,
    }
    for name, bundle in bundles.items():
        with Server(run(bundle.repository, store).path, ANY_PORTS) as server:
            if "capacity_rps" not in result:
                with RankClient(server.url, timeout_s=60) as client:
                    client.score(queries[0], jobs[:ITEMS])
                    started = time.monotonic()
                    for number in range(8):
                        client.score(queries[number], jobs[number : number + ITEMS])
                    result["capacity_rps"] = round(8 / (time.monotonic() - started), 2)
            rates = [(multiple * result["capacity_rps"], seconds) for multiple, seconds in TRACE]
            found = asyncio.run(drive(server.url, rates, queries, jobs))
        result[name] = [
            {"load": multiple, **summary(found, phase)} for phase, (multiple, _) in enumerate(TRACE)
        ]
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""A server at three times its capacity: latency of what it takes, time to a refusal, memory.

    python perf/overload.py build/demo.yaml --out perf/results/overload.json

Capacity is measured first, on a server that takes everything, by a closed loop on the same requests
(stored jobs, 2 in flight); then requests arrive at three times that rate, Poisson, for 60 s, at one
as it is deployed. Needs slmrank[local].
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from process_tree import tree_mib
from slmrank.artifacts import ArtifactStore
from slmrank.client.aio import AsyncRankClient
from slmrank.data.labelled import read_labelled
from slmrank.errors import Overloaded, ScoreError
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import run
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.spec.reading import load_spec

IN_FLIGHT = 2


async def capacity(client: AsyncRankClient, requests: list[Any], seconds: float) -> float:
    begin, done = time.perf_counter(), 0

    async def worker(number: int) -> None:
        nonlocal done
        place = number
        while time.perf_counter() - begin < seconds:
            await client.score(*requests[place % len(requests)])
            done += 1
            place += IN_FLIGHT

    await asyncio.gather(*(worker(number) for number in range(IN_FLIGHT)))
    return done / (time.perf_counter() - begin)


async def overload(
    client: AsyncRankClient, requests: list[Any], rate: float, seconds: float
) -> dict[str, list[float]]:
    rng = random.Random(1)
    tasks: list[asyncio.Task[None]] = []
    ended: dict[str, list[float]] = {
        "scored": [],
        "queue full": [],
        "predicted too late": [],
        "other": [],
    }

    async def one(number: int) -> None:
        started = time.perf_counter()
        try:
            await client.score(*requests[number % len(requests)])
            kind = "scored"
        except Overloaded as error:
            kind = "queue full" if "are waiting" in error.message else "predicted too late"
        except ScoreError:
            kind = "other"
        ended[kind].append(time.perf_counter() - started)

    begin, due = time.perf_counter(), 0.0
    while due < seconds:
        await asyncio.sleep(max(begin + due - time.perf_counter(), 0))
        tasks.append(asyncio.ensure_future(one(len(tasks))))
        due += rng.expovariate(rate)
    await asyncio.gather(*tasks)
    return ended


def summary(values: list[float]) -> dict[str, float]:
    if not values:
        return {"requests": 0}
    points = np.percentile(np.array(values) * 1000, (50, 95, 99))
    told = {
        f"p{name}_ms": round(float(one), 1) for name, one in zip((50, 95, 99), points, strict=True)
    }
    return {"requests": len(values), **told}


async def measure_capacity(server: Server, requests: list[Any]) -> float:
    async with AsyncRankClient(server.url, timeout_s=60) as client:
        await capacity(client, requests, 5)
        return await capacity(client, requests, 20)


async def measure(server: Server, requests: list[Any], held: float, given: Any) -> dict[str, Any]:
    assert server.pid is not None
    async with AsyncRankClient(server.url, timeout_s=60) as client:
        for request in requests:
            await client.score(*request)
        before = tree_mib(server.pid)
        ended = await overload(client, requests, held * given.times, given.seconds)
        after = tree_mib(server.pid)
    return {
        "capacity_requests_per_s": round(held, 2),
        "offered_requests_per_s": round(held * given.times, 2),
        "seconds": given.seconds,
        **{kind: summary(values) for kind, values in ended.items()},
        "memory_mib": {"before": round(before), "after": round(after)},
        "scored_of_capacity": round(len(ended["scored"]) / given.seconds / held, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--jobs", type=int, default=4, help="of a request")
    parser.add_argument("--times", type=float, default=3.0, help="the capacity")
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    bundle, store = Bundle(load_spec(given.spec, given.changes)), ArtifactStore(given.artifacts)
    labelled = read_labelled(run(bundle.data, store).path)
    jobs = list(labelled.jobs)
    queries = list(dict.fromkeys(pair.query for pair in labelled.pairs["test"]))
    requests = [
        (query, list(islice(jobs, place * given.jobs, (place + 1) * given.jobs)))
        for place, query in enumerate(queries[:40])
    ]
    repository = run(bundle.repository, store).path
    with Server(repository, ANY_PORTS, measured=True) as server:
        held = asyncio.run(measure_capacity(server, requests))
    with Server(repository, ANY_PORTS) as server:
        found = asyncio.run(measure(server, requests, held, given))
    found |= {
        "jobs": given.jobs,
        "objective_ms": bundle.spec.sweep.slo.latency_ms,
        "max_queue_size": bundle.spec.repository.max_queue_size,
        "host": {"cores": os.cpu_count(), "python": platform.python_version()},
    }
    text = json.dumps(found, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

"""The score cache at a known share of repeated pairs: items/s with it and without, in turns.

    python perf/score_cache.py build/demo.yaml --out perf/results/score_cache.json

Two servers over the same engine, one with `repository.cache`, are asked the same requests, one
after the other: of the jobs of each request the given share was asked for with the same query
before. No query comes twice in two rounds, so that every round starts cold.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from slmrank import RankClient
from slmrank.artifacts import ArtifactStore
from slmrank.data.labelled import read_labelled
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import run
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.spec.reading import load_spec

ITEMS = 8
REQUESTS = 10  # of one round, per share
SHARES = (0.0, 0.25, 0.5, 0.75)


def requests(
    queries: Iterator[str], jobs: list[str], share: float
) -> Iterator[tuple[str, list[str]]]:
    """Requests of ITEMS jobs; `share` of a request's jobs stood in the one before it, with its
    query. The first of each query is new, and asked for outside of the time."""
    rng = random.Random(0)
    query, repeated = next(queries), round(ITEMS * share)
    seen = rng.sample(jobs, ITEMS)
    yield query, seen
    for _ in range(REQUESTS):
        fresh = rng.sample([job for job in jobs if job not in seen], ITEMS - repeated)
        seen = rng.sample(seen, repeated) + fresh
        rng.shuffle(seen)
        yield query, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    store = ArtifactStore(given.artifacts)
    bundles = [
        Bundle(load_spec(given.spec, (f"repository.cache={value}",))) for value in ("null", "{}")
    ]
    labelled = read_labelled(run(bundles[0].data, store).path)
    jobs = sorted(labelled.jobs)
    queries = iter(sorted({pair.query for pair in labelled.pairs["train"]}))
    repositories = [run(bundle.repository, store).path for bundle in bundles]
    rates: dict[float, list[tuple[float, float]]] = {share: [] for share in SHARES}
    furthest = 0.0
    with (
        Server(repositories[0], ANY_PORTS) as plain,
        Server(repositories[1], ANY_PORTS) as caching,
        RankClient(plain.url, timeout_s=60) as first,
        RankClient(caching.url, timeout_s=60) as second,
    ):
        for client in (first, second):
            client.score("warm up", jobs[:ITEMS])
        for number in range(given.rounds):
            for share in SHARES:
                asked = list(requests(queries, jobs, share))
                seconds, scores = {}, {}
                for client in (first, second) if number % 2 else (second, first):
                    client.score(*asked[0])
                    started = time.perf_counter()
                    scores[client] = [client.score(*one) for one in asked[1:]]
                    seconds[client] = time.perf_counter() - started
                gaps = [
                    abs(a.score - b.score)
                    for one, two in zip(scores[first], scores[second], strict=True)
                    for a, b in zip(one, two, strict=True)
                ]
                furthest = max(furthest, *gaps)
                items = ITEMS * REQUESTS
                rates[share].append((items / seconds[first], items / seconds[second]))
    rows: list[dict[str, Any]] = []
    for share, pairs in rates.items():
        ratios = [caching / plain for plain, caching in pairs]
        low, middle, high = np.percentile(ratios, (25, 50, 75)).round(3).tolist()
        rows.append(
            {
                "repeated": share,
                "items_per_s_without": round(float(np.median([one for one, _ in pairs])), 1),
                "items_per_s_with": round(float(np.median([one for _, one in pairs])), 1),
                "ratio": {"q1": low, "median": middle, "q3": high},
            }
        )
    result = {"items": ITEMS, "rounds": given.rounds, "largest_gap": furthest, "rows": rows}
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

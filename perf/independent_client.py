"""The sweep's throughput beside an independent asyncio gRPC client, in the same minute.

    python perf/independent_client.py build/demo.yaml --out perf/results/independent_client.json

For each of three points: perf_analyzer as `control sweep` runs it, then a closed loop of coroutines
that sends the same requests for as long, on the same server, alternating. Equal scores are shown
first: those of the first request, through a blocking and the asyncio client. Needs slmrank[local].
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from slmrank.artifacts import ArtifactStore
from slmrank.load.perf_analyzer import Measuring, run_point
from slmrank.load.run import open_bench
from slmrank.load.session import running
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.measure import open_bundle_session
from slmrank.pipeline.steps import run
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.spec.load import SweepSpec
from slmrank.spec.reading import change_spec, load_spec
from tritonclient import grpc as blocking
from tritonclient.grpc import aio

POINTS = (
    {"items": [1], "tokens": [32], "concurrency": [1]},
    {"items": [4], "tokens": [64], "concurrency": [2]},
    {"items": [8], "tokens": [96], "concurrency": [2]},
)
MEASURING = Measuring(spec=SweepSpec(window_ms=4000, trials=8, stability_percent=20))


def request_of(entry: dict[str, Any], module: Any) -> list[Any]:
    """The tensors of one entry of a point's input."""
    made = []
    for name, tensor in entry.items():
        values = np.array([[text.encode() for text in tensor["content"]]], dtype=object)
        one = module.InferInput(name, list(values.shape), "BYTES")
        one.set_data_from_numpy(values)
        made.append(one)
    return made


async def closed_loop(url: str, data: list[dict[str, Any]], level: int, seconds: float) -> float:
    """Requests per second that `level` coroutines get answered."""
    async with aio.InferenceServerClient(url) as client:
        requests = [request_of(entry, aio) for entry in data]
        begin = time.perf_counter()
        done = 0

        async def worker(number: int) -> None:
            nonlocal done
            place = number
            while time.perf_counter() - begin < seconds:
                await client.infer("rank", requests[place % len(requests)])
                place += level
                done += 1

        await asyncio.gather(*(worker(number) for number in range(level)))
        return done / (time.perf_counter() - begin)


async def first_scores(url: str, entry: dict[str, Any]) -> list[float]:
    async with aio.InferenceServerClient(url) as client:
        answer = await client.infer("rank", request_of(entry, aio))
        return [float(one) for one in answer.as_numpy("score")[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    bundle, store = Bundle(load_spec(given.spec)), ArtifactStore(given.artifacts)
    repository = run(bundle.repository, store)
    subject = open_bundle_session(bundle, store).subject
    rows = []
    with (
        tempfile.TemporaryDirectory() as work,
        Server(repository.path, ANY_PORTS) as server,
        open_bench(store, subject, lambda: nullcontext(running(server))) as bench,
    ):
        tool = bench.analyzer
        for axes in POINTS:
            changed = Bundle(change_spec(bundle.spec, {"sweep": axes}))
            (task,) = open_bundle_session(changed, store).tasks
            point, data = task.point, task.given.data
            level = int(point.load.level)
            entry = data["data"][0]
            with blocking.InferenceServerClient(server.url) as client:
                told = client.infer("rank", request_of(entry, blocking)).as_numpy("score")[0]
            other = asyncio.run(first_scores(server.url, entry))
            assert np.array_equal(told, np.array(other, dtype=np.float32)), "other scores"
            bench.warm_up(task)
            pairs = []
            for number in range(given.rounds):
                folder = Path(work) / f"{point.name}-{number}"
                folder.mkdir()
                outcome = run_point(tool, server.url, point, MEASURING, data, folder)
                if outcome.measured is None or not outcome.stable:
                    print(f"{point.name}: {outcome.verdict} {outcome.reason}, left out")
                    continue
                seconds = 3 * 1.2 * outcome.measured.window_ms / 1000
                ours = asyncio.run(closed_loop(server.url, data["data"], level, seconds))
                pairs.append((outcome.measured.requests_per_s, ours))
            ratios = sorted(ours / theirs for theirs, ours in pairs)
            row = {
                "point": point.name,
                "sweep_requests_per_s": [round(theirs, 2) for theirs, _ in pairs],
                "asyncio_requests_per_s": [round(ours, 2) for _, ours in pairs],
                "ratio_median": round(statistics.median(ratios), 3),
                "ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)],
            }
            rows.append(row)
            print(json.dumps(row, indent=2))
    if given.out:
        provenance = {
            "command": "python perf/independent_client.py build/demo.yaml",
            "rounds": given.rounds,
            "engine": bundle.engine.key,
            "perf_analyzer": tool.version,
            "python": platform.python_version(),
            "tritonclient": version("tritonclient"),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        }
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({"provenance": provenance, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

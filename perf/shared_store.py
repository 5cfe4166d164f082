"""The shared summary store: bytes per entry, a look-up, switches under load, message to score.

    python perf/shared_store.py build/demo.yaml --out perf/results/shared_store.json

Starts a redis-server of its own and the bundle's tritonserver on loopback, both beside what
measures them. Codes and look-ups are compared in turns, in one run, on the bundle's own summaries.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from slmrank import RankClient, Status
from slmrank.artifacts import ArtifactStore
from slmrank.data.labelled import read_labelled
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import run
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.spec.reading import load_spec
from slmrank.store.ids_code import decode_ids, encode_ids
from slmrank.store.job_store import entries_of
from slmrank.store.redis_address import parse_address
from slmrank.store.redis_reader import RedisReader
from slmrank.store.redis_writer import RedisWriter
from slmrank.store.registry import open_store

ROUNDS = 30
REQUEST = 500  # jobs of one request


@contextmanager
def redis_server() -> Iterator[str]:
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        program = (
            shutil.which("redis-server") or shutil.which("valkey-server") or sys.exit("no redis")
        )
        command = [program, "--port", str(port), "--dir", folder, "--save", "", "--logfile", "log"]
        process = subprocess.Popen(command)
        try:
            for _ in range(100):
                with socket.socket() as one:
                    if one.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield f"redis://127.0.0.1:{port}/0?deadline_ms=2000&retry_ms=100&memory_s=0.5"
        finally:
            process.terminate()
            process.wait()


def microseconds(ask: Callable[[], Any]) -> float:
    started = time.perf_counter()
    ask()
    return (time.perf_counter() - started) * 1e6


def in_turns(asks: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """Median and quartiles of each, asked in turns."""
    taken: dict[str, list[float]] = {name: [] for name in asks}
    for _ in range(ROUNDS):
        for name, ask in asks.items():
            taken[name].append(microseconds(ask))
    found = {}
    for name, one in taken.items():
        q1, median, q3 = np.percentile(one, (25, 50, 75)).round(1).tolist()
        found[name] = {"q1": q1, "median": median, "q3": q3}
    return found


def codes(entries: list[np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Bytes per entry, and microseconds to decode one request's entries."""
    fixed = [one.astype("<i4").tobytes() for one in entries]
    packed = [zlib.compress(one, 6) for one in fixed]
    varied = [encode_ids(one) for one in entries]
    assert all(np.array_equal(*pair) for pair in zip(decode_ids(varied), entries, strict=True))
    stored = {"four bytes an id": fixed, "four bytes, zlib 6": packed, "seven bits a byte": varied}
    first = slice(0, REQUEST)
    asks: dict[str, Callable[[], Any]] = {
        "four bytes an id": lambda: [np.frombuffer(one, "<i4") for one in fixed[first]],
        "four bytes, zlib 6": lambda: [
            np.frombuffer(zlib.decompress(one), "<i4") for one in packed[first]
        ],
        "seven bits a byte": lambda: decode_ids(varied[first]),
    }
    try:
        import zstandard

        pack, unpack = zstandard.ZstdCompressor(3), zstandard.ZstdDecompressor()
        smallest = [pack.compress(one) for one in fixed]
        stored["four bytes, zstd 3"] = smallest
        asks["four bytes, zstd 3"] = lambda: [
            np.frombuffer(unpack.decompress(one), "<i4") for one in smallest[first]
        ]
    except ImportError:
        pass
    timed = in_turns(asks)
    return {
        name: {"bytes": round(statistics.mean(map(len, all_of)), 1), "decode_us": timed[name]}
        for name, all_of in stored.items()
    }


def switches(
    url: str, server: str, writer: RedisWriter, source: Any, requests: int
) -> dict[str, Any]:
    """Requests while two versions take turns, in which every job has another text."""
    names = list(source.job_ids())
    with tempfile.TemporaryDirectory() as folder:
        other = open_store("lmdb:", Path(folder), write=True)
        entries = [source.get(name) for name in names]
        moved = entries[7:] + entries[:7]
        other.put(
            {name: (str(n), one) for n, (name, one) in enumerate(zip(names, moved, strict=True))}
        )
        jobs = names[:4]
        known = []
        with RankClient(server, timeout_s=60) as client:
            for version in (other, source):
                writer.publish(entries_of(version), "v")
                time.sleep(1)
                known.append([one.score for one in client.score("night nurse", jobs)])
            ended = threading.Event()
            count = 0

            def switch() -> None:
                nonlocal count
                while not ended.is_set():
                    for version in (other, source):
                        writer.publish(entries_of(version), "v")
                        count += 1
                        time.sleep(0.2)

            switching = threading.Thread(target=switch)
            switching.start()
            wrong = unavailable = 0
            for _ in range(requests):
                answer = client.score("night nurse", jobs)
                if answer[0].status is Status.STORE_UNAVAILABLE:
                    unavailable += 1
                elif [one.score for one in answer] not in known:
                    wrong += 1
            ended.set()
            switching.join()
        other.close()
    return {"requests": requests, "switches": count, "wrong": wrong, "unavailable": unavailable}


def message_to_score(
    spec: str, artifacts: str, url: str, server: str, writer: RedisWriter, jobs: Any, rate: int
) -> dict[str, Any]:
    """Seconds from XADD to the changed score, of one message a second among `rate` a second."""
    command = [
        str(Path(sys.executable).parent / "control"),
        "watch",
        spec,
        "--artifacts",
        artifacts,
    ]
    command += ["--set", f"summarize.store={url}", "--json"]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    stream = f"slmrank:{parse_address(url).catalogue}:changes"
    ended = threading.Event()
    sent = 0

    def add(change: Any) -> None:
        writer.client.xadd(stream, {"change": json.dumps(change)})

    def load() -> None:
        nonlocal sent
        started, rest = time.monotonic(), jobs[10:]
        while not ended.is_set():
            add({"job": rest[sent % len(rest)]})
            sent += 1
            time.sleep(max(0.0, started + sent / rate - time.monotonic()))

    with RankClient(server, timeout_s=60) as client:

        def known(status: Status) -> None:
            while client.score("night nurse", [jobs[0]["job_id"]])[0].status is not status:
                time.sleep(0.01)

        add({"delete": jobs[0]["job_id"]})
        known(Status.UNKNOWN_JOB)  # the follower runs
        loading = threading.Thread(target=load)
        loading.start()
        delays = []
        for turn in range(60):
            appears = turn % 2 == 0
            add({"job": jobs[0]} if appears else {"delete": jobs[0]["job_id"]})
            started = time.perf_counter()
            known(Status.OK if appears else Status.UNKNOWN_JOB)
            delays.append(time.perf_counter() - started)
            time.sleep(0.5)
        ended.set()
        loading.join()
        time.sleep(2)
        group = writer.client.xinfo_groups(stream)[0]
    watching.terminate()
    told = json.loads(watching.communicate(timeout=60)[0])
    p50, p99 = np.percentile(delays, (50, 99)).round(3).tolist()
    return {
        "messages_per_s": rate,
        "sent": sent + len(delays) + 1,
        "applied": told["applied"],
        "rejected": told["rejected"],
        "left": int(group["lag"] or 0) + int(group["pending"]),
        "seconds_p50": p50,
        "seconds_p99": p99,
        "seconds_most": round(max(delays), 3),
        "samples": len(delays),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec")
    parser.add_argument("--artifacts", default="artifacts")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    with redis_server() as url:
        bundle = Bundle(load_spec(Path(given.spec), (f"summarize.store={url}",)))
        store = ArtifactStore(Path(given.artifacts))
        repository = run(bundle.repository, store).path
        summaries = run(bundle.summaries, store)
        writer = RedisWriter(parse_address(url), summaries.figures["identity"])
        jobs = [
            one.model_dump() for one in read_labelled(run(bundle.data, store).path).jobs.values()
        ]
        with closing(open_store("lmdb:", summaries.path)) as source:
            names = list(source.job_ids())
            entries = [one for one in source.ids_many(names) if one is not None]
            result: dict[str, Any] = {"jobs": len(names), "codes": codes(entries)}
            writer.publish(entries_of(source), "v")
            reader = RedisReader(url.replace("memory_s=0.5", "memory_s=0"), source.identity())
            near = RedisReader(url.replace("memory_s=0.5", "memory_s=3600"), source.identity())
            asked = names[:REQUEST]
            result["lookup_us"] = in_turns(
                {
                    "embedded": lambda: source.ids_many(asked),
                    "shared": lambda: reader.ids_many(asked),
                    "shared, in memory": lambda: near.ids_many(asked),
                }
            )
            with Server(repository, ANY_PORTS) as server:
                result["switching"] = switches(url, server.url, writer, source, given.requests)
                result["following"] = [
                    message_to_score(
                        given.spec, given.artifacts, url, server.url, writer, jobs, rate
                    )
                    for rate in (20, 100)
                ]
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

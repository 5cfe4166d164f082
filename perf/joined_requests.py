"""Two source trees' CPU engines on one checkpoint, the same prompts, alternating: items per second
of one long request, of a request with one item, and of 16 such requests that the batcher joined;
then, over gRPC, of 16 callers that each send one item at a time.

    git worktree add ../before COMMIT
    python perf/joined_requests.py build/demo.yaml --before ../before \\
      --before-python ../before/.venv/bin/python --out joined_requests.json

A server loads the slmrank of its interpreter's environment: the other tree needs one of its own.

Scores are compared first. Each tree builds its own engine and runs in a process of its own; every
repetition has queries that neither has seen, so that no prefix comes from a cache.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

HERE = Path(__file__).resolve().parents[1]
SHAPES = {"1 query x 32 items": (1, 32), "1 query x 1 item": (1, 1), "16 queries x 1 item": (16, 1)}
CHILD = """
import json, sys, time
from pathlib import Path
import numpy as np
from slmrank.engine.openvino.runtime import OpenVinoEngine
engine = OpenVinoEngine(Path(sys.argv[1]))
print("ready", flush=True)
for line in sys.stdin:
    asked = [(np.array(p, dtype=np.int32), [np.array(i, dtype=np.int32) for i in items])
             for p, items in json.loads(line)]
    started = time.perf_counter()
    if hasattr(engine, "logits_of"):
        found = engine.logits_of(asked)
    else:
        found = [engine.logits(prefix, items) for prefix, items in asked]
    seconds = time.perf_counter() - started
    print(json.dumps([seconds, [float(x) for one in found for x in one]]), flush=True)
"""


SERVER = """
import inspect, sys
from pathlib import Path
from slmrank.serving.server import ANY_PORTS, Server
told = {"measured": True} if "measured" in inspect.signature(Server).parameters else {}
with Server(Path(sys.argv[1]), ANY_PORTS, **told) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""
CALLERS, TURN_S = 16, 8.0


class Tree:
    """What one source tree makes of a spec, in a process of its own: `verb` makes it, and `child`
    runs it and says a line when it is ready."""

    def __init__(
        self,
        root: Path,
        python: str,
        spec: Path,
        changes: list[str],
        artifacts: Path,
        verb: str = "build",
        child: str = CHILD,
    ) -> None:
        self.environment = {**os.environ, "PYTHONPATH": str(root / "control")}
        command = [python, "-m", "slmrank.cli.main", verb, str(spec), "--json"]
        command += [f"--set={one}" for one in changes] + ["--artifacts", str(artifacts)]
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=HERE,
            stdout=subprocess.PIPE,
            check=True,
            timeout=3600,
        )
        folder = json.loads(done.stdout)["path"]
        self.process = subprocess.Popen(
            [python, "-c", child, folder],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.told = self.process.stdout.readline().strip()
        assert self.told

    def ask(self, asked: list[Any]) -> tuple[float, np.ndarray[Any, Any]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        seconds, logits = json.loads(self.process.stdout.readline())
        return seconds, 1 / (1 + np.exp(-np.array(logits)))


async def call(url: str, asked: list[tuple[str, str]], seconds: float) -> tuple[float, list[float]]:
    """Requests a second of CALLERS that take the next of `asked` when theirs is answered, and the
    scores. Both trees' servers have these tensors; their clients ask for more."""
    from tritonclient.grpc import InferInput
    from tritonclient.grpc.aio import InferenceServerClient

    def tensor(name: str, value: str) -> Any:
        made = InferInput(name, [1, 1], "BYTES")
        made.set_data_from_numpy(np.array([[value.encode()]], dtype=np.object_))
        return made

    scores: dict[int, float] = {}
    waiting = iter(enumerate(asked))
    started = time.perf_counter()
    async with InferenceServerClient(url) as client:

        async def caller() -> None:
            for number, (query, text) in waiting:
                values = {"query": query, "job_id": "", "job_text": text}
                sent = [tensor(name, value) for name, value in values.items()]
                reply = await client.infer("rank", sent)
                scores[number] = float(reply.as_numpy("score").item())
                if time.perf_counter() - started > seconds:
                    return

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return len(scores) / (time.perf_counter() - started), [scores[key] for key in sorted(scores)]


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--before", type=click.Path(path_type=Path), required=True)
@click.option("--before-python", default=sys.executable, help="with that tree's slmrank")
@click.option("--artifacts", type=click.Path(path_type=Path), default=Path("artifacts"))
@click.option("--set", "changes", multiple=True)
@click.option("--pairs", default=9, show_default=True, help="alternating pairs of runs")
@click.option("--out", type=click.Path(path_type=Path))
def main(
    spec: Path,
    before: Path,
    before_python: str,
    artifacts: Path,
    changes: tuple[str, ...],
    pairs: int,
    out: Path | None,
) -> None:
    from slmrank.artifacts import ArtifactStore
    from slmrank.data.labelled import read_labelled
    from slmrank.machine.facts import cpu_features, usable_cores
    from slmrank.model.checkpoint import CHECKPOINT_FOLDER, open_checkpoint
    from slmrank.pipeline.bundle import Bundle
    from slmrank.pipeline.steps import run
    from slmrank.spec.reading import load_spec

    bundle = Bundle(load_spec(spec, list(changes)))
    store = ArtifactStore(artifacts)
    labelled = read_labelled(run(bundle.data, store).path)
    encoder = open_checkpoint(run(bundle.base, store).path / CHECKPOINT_FOLDER).encoder()
    queries = sorted({pair.query for split in labelled.pairs.values() for pair in split})
    texts = [f"{job.title}. {job.description}" for job in labelled.jobs.values()]
    rng = np.random.default_rng(0)

    def item() -> list[int]:
        body = encoder.body(str(rng.choice(texts)))[: int(rng.integers(30, 60))]
        return [int(one) for one in encoder.item(body).ids]

    def request(items: int) -> tuple[list[int], list[list[int]]]:
        query = " ".join(rng.choice(queries, 2))
        return [int(one) for one in encoder.prefix(query)], [item() for _ in range(items)]

    trees = {"ours": (HERE, sys.executable), "theirs": (before, before_python)}
    ours, theirs = (Tree(*one, spec, list(changes), artifacts) for one in trees.values())
    host = {"cores": usable_cores(), "features": sorted(cpu_features() or ())}
    figures: dict[str, Any] = {"host": host, "pairs": pairs, "shapes": {}}
    for name, (count, items) in SHAPES.items():
        warm = [request(items) for _ in range(count)]
        ours.ask(warm)
        theirs.ask(warm)
        ratios, rates, gaps = [], [], []
        for number in range(pairs):
            asked = [request(items) for _ in range(count)]
            both = (ours, theirs) if number % 2 else (theirs, ours)
            taken = {tree: tree.ask(asked) for tree in both}
            gaps.append(float(np.abs(taken[ours][1] - taken[theirs][1]).mean()))
            ratios.append(taken[theirs][0] / taken[ours][0])
            rates.append(count * items / taken[ours][0])
            time.sleep(0.2)
        figures["shapes"][name] = {
            "mean_abs_dp": round(statistics.mean(gaps), 4),
            "ratio_median": round(statistics.median(ratios), 3),
            "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
            "items_per_s": round(statistics.median(rates), 1),
        }
        click.echo(f"{name}: {json.dumps(figures['shapes'][name])}")
    for tree in (ours, theirs):
        tree.process.terminate()
    servers = {
        name: Tree(*one, spec, list(changes), artifacts, "repo", SERVER)
        for name, one in trees.items()
    }

    def queries_and_texts(count: int) -> list[tuple[str, str]]:
        return [
            (" ".join(rng.choice(queries, 2)), " ".join(str(rng.choice(texts)).split()[:32]))
            for _ in range(count)
        ]

    few = queries_and_texts(64)
    alike = {name: asyncio.run(call(one.told, few, 60))[1] for name, one in servers.items()}
    ratios, rates = [], []
    for number in range(pairs):
        many = queries_and_texts(2000)
        order = sorted(servers, reverse=number % 2 == 0)
        turn = {name: asyncio.run(call(servers[name].told, many, TURN_S))[0] for name in order}
        ratios.append(turn["ours"] / turn["theirs"])
        rates.append(turn["ours"])
    for tree in servers.values():
        tree.process.terminate()
    figures["served"] = {
        "callers": CALLERS,
        "mean_abs_dp": round(float(np.abs(np.subtract(alike["ours"], alike["theirs"])).mean()), 4),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "items_per_s": round(statistics.median(rates), 1),
    }
    click.echo(f"16 callers x 1 item, served: {json.dumps(figures['served'])}")
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

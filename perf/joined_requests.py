"""Two source trees' CPU engines on one checkpoint, the same prompts, alternating: items per second
of one long request, of a request with one item, and of 16 such requests that the batcher joined.

    git worktree add ../before COMMIT
    python perf/joined_requests.py build/demo.yaml --before ../before --out joined_requests.json

Scores are compared first. Each tree builds its own engine and runs in a process of its own; every
repetition has queries that neither has seen, so that no prefix comes from a cache.
"""

from __future__ import annotations

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


class Tree:
    """The engine of one source tree, in its own process."""

    def __init__(self, root: Path, spec: Path, changes: list[str], artifacts: Path) -> None:
        self.environment = {**os.environ, "PYTHONPATH": str(root / "control")}
        command = [sys.executable, "-m", "slmrank.cli.main", "build", str(spec), "--json"]
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
            [sys.executable, "-c", CHILD, folder],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == "ready"

    def ask(self, asked: list[Any]) -> tuple[float, np.ndarray]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        seconds, logits = json.loads(self.process.stdout.readline())
        return seconds, 1 / (1 + np.exp(-np.array(logits)))


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--before", type=click.Path(path_type=Path), required=True)
@click.option("--artifacts", type=click.Path(path_type=Path), default=Path("artifacts"))
@click.option("--set", "changes", multiple=True)
@click.option("--pairs", default=9, show_default=True, help="alternating pairs of runs")
@click.option("--out", type=click.Path(path_type=Path))
def main(
    spec: Path,
    before: Path,
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

    ours = Tree(HERE, spec, list(changes), artifacts)
    theirs = Tree(before, spec, list(changes), artifacts)
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
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

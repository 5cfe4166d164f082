"""Summaries of a big catalogue: jobs/s in one process and on Ray, memory, kills.

    python perf/summarize_at_scale.py build/demo.yaml --jobs 20000 \
        --out perf/results/summarize_at_scale.json
    python perf/summarize_at_scale.py build/demo.yaml --jobs 1000000 --only-killed \
        --out perf/results/summarize_million.json

Writes Parquet of the spec's jobs, again and again with other numbers in their texts (so that no
text repeats), runs the verb as a user would, reads the peak of its processes' memory from the
kernel, and kills the last run twice in its middle. A million jobs are extrapolated: start +
million / rate. `--only-killed` makes the last run alone, and compares the parts of its first file
with those of one process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from process_tree import tree_mib
from pyarrow import parquet
from slmrank.artifacts import ArtifactStore
from slmrank.data.labelled import read_labelled
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import run
from slmrank.spec.reading import load_spec

GROUP = 1000


def write_jobs(folder: Path, known: list[dict[str, str]], count: int) -> None:
    """Files of 50 groups."""

    def job_of(number: int) -> dict[str, str]:
        job = known[number % len(known)]
        text = f"Opening {number}. {job['description']} Reference {number * 7919 % 1000003}."
        return {**job, "job_id": f"{job['job_id']}-{number}", "description": text}

    schema = pa.Table.from_pylist([job_of(0)]).schema
    for first in range(0, count, 50 * GROUP):
        with parquet.ParquetWriter(folder / f"jobs-{first:08d}.parquet", schema) as writer:
            for start in range(first, min(first + 50 * GROUP, count), GROUP):
                rows = [job_of(number) for number in range(start, min(start + GROUP, count))]
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def go(words: list[str], kill_at: int | None = None, out: Path | None = None) -> dict[str, Any]:
    """One run of the verb: its result, seconds, and the memory of its processes over time."""
    started = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    memory: list[float] = []
    while process.poll() is None:
        memory.append(tree_mib(process.pid))
        if kill_at is not None and out is not None and len(list(out.glob("*/*.done"))) >= kill_at:
            process.send_signal(signal.SIGKILL)
            process.wait()
            found = len(list(out.glob("*/*.done")))
            return {"killed_at": found, "seconds": round(time.perf_counter() - started, 1)}
        time.sleep(0.5)
    told = json.loads(process.stdout.read()) if process.stdout is not None else {}
    half = memory[len(memory) // 2 :]
    tenth = max(len(memory) // 10, 1)
    return {
        "jobs_per_s": told["rows_per_s"],
        "seconds": round(time.perf_counter() - started, 1),
        "found_parts": told["found"],
        "peak_mib": round(max(memory)),
        "peak_of_second_half_mib": round(max(half)),
        "mib_of_each_tenth": [
            round(sum(some) / len(some))
            for some in (memory[at : at + tenth] for at in range(0, 10 * tenth, tenth))
            if some
        ],
        "folder": told["out"],
    }


def digest(folder: str) -> str:
    made = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.parquet")):
        made.update(path.read_bytes())
    return made.hexdigest()[:16]


def killed_run(words: list[str], out: Path, parts: int) -> dict[str, Any]:
    """A run that is killed after a third and after two thirds of its parts."""
    kills = [go(words, parts * share // 3, out) for share in (1, 2)]
    last = go(words)
    before = kills[1]["killed_at"]
    assert last["found_parts"] >= before, "a finished part was done again"
    seconds = sum(one["seconds"] for one in (*kills, last))
    return {
        "parts_done_at_kills": [one["killed_at"] for one in kills],
        **last,
        "seconds_of_all": round(seconds, 1),
    }


def same_parts(folder: str, other: str) -> int:
    """How many parts of `other` have the same bytes in `folder`; raises where one has not."""
    paths = sorted(Path(other).glob("*.parquet"))
    for path in paths:
        if path.read_bytes() != (Path(folder) / path.name).read_bytes():
            raise AssertionError(f"{path.name} differs")
    return len(paths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--only-killed", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    bundle, store = Bundle(load_spec(given.spec)), ArtifactStore(given.artifacts)
    labelled = read_labelled(run(bundle.data, store).path)
    run(bundle.summarizer, store)
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "jobs"
        source.mkdir()
        write_jobs(source, [job.model_dump() for job in labelled.jobs.values()], given.jobs)
        control = str(Path(sys.executable).parent / "control")
        base = [control, "summarize", str(given.spec), "--artifacts", str(given.artifacts)]
        base += ["--json", "--jobs", str(source)]
        ways = {
            "one process": [],
            "ray, 1 worker": ["--on", "ray", "--workers", "1"],
            "ray, 2 workers": ["--on", "ray", "--workers", "2"],
        }
        result: dict[str, Any] = {"jobs": given.jobs, "parts": -(-given.jobs // GROUP), "runs": {}}
        digests = set()
        for name, more in {} if given.only_killed else ways.items():
            out = Path(work) / name.replace(" ", "-")
            result["runs"][name] = go([*base, "--out", str(out), *more])
            digests.add(digest(result["runs"][name].pop("folder")))
        out = Path(work) / "killed"
        words = [*base, "--out", str(out), *ways["ray, 2 workers"]]
        result["killed"] = killed_run(words, out, result["parts"])
        folder = result["killed"].pop("folder")
        if given.only_killed:
            result["killed"]["jobs_per_s_of_all"] = round(
                given.jobs / result["killed"]["seconds_of_all"], 1
            )
            first = Path(work) / "first"
            first.mkdir()
            shutil.copy2(min(source.glob("*.parquet")), first)
            alone = [*base[:-1], str(first), "--out", str(Path(work) / "alone")]
            made = go(alone)
            result["same_bytes_as_one_process"] = same_parts(folder, made.pop("folder"))
            result["runs"]["one process, first file"] = made
        else:
            result["same_bytes"] = len({*digests, digest(folder)}) == 1
            for one in result["runs"].values():
                start = one["seconds"] - given.jobs / one["jobs_per_s"]
                one["million_jobs_h"] = round((start + 1e6 / one["jobs_per_s"]) / 3600, 2)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

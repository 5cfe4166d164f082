"""Jobs and pairs of your own at scale: time and peak memory of `control data`.

    python perf/data_at_scale.py --out perf/results/data_at_scale.json

Writes Parquet (or, with --form jsonl, JSONL) of a million jobs and five million pairs into a
temporary folder, runs the verb as a user would, and reads the peak of its resident memory from the
kernel. The texts are generated: they prove the code, not a ranker.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slmrank.data.wording import phrases

PART = 100_000


def jobs(count: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(0)
    words = phrases()
    sentences = words["company"] + words["benefits"] + words["requirements"]
    for number in range(count):
        yield {
            "job_id": f"job-{number:08d}",
            "title": f"Trade {number % 9973} Worker",
            "company": rng.choice(words["company_first"]),
            "location": rng.choice(words["city"]),
            "description": " ".join(rng.choices(sentences, k=28)),
        }


def pairs(count: int, jobs: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(1)
    for number in range(count):
        query = number // 10
        yield {
            "query": f"trade {query % 9973} worker number {query}",
            "job_id": f"job-{rng.randrange(jobs):08d}",
            "grade": rng.choice([0, 0, 0, 1, 2, 4]),
            "group": f"occupation {query % 9973}",
        }


def write(records: Iterator[dict[str, Any]], folder: Path, form: str) -> int:
    """Files of PART records; returns their bytes."""
    folder.mkdir()
    part: list[dict[str, Any]] = []
    number = 0

    def flush() -> None:
        nonlocal number
        if form == "parquet":
            import pyarrow
            from pyarrow import parquet

            table = pyarrow.Table.from_pylist(part)
            parquet.write_table(table, folder / f"part-{number:04d}.parquet")
        else:
            with (folder / "all.jsonl").open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(one) + "\n" for one in part)
        part.clear()
        number += 1

    for record in records:
        part.append(record)
        if len(part) == PART:
            flush()
    if part:
        flush()
    return sum(path.stat().st_size for path in folder.iterdir())


def run(folder: Path, form: str) -> dict[str, Any]:
    """`control data` on the folder's files: seconds, and peak resident memory in MB."""
    end = "" if form == "parquet" else "/all.jsonl"
    spec = f"name: scale\ndata: {{source: {form}, jobs: jobs{end}, pairs: pairs{end}}}\n"
    (folder / "scale.yaml").write_text(spec)
    command = [sys.executable, "-m", "slmrank.cli.main", "data", str(folder / "scale.yaml")]
    started = time.monotonic()
    with subprocess.Popen(
        [*command, "--artifacts", str(folder / "artifacts"), "--json"], stdout=subprocess.PIPE
    ) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, peak_kb(process.pid))
            time.sleep(0.2)
        assert process.stdout is not None
        answer = json.loads(process.stdout.read())
    assert process.returncode == 0
    return {
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_mb": round(peak / 1024),
        "figures": answer["figures"],
    }


def peak_kb(pid: int) -> int:
    """VmHWM, which the process's own peak is; a child's ru_maxrss starts at its parent's."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) if lines else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=5_000_000)
    parser.add_argument("--form", choices=("parquet", "jsonl"), default="parquet")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sizes = {
            "jobs_mb": write(jobs(given.jobs), folder / "jobs", given.form) / 1e6,
            "pairs_mb": write(pairs(given.pairs, given.jobs), folder / "pairs", given.form) / 1e6,
        }
        print(f"written: {sizes}", file=sys.stderr)
        found = run(folder, given.form)
    result = {"jobs": given.jobs, "pairs": given.pairs, "form": given.form, **sizes, **found}
    text = json.dumps(result, indent=2) + "\n"
    print(text)
    if given.out is not None:
        given.out.write_text(text)


if __name__ == "__main__":
    main()

"""A catalogue in parts: the same bytes here and on Ray, after kills, and into the shared store."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from slmrank.client.client import RankClient
from slmrank.data.parts import Part, Place, done_parts, mark_done, plan_parts, read_part
from slmrank.data.records import Job
from slmrank.errors import DataError
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.catalogue import (
    catalogue_entries,
    kit_of_bundle,
    summarize_catalogue,
)
from slmrank.pipeline.part_runs import _do
from slmrank.pipeline.publish import publish
from slmrank.pipeline.score_catalogue import _check_columns, score_catalogue
from slmrank.pipeline.steps import run
from slmrank.spec.reading import change_spec
from slmrank.store.redis_address import parse_address
from slmrank.store.redis_reader import RedisReader
from slmrank.store.registry import open_store

from tests.redis_server import RedisServer


def write_jobs(folder: Path, tiny: Any, copies: int, group: int = 500) -> list[dict[str, Any]]:
    """Two Parquet files with copies of the tiny bundle's jobs, each with an id of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [json.loads(line) for line in tiny.jobs.read_text().splitlines()]
    rows = [{**job, "job_id": f"{job['job_id']}-{n}"} for n in range(copies) for job in jobs]
    half = len(rows) // 2
    for name, some in (("a", rows[:half]), ("b", rows[half:])):
        table = pa.Table.from_pylist(some)
        parquet.write_table(table, folder / f"{name}.parquet", row_group_size=group)
    return rows


def contents(folder: Path) -> dict[str, bytes]:
    parts = json.loads((folder / "_manifest.json").read_text())["parts"]
    return {name: (folder / f"{name}.parquet").read_bytes() for name in parts}


def test_parts_are_runs_of_row_groups(tiny: Any, tmp_path: Path) -> None:
    rows = write_jobs(tmp_path, tiny, 60, group=300)  # 1200 rows a file
    parts = plan_parts(Place(str(tmp_path)), rows=500)
    told = [(one.name, one.rows) for one in parts]
    assert told == [
        ("a-000000000", 600),
        ("a-000000600", 600),
        ("b-000000000", 600),
        ("b-000000600", 600),
    ]
    # However its place is spelled.
    spelled = tmp_path / "more" / ".." / "a.parquet"
    assert plan_parts(Place(str(spelled)), rows=500) == parts[:2]
    # A table and its output that were moved together are the same.
    moved = replace(parts[0], file="/elsewhere/a.parquet")
    out = Place(str(tmp_path / "out"))
    out.make()
    (tmp_path / "out" / f"{moved.name}.parquet").write_bytes(b"table")
    mark_done(out, moved, {})
    assert done_parts(out, parts) == {parts[0].name}
    assert not done_parts(out, [replace(parts[0], file_bytes=1)])
    shutil.rmtree(tmp_path / "out")
    # Rows that take long, wherever the row groups end.
    cut = plan_parts(Place(str(tmp_path / "a.parquet")), rows=500, cut_groups=True)
    assert [(one.start, one.rows) for one in cut] == [(0, 500), (500, 500), (1000, 200)]
    place = Place(str(tmp_path))
    read = [job.job_id for one in cut for jobs in read_part(place, one, Job) for job in jobs]
    assert read == [row["job_id"] for row in rows[:1200]]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    assert len({one.name for one in plan_parts(Place(str(tmp_path)), rows=500)}) == 6
    (tmp_path / "more-a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    with pytest.raises(DataError, match="two files .* would give a part 'more-a-000000000'"):
        plan_parts(Place(str(tmp_path)))
    (tmp_path / "more" / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"cannot read .*a\.parquet"):
        plan_parts(Place(str(tmp_path)))
    with pytest.raises(DataError, match="names no Parquet file"):
        plan_parts(Place(str(tmp_path / "none")))


def test_a_partitioned_table_is_read_with_what_its_folders_say(tmp_path: Path) -> None:
    rows = [
        {"job_id": f"{n}", "description": "x", "company": company}
        for n, company in enumerate(["A & B", "C/D", None])
    ]
    table = pa.Table.from_pylist(rows)
    parquet.write_to_dataset(table, tmp_path / "t", partition_cols=["company"])
    place = Place(str(tmp_path / "t"))
    read = {
        job.job_id: job.company
        for part in plan_parts(place)
        for jobs in read_part(place, part, Job)
        for job in jobs
    }
    assert read == {"0": "A & B", "1": "C/D", "2": ""}


def test_what_is_no_catalogue_is_named(tiny: Any, tmp_path: Path) -> None:
    good = pa.table({"job_id": ["a"], "description": ["x" * 10_000]})
    parquet.write_table(good, tmp_path / "in.parquet", compression="none")
    blank = pa.table({"job_id": ["a", "b"], "description": ["x", " "], "title": [None, None]})
    parquet.write_table(blank, tmp_path / "blank.parquet")
    kit = kit_of_bundle(tiny.bundle, tiny.store)
    with pytest.raises(DataError, match=r"blank\.parquet: row 2: job 'b' has no text"):
        summarize_catalogue(kit, str(tmp_path / "blank.parquet"), str(tmp_path / "out"))
    parquet.write_table(good.slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"none\.parquet holds no jobs"):
        summarize_catalogue(kit, str(tmp_path / "none.parquet"), str(tmp_path / "out"))
    made = summarize_catalogue(kit, str(tmp_path / "in.parquet"), str(tmp_path / "out2"))
    manifest = Path(made["out"]) / "_manifest.json"
    whole = manifest.read_text()
    manifest.write_text(json.dumps({**json.loads(whole), "rows": 0, "parts": []}))
    with pytest.raises(DataError, match="holds no jobs"):
        catalogue_entries(made["out"])
    manifest.write_text(whole)
    *_, batches = catalogue_entries(made["out"])
    table = Path(made["out"]) / "in-000000000.parquet"
    parquet.write_table(parquet.read_table(table).slice(0, 0), table)
    with pytest.raises(DataError, match="holds 0 of 1 jobs"):
        list(catalogue_entries(made["out"])[2])
    table.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"cannot read .*in-000000000\.parquet"):
        list(batches)
    other = {"query": ["q"], "embedding": [[0.5]], "job_family": ["x"]}
    parquet.write_table(pa.table(other), tmp_path / "queries.parquet")
    _check_columns(Place(str(tmp_path / "queries.parquet")))
    lists = [
        pa.list_(pa.large_string()),
        pa.large_list(pa.large_string()),
        pa.list_(pa.string(), 1),
    ]
    ids = [pa.array([["a"]], type=one) for one in lists]
    ids += [pa.array([[{"job_id": "a", "score": 0.5}]]), pa.array([[["a"]]])]
    ids.append(pa.array([["a"]], type=pa.list_(pa.dictionary(pa.int32(), pa.string()))))
    for column, values in (("job_id", ["a"]), *(("found", one) for one in [[["a"]], *ids])):
        table = pa.table({"query": ["q"], column: values})
        parquet.write_table(table, tmp_path / "queries.parquet")
        with pytest.raises(DataError, match=f"no column job_ids, and '{column}' is not read"):
            score_catalogue(
                tiny.bundle, tiny.store, str(tmp_path / "queries.parquet"), str(tmp_path / "s")
            )


def test_a_part_that_is_done_again_is_not_done_meanwhile(tmp_path: Path) -> None:
    """Killed in the middle, it kept the mark of the run before over another table."""
    parquet.write_table(pa.table({"job_id": ["a"], "description": ["x"]}), tmp_path / "in.parquet")
    place = Place(str(tmp_path / "out"))
    place.make()
    [part] = plan_parts(Place(str(tmp_path / "in.parquet")))
    (tmp_path / "out" / f"{part.name}.parquet").write_bytes(b"table")
    before = replace(part, file_bytes=1)  # of the table as it was
    mark_done(place, before, {})
    assert done_parts(place, [before])

    class Killed:
        def __init__(self) -> None:
            self.identity: dict[str, Any] = {}

        def do(self, part: Part, target: Place) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _do(Killed(), part, place)
    assert not done_parts(place, [before, part])
    # What a run beside this one has finished stays: it may have told that it is whole.
    mark_done(place, part, {})
    (tmp_path / "out" / f"{part.name}.parquet").write_bytes(b"table")
    mark_done(place, part, {})
    assert _do(Killed(), part, place) == 1
    assert done_parts(place, [part])


@pytest.mark.slow
def test_a_finished_part_without_its_table_is_made_again(tiny: Any, tmp_path: Path) -> None:
    table = pa.table({"job_id": list("abc"), "description": ["Cares for patients."] * 3})
    parquet.write_table(table, tmp_path / "in.parquet", row_group_size=1)
    kit = kit_of_bundle(tiny.bundle, tiny.store)
    places = (str(tmp_path / "in.parquet"), str(tmp_path / "out"))
    first = summarize_catalogue(kit, *places)
    (path,) = Path(first["out"]).glob("in-*.parquet")
    for kept in (0, 100):
        half = path.read_bytes()[:kept]
        path.unlink()
        if kept:
            path.write_bytes(half)
        again = summarize_catalogue(kit, *places)
        assert (again["done"], again["found"]) == (3, 0)
        assert parquet.read_table(path).num_rows == 3


def test_empty_row_groups_at_the_end_are_no_parts(tmp_path: Path) -> None:
    schema = pa.schema([("job_id", pa.string())])
    with parquet.ParquetWriter(tmp_path / "in.parquet", schema) as writer:
        for count in (3, 0, 5, 0, 0):
            names = pa.array([f"{count}-{one}" for one in range(count)])
            writer.write_batch(pa.record_batch([names], schema=schema))
    (part,) = plan_parts(Place(str(tmp_path / "in.parquet")))
    assert (part.start, part.rows) == (0, 8)
    assert [one.rows for one in plan_parts(Place(str(tmp_path / "in.parquet")), 1)] == [3, 5]


def test_an_output_inside_of_its_table_is_refused_by_url_too(tiny: Any, tmp_path: Path) -> None:
    parquet.write_table(
        pa.table({"job_id": ["a"], "description": ["Cares."]}), tmp_path / "in.parquet"
    )
    kit = kit_of_bundle(tiny.bundle, tiny.store)
    for source in (str(tmp_path), f"file://{tmp_path}"):
        for out in (str(tmp_path / "out"), f"file://{tmp_path}/out"):
            with pytest.raises(DataError, match="lies inside of"):
                summarize_catalogue(kit, source, out)


def test_what_decides_a_summary_decides_the_folder(tiny: Any, tmp_path: Path) -> None:
    rows = write_jobs(tmp_path / "in", tiny, 30)
    out = tmp_path / "out"

    def go(**changes: Any) -> dict[str, Any]:
        bundle = Bundle(change_spec(tiny.bundle.spec, {"summarize": changes}))
        return summarize_catalogue(
            kit_of_bundle(bundle, tiny.store), str(tmp_path / "in"), str(out)
        )

    first = go()
    assert (first["rows"], first["parts"], first["found"]) == (len(rows), 2, 0)
    again = go()
    assert (again["done"], again["found"], again["out"]) == (0, 2, first["out"])
    assert go(budget_tokens=24)["out"] != first["out"]
    # As the pipeline summarises them, with its own identity.
    summaries = run(tiny.bundle.summaries, tiny.store)
    identity, count, batches = catalogue_entries(first["out"])
    assert (identity, count) == (summaries.figures["identity"], len(rows))
    found = {job_id: ids.tolist() for batch in batches for job_id, ids in batch}
    with closing(open_store("lmdb:", summaries.path)) as store:
        for job_id, ids in found.items():
            (known,) = store.ids_many([job_id.rsplit("-", 1)[0]])
            assert known is not None
            assert ids == known.tolist()
    # A repository summarises as the spec that it was made of.
    by_repository = command(tiny, tmp_path / "in", out)
    by_repository[2:5] = [str(run(tiny.bundle.repository, tiny.store).path)]
    done = subprocess.run(by_repository, capture_output=True, text=True, timeout=300, check=True)
    told = json.loads(done.stdout)
    assert (told["out"], told["found"], told["done"]) == (first["out"], 2, 0)
    # Another content of a file is another part.
    write_jobs(tmp_path / "in", tiny, 31)
    assert go()["found"] == 0
    # A file that is gone takes its jobs with it, and a half-written manifest is written again.
    (tmp_path / "in" / "b.parquet").unlink()
    left = go()
    manifest = Path(left["out"]) / "_manifest.json"
    assert (left["found"], left["done"]) == (1, 0)
    assert catalogue_entries(left["out"])[1] == left["rows"] == 31 * len(rows) // 30 // 2
    assert [path.stem for path in manifest.parent.glob("*.parquet")] == ["a-000000000"]
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:20])
    with pytest.raises(DataError, match="not to the end"):
        catalogue_entries(left["out"])
    assert go()["done"] == 0
    assert manifest.read_bytes() == whole
    # What a run left that was stopped before its manifest is not read either.
    parquet.write_table(pa.table({"job_id": ["x"]}), manifest.with_name("c-000000000.parquet"))
    assert go()["done"] == 0
    assert [path.stem for path in manifest.parent.glob("*.parquet")] == ["a-000000000"]
    # Another table does not take the place of this one's output, nor of what a run left half-done.
    manifest.unlink()
    write_jobs(tmp_path / "other", tiny, 1)
    with pytest.raises(DataError, match=r"holds the output of .*/in, whose place"):
        summarize_catalogue(
            kit_of_bundle(tiny.bundle, tiny.store), str(tmp_path / "other"), str(out)
        )
    assert [path.stem for path in manifest.parent.glob("*.parquet")] == ["a-000000000"]


def test_a_row_that_is_no_job_is_named_and_the_rest_stays(tiny: Any, tmp_path: Path) -> None:
    write_jobs(tmp_path / "in", tiny, 30)
    bad = pa.Table.from_pylist([{"job_id": "x", "description": "y"}, {"job_id": "", "title": "z"}])
    parquet.write_table(bad, tmp_path / "in" / "c.parquet")
    with pytest.raises(DataError, match=r"c\.parquet: row 2: job_id"):
        summarize_catalogue(
            kit_of_bundle(tiny.bundle, tiny.store), str(tmp_path / "in"), str(tmp_path / "out")
        )
    (target,) = (tmp_path / "out").iterdir()
    parts = plan_parts(Place(str(tmp_path / "in")))
    assert done_parts(Place(str(target)), parts) == {"a-000000000", "b-000000000"}
    with pytest.raises(DataError, match=r"holds no _manifest\.json.*not to the end"):
        catalogue_entries(str(target))
    (tmp_path / "in" / "c.parquet").unlink()
    made = summarize_catalogue(
        kit_of_bundle(tiny.bundle, tiny.store), str(tmp_path / "in"), str(tmp_path / "out")
    )
    assert (made["found"], made["done"]) == (2, 0)
    assert catalogue_entries(str(target))[1] == made["rows"]


def command(tiny: Any, source: Path, out: Path, *more: str) -> list[str]:
    words = ["summarize", str(tiny.spec), "--artifacts", str(tiny.artifacts), "--json"]
    words += ["--jobs", str(source), "--out", str(out), *more]
    return [str(Path(sys.executable).parent / "control"), *words]


@pytest.mark.long
@pytest.mark.slow
def test_ray_gives_the_same_bytes_also_after_kills(tiny: Any, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    source = tmp_path / "in"
    write_jobs(source, tiny, 300, group=1000)  # 12 parts
    alone = summarize_catalogue(
        kit_of_bundle(tiny.bundle, tiny.store), str(source), str(tmp_path / "alone")
    )
    out = tmp_path / "ray"

    def go() -> subprocess.CompletedProcess[str]:
        words = command(tiny, source, out, "--on", "ray")
        return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)

    going = subprocess.Popen(
        command(tiny, source, out, "--on", "ray"), stdout=subprocess.DEVNULL, text=True
    )
    markers: set[Path] = set()
    while len(markers) < 2 and going.poll() is None:
        time.sleep(0.02)
        markers = set(out.glob("*/*.done"))
    going.send_signal(signal.SIGKILL)
    going.wait()
    bad = pa.Table.from_pylist([{"job_id": "", "description": "y"}])
    parquet.write_table(bad, source / "c.parquet")
    done = go()
    assert done.returncode == 3
    assert "c.parquet: row 1" in done.stdout + done.stderr
    (source / "c.parquet").unlink()
    markers = set(out.glob("*/*.done"))
    stamps = {path: path.stat().st_mtime_ns for path in markers}
    done = go()
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["found"] == len(markers) >= 2
    assert {path: path.stat().st_mtime_ns for path in markers} == stamps
    assert contents(Path(told["out"])) == contents(Path(alone["out"]))


@pytest.mark.long
@pytest.mark.slow
def test_inside_a_cluster_its_own_ray_is_used(tiny: Any, tmp_path: Path) -> None:
    """As the entrypoint of a Ray job, which finds the cluster by RAY_ADDRESS."""
    ray = pytest.importorskip("ray")
    source, rows = tmp_path / "in", write_jobs(tmp_path / "in", tiny, 30)
    program = """
import ray, sys
context = ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
print(context.address_info["gcs_address"], flush=True)
input()
actors = ray._private.state.actors().values()
print(sum(one["ActorClassName"].endswith("Actor") for one in actors), flush=True)
"""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-this-test" * 4}
    cluster = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, **token},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert cluster.stdout is not None
    address = cluster.stdout.readline().strip()
    done = subprocess.run(
        command(tiny, source, tmp_path / "out", "--on", "ray", "--workers", "1"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **token, "RAY_ADDRESS": address},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == len(rows)
    out, _ = cluster.communicate("\n", timeout=60)
    assert out.strip() == "1", f"no actor ran in ray {ray.__version__}'s cluster"


@pytest.mark.slow
def test_it_is_published(tiny: Any, tmp_path: Path) -> None:
    rows = write_jobs(tmp_path / "in", tiny, 30)
    redis = RedisServer(tmp_path / "redis")
    url = redis.url()
    bundle = Bundle(change_spec(tiny.bundle.spec, {"summarize": {"store": url}}))
    made = summarize_catalogue(
        kit_of_bundle(bundle, tiny.store), str(tmp_path / "in"), str(tmp_path / "out")
    )
    published = publish(bundle, tiny.store, catalogue=made["out"])
    assert published.jobs == len(rows)
    reader = RedisReader(url, run(bundle.summaries, tiny.store).figures["identity"])
    one, last, unknown = reader.ids_many(["job-0-0", "job-39-29", "job-0"])
    assert one is not None
    assert last is not None
    assert unknown is None
    other = Bundle(change_spec(bundle.spec, {"summarize": {"budget_tokens": 24}}))
    with pytest.raises(DataError, match="another tokenizer or summarizer"):
        publish(other, tiny.store, catalogue=made["out"])
    assert parse_address(url).catalogue == "jobs"
    redis.kill()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    "url",
    ["ftp://host/jobs", "gs:/jobs", "s3://bucket/in?endpoint_override=127.0.0.1:1&scheme=http"],
)
def test_a_place_that_cannot_be_reached_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-a-test")
    with pytest.raises(DataError, match="cannot reach") as raised:
        Place(url).files()
    assert url in str(raised.value)
    assert "pyarrow.fs" in raised.value.hint


def test_a_folder_below_a_url_is_a_url(tmp_path: Path) -> None:
    assert Place(str(tmp_path)).below("a").url == f"{tmp_path}/a"
    url = f"file://{tmp_path}/"
    below = Place(url).below("a").below("b")
    assert (below.url, below.path) == (f"file://{tmp_path}/a/b", f"{tmp_path}/a/b")


@pytest.mark.slow
def test_places_that_are_none(tiny: Any, control: Any, tmp_path: Path) -> None:
    base = ("summarize", tiny.spec, "--artifacts", tiny.artifacts)
    done = control(*base, "--jobs", tmp_path)
    assert done.returncode == 2
    assert "--jobs and --out belong together" in done.stderr
    done = control(*base, "--jobs", tmp_path, "--out", tmp_path / "out", "--on", "spark")
    assert done.returncode == 2
    assert "local, ray or ray://HOST:PORT" in done.stderr
    done = control("summarize", run(tiny.bundle.repository, tiny.store).path)
    assert done.returncode == 2
    assert "give --jobs and --out" in done.stderr
    where = ("--jobs", tmp_path, "--out", tmp_path / "out", "--dry-run")
    done = control("summarize", run(tiny.bundle.repository, tiny.store).path, *where)
    assert done.returncode == 3
    assert "names no Parquet file" in done.stderr
    (tmp_path / "jobs.jsonl").write_text("{}")
    done = control(*base, "--jobs", tmp_path / "jobs.jsonl", "--out", tmp_path / "out")
    assert done.returncode == 3
    assert "write it as Parquet" in done.stderr
    parquet.write_table(pa.table({"job_id": ["a"], "description": ["x"]}), tmp_path / "in.parquet")
    done = control("summarize", run(tiny.bundle.repository, tiny.store).path, *where)
    assert done.stdout.startswith(f"would summarise {tmp_path} into")
    assert not (tmp_path / "out").exists()


@pytest.mark.triton
def test_scores_offline_are_the_servers(tiny: Any, tiny_server: Any, tmp_path: Path) -> None:
    names = [f"job-{number}" for number in range(7)]
    asked = [
        {"query": "nurse shift", "job_ids": [*names, "gone"]},
        {"query": "welder", "job_ids": None},
        *({"query": f"cook {number}", "job_ids": names[:1]} for number in range(21)),
    ]
    parquet.write_table(pa.Table.from_pylist(asked), tmp_path / "queries.parquet")
    words = command(tiny, tmp_path, tmp_path / "out")
    words = [words[0], "score-catalogue", *words[2:5], "--json"]
    words += ["--queries", str(tmp_path / "queries.parquet"), "--out", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["rows"], told["parts"], told["done"]) == (23, 2, 23)
    rows = parquet.read_table(told["out"]).to_pylist()
    assert len(rows) == 8 + 40 + 21
    assert [row["job_id"] for row in rows if row["score"] is None] == ["gone"]
    found = {(row["query"], row["job_id"]): row["score"] for row in rows}
    with RankClient(tiny_server.url) as client:
        served = client.score("nurse shift", names)
        everything = client.score("welder", sorted({row["job_id"] for row in rows} - {"gone"}))
    for query, items in (("nurse shift", served), ("welder", everything)):
        for item in items:
            assert found[query, item.job_id] == pytest.approx(item.score, abs=1e-4)
    again = score_catalogue(
        tiny.bundle, tiny.store, str(tmp_path / "queries.parquet"), str(tmp_path / "out")
    )
    assert (again["found"], again["done"]) == (2, 0)
    bad = pa.Table.from_pylist([{"query": "", "job_ids": names}])
    parquet.write_table(bad, tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"bad\.parquet: row 1.*query"):
        score_catalogue(tiny.bundle, tiny.store, str(tmp_path / "bad.parquet"), str(tmp_path))

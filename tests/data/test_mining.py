"""Mistakes of a ranker: what is retrieved, unjudged, liked, and clearly below the right one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from slmrank.data.bm25 import Bm25
from slmrank.data.mining import Mining, minable, mistakes, unjudged
from slmrank.data.records import SPLITS, Job, LabelledSet, Pair, Split

from tests.conftest import Control, TinyBundle

JOBS = {
    f"j{n}": Job(job_id=f"j{n}", title=f"nurse {n}" if n < 6 else "welder", description="care")
    for n in range(9)
}


def judged(**grades: int) -> list[Pair]:
    return [
        Pair(query="nurse", job_id=job_id, grade=grade, split="train", kind="title", group="g")
        for job_id, grade in grades.items()
    ]


def test_only_retrieved_and_unjudged_jobs_are_looked_at() -> None:
    found = unjudged("nurse", {"j0", "j1"}, Bm25(JOBS), Mining(retrieve=3))
    assert len(found) == 3
    assert set(found) < {"j2", "j3", "j4", "j5"}


def test_jobs_that_only_held_back_queries_name_are_no_mistakes() -> None:
    pairs: dict[Split, list[Pair]] = {split: [] for split in SPLITS}
    pairs["train"] = judged(j0=4)
    pairs["test"] = [one.model_copy(update={"query": "nurse 2"}) for one in judged(j0=4, j2=4)]
    may = minable(LabelledSet(jobs=JOBS, pairs=pairs))
    assert may == set(JOBS) - {"j2"}
    found = unjudged("nurse", {"j0"}, Bm25(JOBS, may), Mining(retrieve=9))
    assert sorted(found) == ["j1", "j3", "j4", "j5", "j6", "j7", "j8"][: len(found)]


def test_mistakes_are_liked_but_below_the_right_one() -> None:
    p_of = {"j0": 0.8, "j1": 0.1, "j2": 0.75, "j3": 0.6, "j4": 0.3, "j5": 0.05}
    found = mistakes(judged(j0=4, j1=0), p_of, ["j2", "j3", "j4", "j5"], Mining())
    assert [(one.job_id, one.grade) for one in found] == [("j3", 0), ("j4", 0)]
    assert all(
        (one.query, one.split, one.kind, one.group) == ("nurse", "train", "title", "g")
        for one in found
    )
    assert [one.job_id for one in mistakes(judged(j0=4), p_of, ["j4", "j3"], Mining(keep=1))] == [
        "j3"
    ]
    assert mistakes(judged(j0=2, j1=0), p_of, ["j3"], Mining()) == []


@pytest.mark.long
@pytest.mark.slow
def test_the_verb_writes_data_that_trains(
    tiny: TinyBundle, tiny_repository: Path, tmp_path: Path, control: Control
) -> None:
    where = ["--artifacts", tiny.artifacts]
    easy = ["--least-p", "0", "--margin", "0", "--keep", "2"]
    done = control("mine", tiny.spec, *where, "--out", tmp_path / "mined", *easy, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["mistakes"] > 0
    given = map(json.loads, tiny.jobs.with_name("pairs.jsonl").read_text().splitlines())
    before = {(one["query"], one["job_id"]) for one in given}  # one that is given again counts once
    lines = Path(answer["pairs"]).read_text().splitlines()
    assert len(lines) == len(before) + answer["mistakes"]
    new = [json.loads(line) for line in lines[-answer["mistakes"] :]]
    assert {(one["grade"], one["split"]) for one in new} == {(0, "train")}
    own = tmp_path / "own"
    own.mkdir()
    (own / "jobs.jsonl").write_text("somebody's\n")
    done = control("mine", tiny.spec, *where, "--out", own)
    assert (done.returncode, (own / "jobs.jsonl").read_text()) == (3, "somebody's\n")
    again = control("mine", tiny.spec, *where, "--out", tmp_path / "mined")
    assert again.returncode == 3
    assert "holds pairs.jsonl already" in again.stderr
    changes = [f"data.{name}={answer[name]}" for name in ("jobs", "pairs")]
    sets = [word for change in changes for word in ("--set", change)]
    done = control("data", tiny.spec, *where, *sets, "--json")
    assert done.returncode == 0, done.stderr

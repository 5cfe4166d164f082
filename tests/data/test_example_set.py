"""The example set, built from a small occupation table written here."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from slmrank.data.example_set import build_example_set
from slmrank.data.labelled import read_labelled, write_labelled
from slmrank.data.onet import COLUMNS, Occupation, Occupations, Task, read_occupations
from slmrank.data.records import LabelledSet
from slmrank.data.relevance import grade_of, overlap, relation
from slmrank.data.wording import lower_first, person_title, singular
from slmrank.errors import DataError
from slmrank.spec.data import CandidateSpec, OnetData

SPEC = OnetData(
    source="onet",
    seed=5,
    postings_per_occupation=2,
    queries_per_occupation=3,
    candidates=CandidateSpec(train=6, dev=8, test=8),
    test_share=0.25,
    dev_share=0.1,
)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Occupations:
    """40 occupations in 4 SOC branches; each shares activities with its neighbours."""
    path = tmp_path_factory.mktemp("onet") / "Task_DWA.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow([*COLUMNS, "Date"])
        for number in range(40):
            code = f"{11 + number // 10}-{number % 10:02d}11.00"
            for task in range(10):
                activity = number * 7 + task
                rows.writerow(
                    [
                        code,
                        f"Trade{number} Workers",
                        f"{number}.{task}",
                        f"Perform duty {activity} of trade {number}.",
                        f"A{activity}",
                        f"Perform duty {activity}.",
                        "07/2014",
                    ]
                )
    return read_occupations(path)


@pytest.fixture(scope="module")
def built(table: Occupations) -> LabelledSet:
    return build_example_set(table, SPEC)


def test_the_same_seed_gives_the_same_set(table: Occupations, built: LabelledSet) -> None:
    assert build_example_set(table, SPEC) == built


def test_no_occupation_and_no_query_is_in_two_splits(built: LabelledSet) -> None:
    seen: dict[str, str] = {}
    for split, pairs in built.pairs.items():
        for pair in pairs:
            occupation = pair.job_id.rsplit("-", 1)[0]
            assert seen.setdefault(f"job {occupation}", split) == split
            assert seen.setdefault(f"query {pair.query}", split) == split


def test_no_activities_are_asked_for_twice(table: Occupations, built: LabelledSet) -> None:
    """A fifth of the test queries were training queries in another sentence."""
    named = sorted({lower_first(one) for one in table.activity_titles.values()}, key=len)
    seen: dict[frozenset[str], str] = {}
    for pairs in built.pairs.values():
        for query in {pair.query for pair in pairs}:
            left, asked = query, set()
            for one in reversed(named):  # the longest first: one may stand inside another
                if one in left:
                    left = left.replace(one, "")
                    asked.add(one)
            assert asked
            assert seen.setdefault(frozenset(asked), query) == query


def test_every_query_has_an_exact_match_and_distinct_jobs(built: LabelledSet) -> None:
    for split, pairs in built.pairs.items():
        groups: dict[str, list[tuple[str, int]]] = {}
        for pair in pairs:
            groups.setdefault(pair.query, []).append((pair.job_id, pair.grade))
        for judged in groups.values():
            assert max(grade for _, grade in judged) == 4
            assert len({job for job, _ in judged}) == len(judged) <= getattr(SPEC.candidates, split)


def test_the_task_behind_a_queried_activity_is_not_in_the_posting(built: LabelledSet) -> None:
    asked = [p for pairs in built.pairs.values() for p in pairs if "perform duty" in p.query]
    exact = [pair for pair in asked if pair.grade == 4]
    assert exact
    for pair in exact:
        duty = pair.query.split("duty ")[1].split()[0].rstrip(",")
        trade = int(pair.job_id.split("-")[0]) - 11
        text = built.jobs[pair.job_id].description
        number = trade * 10 + int(pair.job_id.split("-")[1][:2])
        assert f"duty {duty} of trade {number}." not in text


def test_it_survives_the_disk(built: LabelledSet, tmp_path: Path) -> None:
    figures = write_labelled(tmp_path, built)
    assert read_labelled(tmp_path) == built
    assert figures["jobs"] == 80


def test_relations_follow_code_and_work(table: Occupations) -> None:
    first, second, far = (table.occupations[index] for index in (0, 1, 35))
    assert relation(first, first, table.rarity) == 4
    assert relation(first, second, table.rarity) >= 1
    assert relation(first, far, table.rarity) == 0
    assert 0 < overlap(first.activities, second.activities, table.rarity) < 1


@pytest.mark.parametrize(
    ("shared", "steps"), [(35, 3), (34, 2), (15, 2), (14, 1), (5, 1), (4, 0), (0, 0)]
)
def test_a_share_of_the_work_relates_across_branches(shared: int, steps: int) -> None:
    """Of a hundred activities that two occupations have between them, equally rare."""
    names = [f"A{number}" for number in range(100)]
    rarity = dict.fromkeys(names, 1.0)
    a, b = (
        Occupation(code=code, title=code, tasks=(Task(text="Work.", activities=tuple(own)),))
        for code, own in (("11-1011.00", names[:60]), ("25-2031.00", names[60 - shared :]))
    )
    assert overlap(a.activities, b.activities, rarity) == pytest.approx(shared / 100)
    assert relation(a, b, rarity) == relation(b, a, rarity) == steps


@pytest.mark.parametrize(
    ("related", "done", "asked", "grade"),
    [(4, 0, 1, 4), (0, 1, 1, 3), (0, 1, 2, 2), (2, 0, 1, 1), (0, 0, 1, 0), (3, 0, 0, 3)],
)
def test_grades_ask_for_the_activities(related: int, done: int, asked: int, grade: int) -> None:
    wanted = frozenset(f"A{index}" for index in range(asked))
    offered = frozenset(f"A{index}" for index in range(done))
    assert grade_of(wanted, related, offered) == grade


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Special Education Teachers, Secondary School", "Secondary School Special Education Teacher"),
        ("Dispatchers, Except Police, Fire, and Ambulance", "Dispatcher"),
        ("First-Line Supervisors of Correctional Officers", "First-Line Supervisor of Correctional Officers"),
        ("Couriers and Messengers", "Courier"),
        ("Atmospheric, Earth, Marine, and Space Sciences Teachers, Postsecondary", "Space Sciences Teacher"),
        ("Inspectors, Testers, Sorters, Samplers, and Weighers", "Inspector"),
        ("Software Developers", "Software Developer"),
    ],
)  # fmt: skip
def test_titles_as_people_write_them(title: str, expected: str) -> None:
    assert person_title(title) == expected


def test_singular() -> None:
    assert [singular(word) for word in ("Nannies", "Coaches", "Firemen", "Sales", "Boss")] == [
        "Nanny", "Coach", "Fireman", "Sales", "Boss",
    ]  # fmt: skip


def test_a_table_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(f"{','.join(COLUMNS)}\n1,Caf\u00e9,2,x,3,y\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"cannot read .*t\.csv"):
        read_occupations(path)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("Title,Task\nx,y\n")
    with pytest.raises(DataError, match="O\\*NET-SOC Code"):
        read_occupations(path)

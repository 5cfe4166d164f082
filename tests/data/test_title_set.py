"""A release of the O*NET database, written here, and the set of titles that is made of it."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from slmrank.data.bm25 import Bm25
from slmrank.data.leakage import words_in_titles
from slmrank.data.onet_database import read_database, read_held_back
from slmrank.data.records import Job, LabelledSet, Pair
from slmrank.data.title_set import build_title_set
from slmrank.data.words import words_of
from slmrank.errors import DataError
from slmrank.spec.data import CandidateSpec, OnetDatabaseData

from tests.conftest import Control

COUNT = 24


def code(number: int) -> str:
    return f"{11 + number % 4}-{number:02d}11.00"


def tables() -> dict[str, list[list[str]]]:
    """24 occupations, each related to its neighbours; 'Helper' is a title of all of them."""
    made: dict[str, list[list[str]]] = {
        "Occupation Data": [["O*NET-SOC Code", "Title", "Description"]],
        "Alternate Titles": [["O*NET-SOC Code", "Alternate Title", "Short Title", "Source(s)"]],
        "Sample of Reported Titles": [["O*NET-SOC Code", "Reported Job Title"]],
        "Task Statements": [["O*NET-SOC Code", "Task ID", "Task"]],
        "Technology Skills": [["O*NET-SOC Code", "Example"]],
        "Related Occupations": [
            ["O*NET-SOC Code", "Related O*NET-SOC Code", "Relatedness Tier", "Index"]
        ],
    }
    tiers = ["Primary-Short", "Primary-Long", "Supplemental"]
    for n in range(COUNT):
        made["Occupation Data"].append([code(n), f"Trade{n} Workers", f"Do trade {n}."])
        for k in range(6):
            made["Alternate Titles"].append([code(n), f"Craft{n} Kind{k}", f"CK{n}x{k}", "08"])
            made["Task Statements"].append([code(n), f"{n}{k}", f"Do part{k} of work{n} well."])
        made["Alternate Titles"].append([code(n), "Helper", "n/a", "08"])
        made["Sample of Reported Titles"].append([code(n), f"Reported{n} Person"])
        made["Technology Skills"].append([code(n), f'Tool{n} "Pro'])
        for step, tier in enumerate(tiers, start=1):
            made["Related Occupations"].append([code(n), code((n + step) % COUNT), tier, "1"])
    return made


@pytest.fixture(params=["downloaded", "kept"])
def folder(request: Any, tmp_path: Path) -> Path:
    """The release under the names of its download, and gzipped under others."""
    target = tmp_path / "release"
    target.mkdir()
    for name, rows in tables().items():
        text = "".join("\t".join(row) + "\n" for row in rows)
        if request.param == "downloaded":
            (target / f"{name}.txt").write_text(text)
        else:
            kept = target / f"{name.lower().replace(' ', '_')}.txt.gz"
            kept.write_bytes(gzip.compress(text.encode()))
    return target


def built(folder: Path, **changes: Any) -> LabelledSet:
    spec = OnetDatabaseData(
        source="onet-database",
        folder=folder,
        candidates=CandidateSpec(train=8, dev=8, test=8),
        **changes,
    )
    return build_title_set(read_database(folder), None, spec)


def test_titles_of_several_occupations_are_left_out(folder: Path) -> None:
    occupations = read_database(folder)
    assert len(occupations) == COUNT
    first = occupations[0]
    assert "Helper" not in first.titles
    assert len(first.titles) == 7
    assert first.technologies == ['Tool0 "Pro']
    assert first.related == {code(1): 3, code(2): 2, code(3): 1}


def test_queries_are_other_titles_than_the_postings(folder: Path) -> None:
    made = built(folder)
    assert made == built(folder), "another set from the same seed"
    assert made != built(folder, seed=1)
    for split, pairs in made.pairs.items():
        assert pairs, split
        by_query: dict[str, list[Any]] = {}
        for pair in pairs:
            by_query.setdefault(pair.query, []).append(pair)
        for query, judged in by_query.items():
            assert [one.grade for one in judged].count(4) == 1
            assert len({one.job_id for one in judged}) == len(judged) <= 8
            exact = next(made.jobs[one.job_id] for one in judged if one.grade == 4)
            assert set(words_of(query)) - set(words_of(exact.title))
    occupations = {
        split: {pair.job_id.rsplit("-", 1)[0] for pair in pairs}
        for split, pairs in made.pairs.items()
    }
    assert not occupations["train"] & occupations["test"]
    assert not occupations["train"] & occupations["dev"]


def test_grades_fall_with_the_tier_of_the_relation(folder: Path) -> None:
    number = {code(n): n for n in range(COUNT)}
    met = set()
    for pairs in built(folder).pairs.values():
        asked = {pair.query: number[pair.job_id[:-2]] for pair in pairs if pair.grade == 4}
        for pair in pairs:
            steps = (number[pair.job_id[:-2]] - asked[pair.query]) % COUNT
            assert pair.grade == max(4 - steps, 0)
            met.add(pair.grade)
    assert met == {0, 1, 2, 3, 4}


def test_negatives_hold_what_bm25_retrieves(folder: Path) -> None:
    made = built(folder)
    codes = {pair.job_id[:-2] for pair in made.pairs["train"] if pair.grade == 4}
    index = Bm25({job_id: job for job_id, job in made.jobs.items() if job_id[:-2] in codes})
    matched = 0
    for query in sorted({pair.query for pair in made.pairs["train"] if "kind" in pair.query}):
        judged = {pair.job_id: pair.grade for pair in made.pairs["train"] if pair.query == query}
        exact = next(job_id for job_id, grade in judged.items() if grade == 4)
        best = [one for one in index.top(query, 24) if one[:-2] != exact[:-2]][:4]
        assert set(best) <= set(judged)
        matched += len(best)
    assert matched > 20


def test_the_report_tells_what_a_string_matcher_could_use(folder: Path) -> None:
    shares = words_in_titles(built(folder))
    assert set(shares) == {"train", "dev", "test"}
    assert all(0 <= share < 0.9 for share in shares.values())


def test_only_the_titles_of_exact_jobs_count_for_a_string_matcher() -> None:
    jobs = {
        name: Job(job_id=name, title=title, description="Cares.")
        for name, title in (("exact", "Nurse"), ("other", "Night nurse"))
    }
    pairs = [
        Pair(query="night nurse", job_id=name, grade=grade, split="train")
        for name, grade in (("exact", 4), ("other", 0))
    ]
    labelled = LabelledSet(jobs=jobs, pairs={"train": pairs, "dev": [], "test": []})
    assert words_in_titles(labelled) == {"train": 0.5, "dev": 0, "test": 0}


def test_held_back_occupations_are_the_test_split(
    folder: Path, tmp_path: Path, control: Control
) -> None:
    (tmp_path / "held.txt").write_text(f"{code(3)}\n{code(7)}  # not for training\n\n")
    data = {"source": "onet-database", "folder": "release", "held_back": "held.txt"}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"name": "titles", "data": data}))
    done = control("data", tmp_path / "s.yaml", "--artifacts", tmp_path / "a", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert "CC BY 4.0" in answer["figures"]["attribution"]
    pairs = (Path(answer["path"]) / "pairs.jsonl").read_text().splitlines()
    tested = {
        one["job_id"].rsplit("-", 1)[0] for one in map(json.loads, pairs) if one["split"] == "test"
    }
    assert tested == {code(3), code(7)}


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names no occupation"):
        (tmp_path / "held.txt").write_text("99-9999.00\n")
        read_held_back(tmp_path / "held.txt", read_database(folder))
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    next(one for one in broken.iterdir() if "lternate" in one.name).unlink()
    with pytest.raises(DataError, match="has no table 'Alternate Titles'"):
        read_database(broken)
    (broken / "Alternate Titles.txt").write_text("a\tb\n")
    with pytest.raises(DataError, match="lacks the columns O\\*NET-SOC Code, Alternate Title"):
        read_database(broken)
    (broken / "Alternate Titles.txt").unlink()
    (broken / "Task Statements.txt").write_text("O*NET-SOC Code\tTask\tDate\n11-0011.00\tDo pa")
    with pytest.raises(DataError, match=r"Task Statements\.txt:2 has too few columns"):
        read_database(broken)


def test_the_names_of_later_releases_are_known(tmp_path: Path) -> None:
    """As of 30.3, by its list of changed files; with a byte-order mark, as some tools save it."""
    renamed = {
        "Alternate Titles": ("Job Titles", "Alternate Title", "Job Title"),
        "Technology Skills": ("Software Skills", "Example", "Workplace Example"),
    }
    for later in (False, True):
        folder = tmp_path / str(later)
        folder.mkdir()
        for name, rows in tables().items():
            file, old, new = renamed[name] if later and name in renamed else (name, "", "")
            head = [new if one == old else one for one in rows[0]]
            text = "".join("\t".join(row) + "\n" for row in [head, *rows[1:]])
            (folder / f"{file}.txt").write_text(text, encoding="utf-8-sig" if later else "utf-8")
    assert read_database(tmp_path / "True") == read_database(tmp_path / "False")

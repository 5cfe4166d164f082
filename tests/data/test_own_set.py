"""Own jobs and pairs: targets, groups that no split parts, and Parquet."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
import yaml
from pyarrow import parquet
from pydantic import ValidationError
from slmrank.data.labelled import read_labelled
from slmrank.data.own_set import write_own_set
from slmrank.data.parquet import read_parquet
from slmrank.data.parts import Place
from slmrank.data.records import Job, LabelledSet, Pair, read_jsonl
from slmrank.errors import DataError
from slmrank.pipeline.data_step import data_step
from slmrank.pipeline.score_catalogue import ListedQuery
from slmrank.spec.data import OwnData

from tests.conftest import Control

JOBS = [{"job_id": f"j{n}", "title": f"Job {n}", "description": f"Text {n}."} for n in range(12)]


def read_own_set(spec: OwnData, target: Path) -> LabelledSet:
    """What the spec's files become: written, and read again."""
    target.mkdir(exist_ok=True)
    write_own_set(spec, target, lambda *_: None)
    return read_labelled(target)


def pairs(queries: int = 60, **more: Any) -> list[dict[str, Any]]:
    return [
        {"query": f"query {n}", "job_id": f"j{(n + step) % 12}", "grade": 4 * (step == 0), **more}
        for n in range(queries)
        for step in range(2)
    ]


def jsonl(folder: Path, records: list[dict[str, Any]], jobs: Any = JOBS) -> OwnData:
    for name, rows in (("jobs", jobs), ("pairs", records)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return OwnData(
        source="jsonl", jobs=folder / "jobs.jsonl", pairs=folder / "pairs.jsonl", dev_share=0.2
    )


def groups_by_split(labelled: LabelledSet) -> dict[str, set[str | None]]:
    return {split: {pair.group for pair in found} for split, found in labelled.pairs.items()}


def test_no_group_stands_in_two_splits(tmp_path: Path) -> None:
    given = [one | {"group": f"g{int(one['query'].split()[1]) % 20}"} for one in pairs()]
    made = read_own_set(jsonl(tmp_path, given), tmp_path / "made")
    found = groups_by_split(made)
    assert not found["train"] & found["test"]
    assert not found["train"] & found["dev"]
    assert all(found.values())
    again = read_own_set(jsonl(tmp_path, given[::-1]), tmp_path / "made")
    assert groups_by_split(again) == found, "the order of the records decides nothing"


def test_as_many_queries_are_dealt_to_a_split_as_its_share_says(tmp_path: Path) -> None:
    spec = jsonl(tmp_path, pairs(2000)).model_copy(update={"test_share": 0.3})
    made = read_own_set(spec, tmp_path / "made")
    for split, share in (("test", 0.3), ("dev", 0.2), ("train", 0.5)):
        queries = {pair.query for pair in made.pairs[split]}
        assert len(queries) / 2000 == pytest.approx(share, abs=0.04), split


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "sizes", [[60, *[2] * 20], [10] * 6, [25] * 8], ids=["one", "six", "eight"]
)
def test_large_groups_are_not_left_to_chance(tmp_path: Path, seed: int, sizes: list[int]) -> None:
    """One of 60 % of the queries was all that was tested; of six none were."""
    owner = [group for group, size in enumerate(sizes) for _ in range(size)]
    given = [
        one | {"group": f"g{owner[int(one['query'].split()[1])]}"} for one in pairs(len(owner))
    ]
    spec = jsonl(tmp_path, given).model_copy(update={"seed": seed})
    made = read_own_set(spec, tmp_path / "made")
    share = {
        split: len({pair.query for pair in of}) / len(owner) for split, of in made.pairs.items()
    }
    largest = max(sizes) / len(owner)
    assert 0 < share["test"] <= 0.2 + largest / 2
    assert 0 < share["dev"] <= 0.2 + largest / 2
    assert share["train"] > 0.3


def test_queries_that_share_a_group_over_others_stay_together(tmp_path: Path) -> None:
    """Query 1 has pairs in groups 1 and 2, query 2 in 2 and 3, and so on: one chain."""
    given = []
    for number, one in enumerate(pairs(40)):
        given.append(one | {"group": f"g{number // 2 + number % 2}"})
    with pytest.raises(DataError, match="100% of the queries hang together by the groups"):
        read_own_set(jsonl(tmp_path, given), tmp_path / "made")


def test_a_named_split_that_parts_a_group_is_refused(tmp_path: Path) -> None:
    given = pairs(2, group="acme")
    for one in given:
        one["split"] = "train" if one["query"] == "query 0" else "test"
    with pytest.raises(DataError, match="group 'acme' is in split 'test' and 'train'"):
        read_own_set(jsonl(tmp_path, given), tmp_path / "made")


def test_a_target_gives_the_nearest_grade_and_is_kept(tmp_path: Path) -> None:
    given = pairs(20)
    del given[0]["grade"]
    given[0]["target"] = 0.62
    labelled = read_own_set(jsonl(tmp_path, given), tmp_path / "made")
    one = next(p for found in labelled.pairs.values() for p in found if p.target is not None)
    assert (one.grade, one.wanted) == (2, 0.62)
    other = next(p for found in labelled.pairs.values() for p in found if p.grade == 4)
    assert other.wanted == 1.0
    given[1]["target"] = 1.5
    with pytest.raises(DataError, match=r"pairs\.jsonl:2: target: .*less than or equal to 1"):
        read_own_set(jsonl(tmp_path, given), tmp_path / "made")
    del given[0]["target"]
    with pytest.raises(DataError, match=r"pairs\.jsonl:1: grade: Field required"):
        read_own_set(jsonl(tmp_path, given), tmp_path / "made")


def as_parquet(folder: Path, given: list[dict[str, Any]], parts: int = 3) -> OwnData:
    (folder / "pairs").mkdir()
    parquet.write_table(arrow.Table.from_pylist(JOBS), folder / "jobs.parquet")
    for part in range(parts):
        rows = [one | {"clicks": 7} for one in given[part::parts]]
        parquet.write_table(
            arrow.Table.from_pylist(rows), folder / "pairs" / f"part-{part}.parquet"
        )
    return OwnData(
        source="parquet", jobs=folder / "jobs.parquet", pairs=folder / "pairs", dev_share=0.2
    )


def test_parquet_reads_like_jsonl(tmp_path: Path) -> None:
    given = [one | {"kind": "title"} for one in pairs(30)]
    given[3]["target"] = None
    files = as_parquet(tmp_path, given)
    globbed = files.model_copy(update={"pairs": tmp_path / "pairs" / "part-*.parquet"})
    expected = read_own_set(jsonl(tmp_path, given), tmp_path / "made")
    for spec in (files, globbed):
        found = read_own_set(spec, tmp_path / "made")
        assert found.jobs == expected.jobs
        for split, members in expected.pairs.items():
            key = sorted((p.query, p.job_id, p.grade, p.kind) for p in members)
            assert sorted((p.query, p.job_id, p.grade, p.kind) for p in found.pairs[split]) == key


def test_a_broken_parquet_row_is_named(tmp_path: Path) -> None:
    given = pairs(10)
    given[4]["grade"] = 9
    files = as_parquet(tmp_path, given, parts=1)
    with pytest.raises(DataError, match=r"part-0\.parquet: row 5: grade: Input should be less"):
        read_own_set(files, tmp_path / "made")
    arrow_jobs = arrow.table({"job_id": [b"j0", b"j1"], "title": ["a", "b"]})
    parquet.write_table(arrow_jobs, tmp_path / "bytes.parquet")
    with pytest.raises(DataError, match=r"bytes\.parquet: row 1: Object of type bytes"):
        read_own_set(
            files.model_copy(update={"jobs": tmp_path / "bytes.parquet"}), tmp_path / "made"
        )
    missing = files.model_copy(update={"pairs": tmp_path / "no-*.parquet"})
    with pytest.raises(DataError, match="names no Parquet file"):
        read_own_set(missing, tmp_path / "made")
    (tmp_path / "pairs" / "part-0.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="cannot read"):
        read_own_set(files, tmp_path / "made")


def test_the_verb_takes_parquet(tmp_path: Path, control: Control) -> None:
    as_parquet(tmp_path, pairs(30))
    data = {"source": "parquet", "jobs": "jobs.parquet", "pairs": "pairs/*.parquet"}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"name": "own", "data": data}))
    done = control("data", tmp_path / "s.yaml", "--artifacts", tmp_path / "a", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["figures"]["jobs"] == 12


def test_a_job_id_twice_and_no_job_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'j0' appears twice"):
        read_own_set(jsonl(tmp_path, pairs(), JOBS[:1] * 2), tmp_path / "made")
    with pytest.raises(DataError, match="holds no jobs"):
        read_own_set(jsonl(tmp_path, pairs(), []), tmp_path / "made")


def test_a_job_without_text_is_refused(tmp_path: Path) -> None:
    """A server scores none of it; it became a known answer that nobody gave."""
    blank = {"job_id": "blank", "company": " ", "description": " \n"}
    with pytest.raises(DataError, match="job 13: 'blank' has no text"):
        read_own_set(jsonl(tmp_path, pairs(), [*JOBS, blank]), tmp_path / "made")


def test_grades_are_compared_where_both_have_a_target(tmp_path: Path) -> None:
    apart = [{"query": "zz", "job_id": "j1", "grade": grade, "target": 0.5} for grade in (4, 0)]
    with pytest.raises(DataError, match="judges job 'j1' in two ways"):
        read_own_set(jsonl(tmp_path, [*pairs(), *apart]), tmp_path / "made")


@pytest.mark.parametrize(
    ("judged", "told"),
    [
        ({"grade": True}, "numbers, not true or false"),
        ({"target": 1.5}, "target 1.5 is not between 0 and 1"),
        ({"target": float("nan")}, "target nan is not between"),
    ],
)
def test_a_judgment_that_is_none_is_named(
    tmp_path: Path, judged: dict[str, Any], told: str
) -> None:
    given = [{"query": "q", "job_id": "j1", **judged}]
    with pytest.raises(DataError, match=told):
        read_own_set(jsonl(tmp_path, given), tmp_path / "made")


def test_what_tables_write_for_nothing_is_nothing(tmp_path: Path) -> None:
    """CSV exports have "" for no group: all such queries were dealt as one. Frames have NaN."""
    given = [{**one, "group": " ", "kind": "", "target": float("nan")} for one in pairs(200)]
    made = read_own_set(jsonl(tmp_path, given), tmp_path / "made")
    expected = read_own_set(jsonl(tmp_path, pairs(200)), tmp_path / "made")
    assert made.pairs == expected.pairs
    given = [{"query": "q", "job_id": "j1", "grade": float("nan"), "target": "0.5"}]
    (tmp_path / "pairs.jsonl").write_text(json.dumps(given[0]))
    [one] = read_jsonl(tmp_path / "pairs.jsonl", Pair)
    assert (one.grade, one.target) == (2, 0.5)
    given[0]["target"] = "half"
    (tmp_path / "pairs.jsonl").write_text(json.dumps(given[0]))
    with pytest.raises(DataError, match="target 'half' is no number"):
        list(read_jsonl(tmp_path / "pairs.jsonl", Pair))


def test_a_pair_without_a_split_goes_where_its_query_is(tmp_path: Path) -> None:
    given = pairs(60)
    for one in given[:80:2]:
        one["split"] = "test"
    for one in given[100:]:
        one["group"] = "acme"
    given[100]["split"] = "dev"
    made = read_own_set(jsonl(tmp_path, given), tmp_path / "made")
    assert {f"query {n}" for n in range(40)} <= {pair.query for pair in made.pairs["test"]}
    assert {pair.query for pair in made.pairs["dev"]} >= {f"query {n}" for n in range(50, 60)}


def test_whole_numbers_and_any_glob_are_taken_of_parquet(tmp_path: Path) -> None:
    spec = as_parquet(tmp_path, pairs())
    expected = read_own_set(spec, tmp_path / "made")
    parts = spec.model_copy(update={"pairs": spec.pairs / "part-[0-9].parquet"})
    assert read_own_set(parts, tmp_path / "made").pairs == expected.pairs
    numbered = [{**job, "job_id": int(job["job_id"][1:])} for job in JOBS]
    parquet.write_table(arrow.Table.from_pylist(numbered), tmp_path / "numbered.parquet")
    found = list(read_parquet(tmp_path / "numbered.parquet", Job))
    assert [job.job_id for job in found] == [job["job_id"][1:] for job in JOBS]


def test_linked_folders_are_read(tmp_path: Path) -> None:
    spec = as_parquet(tmp_path, pairs())
    expected = read_own_set(spec, tmp_path / "made")
    (tmp_path / "other").mkdir()
    some = next(spec.pairs.glob("*.parquet"))
    some.rename(tmp_path / "other" / some.name)
    (spec.pairs / "more").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "round").symlink_to(spec.pairs)
    assert len(Place(str(spec.pairs)).files()) >= 3
    found = read_own_set(spec, tmp_path / "made")
    assert {split: len(of) for split, of in found.pairs.items()} == {
        split: len(of) for split, of in expected.pairs.items()
    }


def test_folders_say_what_they_say_beside_links_to_them(tmp_path: Path) -> None:
    """Test pairs were dealt anew where a link to their partition was met first."""
    for split in ("train", "test"):
        folder = tmp_path / "t" / f"split={split}"
        folder.mkdir(parents=True)
        rows = [{"query": f"q {split}", "job_id": "j1", "grade": 1}]
        parquet.write_table(arrow.Table.from_pylist(rows), folder / "a.parquet")
    for name in ("a-link", "z-link"):
        (tmp_path / "t" / name).symlink_to("split=test")
    found = [(pair.query, pair.split) for pair in read_parquet(tmp_path / "t", Pair)]
    assert sorted(found) == [("q test", "test"), ("q train", "train")]
    # As they are swapped at once: what is hidden is read by the link to it.
    (tmp_path / "all").mkdir()
    (tmp_path / "t").rename(tmp_path / "all" / ".v1")
    (tmp_path / "all" / "current").symlink_to(".v1")
    assert len(list(read_parquet(tmp_path / "all", Pair))) == 2
    ids = arrow.Table.from_pylist([{"query": "q", "job_ids": [1, 2]}])
    parquet.write_table(ids, tmp_path / "[w].parquet")
    [listed] = read_parquet(tmp_path / "[w].parquet", ListedQuery)
    assert listed.job_ids == ["1", "2"]


def test_a_query_with_the_name_of_a_group_is_not_of_it(tmp_path: Path) -> None:
    given = [
        {"query": "rn", "job_id": "j1", "grade": 4, "group": "nurse", "split": "test"},
        {"query": "nurse", "job_id": "j1", "grade": 4, "split": "train"},
        {"query": "rn night", "job_id": "j1", "grade": 4, "group": "nurse"},
    ]
    for order in (given, [given[1], given[0], given[2]]):
        made = read_own_set(jsonl(tmp_path, order), tmp_path / "made")
        assert {pair.query for pair in made.pairs["test"]} == {"rn", "rn night"}
    # An evaluation set that contradicts itself is not tested in part.
    given[0]["split"] = "train"
    spec = jsonl(tmp_path, given)
    with pytest.raises(DataError, match="group 'nurse' is in split"):
        write_own_set(spec, tmp_path / "made", lambda *_: None, only_tested=True)


def test_a_compressed_file_is_named(tmp_path: Path) -> None:
    spec = jsonl(tmp_path, pairs())
    spec.jobs.write_bytes(gzip.compress(spec.jobs.read_bytes()))
    with pytest.raises(DataError, match="compressed by gzip"):
        read_own_set(spec, tmp_path / "made")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    spec = jsonl(tmp_path, pairs())
    spec.jobs.write_bytes(codecs.BOM_UTF8 + spec.jobs.read_bytes())
    assert len(read_own_set(spec, tmp_path / "made").jobs) == 12


def test_what_a_writer_has_not_finished_is_not_read(tmp_path: Path) -> None:
    spec = as_parquet(tmp_path, pairs(30))
    expected = read_own_set(spec, tmp_path / "made")
    (tmp_path / "pairs" / "_temporary" / "0").mkdir(parents=True)
    some = next(spec.pairs.glob("*.parquet"))
    (tmp_path / "pairs" / "_temporary" / "0" / "x.parquet").write_bytes(b"half")
    (tmp_path / "pairs" / f".{some.name}").write_bytes(b"half")
    assert read_own_set(spec, tmp_path / "made").pairs == expected.pairs
    deep = spec.model_copy(update={"pairs": spec.pairs / "**" / "*.parquet"})
    assert read_own_set(deep, tmp_path / "made").pairs == expected.pairs
    assert len(Place(str(spec.pairs)).files()) == len(list(spec.pairs.glob("[!.]*.parquet")))


def test_partitions_and_tables_in_folders_are_read(tmp_path: Path) -> None:
    """A table that is partitioned by `split` had its pairs dealt anew, half of the test ones into
    training; and Spark's folders are named like files."""
    given = [{**one, "split": "test" if n % 4 < 2 else "train"} for n, one in enumerate(pairs())]
    spec = as_parquet(tmp_path, given)
    expected = read_own_set(spec, tmp_path / "made")
    table = arrow.Table.from_pylist(given)
    parquet.write_to_dataset(table, tmp_path / "by" / "pairs.parquet", partition_cols=["split"])
    for path in (tmp_path / "by", tmp_path / "by" / "*.parquet"):
        found = read_own_set(spec.model_copy(update={"pairs": path}), tmp_path / "made")
        assert {split: len(of) for split, of in found.pairs.items()} == {
            split: len(of) for split, of in expected.pairs.items()
        }


def test_what_folders_say_is_part_of_the_key(tmp_path: Path) -> None:
    """A folder that was renamed kept the labels of before."""
    spec = as_parquet(tmp_path, pairs())
    table = arrow.Table.from_pylist(pairs())
    plain = data_step(spec, "b").key
    parquet.write_to_dataset(table, tmp_path / "by", partition_cols=["grade"])
    by = spec.model_copy(update={"pairs": tmp_path / "by"})
    before = data_step(by, "b").key
    folder = next((tmp_path / "by").iterdir())
    folder.rename(folder.with_name("grade=3"))
    assert len({plain, before, data_step(by, "b").key}) == 3


def test_null_is_what_was_not_given(tmp_path: Path) -> None:
    jobs = [{**job, "company": None, "location": None} for job in JOBS]
    made = read_own_set(jsonl(tmp_path, pairs(), jobs), tmp_path / "made")
    assert {job.company for job in made.jobs.values()} == {""}


def test_spellings_of_a_query_stand_in_one_split(tmp_path: Path) -> None:
    """A prompt joins white space: two of them would be one prompt, trained on and tested."""
    spelled = [str.upper, str.title, lambda text: text.replace(" ", "  ") + " "]
    given = [{**one, "query": spell(one["query"])} for spell in spelled for one in pairs()]
    made = read_own_set(jsonl(tmp_path, given), tmp_path / "made")
    found = {
        split: {" ".join(pair.query.split()).lower() for pair in of}
        for split, of in made.pairs.items()
    }
    assert all(found.values())
    assert not found["train"] & (found["test"] | found["dev"])
    named = [
        {"query": query, "job_id": "j1", "grade": 1, "split": split}
        for query, split in (("a  b", "train"), ("a b ", "test"))
    ]
    with pytest.raises(DataError, match="in split 'test' and 'train'"):
        read_own_set(jsonl(tmp_path, named), tmp_path / "made")
    apart = [*pairs(), {"query": "query  1", "job_id": "j1", "grade": 0}]
    with pytest.raises(DataError, match="judges job 'j1' in two ways for query 'query 1'"):
        read_own_set(jsonl(tmp_path, apart), tmp_path / "made")


def test_a_job_is_judged_once_for_a_query(tmp_path: Path) -> None:
    given = pairs()
    given.insert(6, given[2])
    given += given[40:50]
    made = read_own_set(jsonl(tmp_path, given), tmp_path / "made")
    judged = [(pair.query, pair.job_id) for of in made.pairs.values() for pair in of]
    assert len(judged) == len(set(judged)) == 120
    figures = write_own_set(jsonl(tmp_path, given), tmp_path / "made", lambda *_: None)
    assert figures["repeated"] == 11
    given.insert(7, {**given[2], "grade": 1})
    with pytest.raises(
        DataError, match=r"pairs\.jsonl judges job 'j1' in two ways for query 'query 1'"
    ):
        read_own_set(jsonl(tmp_path, given), tmp_path / "made")


def test_a_pair_must_name_a_known_job(tmp_path: Path) -> None:
    given = [{"query": "q", "job_id": "b", "grade": 1}]
    with pytest.raises(DataError, match="pair 1 names job 'b', which"):
        read_own_set(jsonl(tmp_path, given), tmp_path / "made")


def test_what_is_read_is_a_mapping_and_sequences(tmp_path: Path) -> None:
    """Lazy, and otherwise as if everything were in memory."""
    given = [one | {"kind": "title", "target": 0.3} for one in pairs(20)]
    made = read_own_set(jsonl(tmp_path, given), tmp_path / "made")
    assert list(made.jobs) == [job["job_id"] for job in JOBS]
    assert [job.title for job in made.jobs.values()] == [job["title"] for job in JOBS]
    assert made.jobs["j7"].description == "Text 7."
    assert "j99" not in made.jobs
    with pytest.raises(KeyError):
        made.jobs["j99"]
    train = made.pairs["train"]
    assert train[-1] == train[len(train) - 1] == list(train)[-1]
    assert train[1:3] == list(train)[1:3]
    assert all(pair.target == 0.3 and pair.split == "train" for pair in train)
    with pytest.raises(IndexError):
        train[len(train)]


def test_text_that_is_none_is_named(tmp_path: Path) -> None:
    spec = jsonl(tmp_path, pairs())
    for broken in ("[" * 100_000, '{"query": ' + "9" * 5000 + "}"):
        spec.pairs.write_text(broken + "\n")
        with pytest.raises(DataError, match="pairs.jsonl:1: not JSON"):
            read_own_set(spec, tmp_path / "made")
    given = as_parquet(tmp_path, pairs())
    column = arrow.Array.from_buffers(arrow.string(), 1, arrow.array([b"a\xff"]).buffers())
    parquet.write_table(
        arrow.table({"job_id": column, "title": ["t"]}), tmp_path / "broken.parquet"
    )
    with pytest.raises(DataError, match=r"broken.parquet"):
        read_own_set(given.model_copy(update={"jobs": tmp_path / "broken.parquet"}), tmp_path / "m")


def test_shares_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(ValidationError, match="leave nothing to train on"):
        OwnData(source="jsonl", jobs=Path("j"), pairs=Path("p"), test_share=0.7, dev_share=0.4)

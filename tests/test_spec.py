"""The bundle spec: every mistake is named with its remedy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from slmrank.errors import SpecError
from slmrank.shipped import shipped
from slmrank.spec.model import PRESETS
from slmrank.spec.reading import (
    OnceEachLoader,
    change_spec,
    is_overlay,
    load_spec,
    parse_spec,
    read_override,
)

DEMO = shipped("build/demo.yaml")
DATA = {"source": "onet"}


def broken(values: dict[str, Any]) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse_spec({"name": "x", "data": DATA, **values}, Path())
    return caught.value


def test_the_shipped_spec_loads() -> None:
    spec = load_spec(shipped("build/demo.yaml"))
    assert spec.prune is not None
    assert spec.recover is not None


def test_an_unknown_key_names_the_nearest_known_one() -> None:
    error = broken({"finetune": {"learnign_rate": 1.0}})
    assert "finetune.learnign_rate" in error.message
    assert "did you mean 'learning_rate'" in error.message
    assert "steps" in error.hint


def test_an_unknown_key_at_the_top_and_inside_data() -> None:
    assert "did you mean 'engine'" in broken({"engin": {}}).message
    error = broken({"data": {"source": "onet", "sed": 1}})
    assert "did you mean 'seed'" in error.message


def test_the_value_is_named() -> None:
    assert "got -3" in broken({"finetune": {"steps": -3}}).message


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"engine": {"other": {"foo": {}}}}, "engine.other holds 'foo'"),
        ({"engine": {"other": 3}}, "engine.other holds 3"),
        ({"base": {"preset": ["x"]}}, "base.preset"),
        ({"evaluate": {"seed": -1}}, "got -1"),
        ({"finetune": {"shard": True, "tokens_at_once": 99}}, "leave tokens_at_once out"),
        ({"finetune": {"adapter": "a", "lora": {"rank": 2}}}, "lora beside it does nothing"),
        ({"finetune": {"patience": 2}}, "set dev_every"),
        ({"prune": {"layers": 2}}, "prune.intermediate_size"),
        ({"prompt": {"prefix": "{query} or {query}?"}}, "must hold {query} once"),
        ({"prompt": {"closing": "\ud800"}}, "half of a character"),
        ({"base": {"instruction": "Judge."}}, "base.instruction does nothing"),
        (
            {"base": {"preset": "qwen3-reranker", "instruction": "Judge {query}."}},
            "cannot hold {query}",
        ),
    ],
)
def test_odd_values_are_faults_of_the_spec(values: dict[str, Any], text: str) -> None:
    assert text in broken(values).message


def test_a_spec_that_is_written_out_is_the_same_spec() -> None:
    """With all defaults, also beside a preset: offline scoring hands it on so."""
    for preset in PRESETS:
        spec = parse_spec({"name": "x", "data": DATA, "base": {"preset": preset}}, Path())
        again = parse_spec(spec.model_dump(mode="json"), Path())
        assert again.model_dump() == spec.model_dump()


def test_a_width_that_is_no_multiple_of_64_names_its_neighbours() -> None:
    message = broken({"prune": {"intermediate_size": 1000, "layers": 2}}).message
    assert "1000" in message
    assert "960 or 1024" in message


def test_recover_without_prune_is_refused() -> None:
    assert "needs a prune section" in broken({"recover": {}}).message


def test_a_prompt_without_query_is_refused() -> None:
    assert "{query}" in broken({"prompt": {"prefix": "hello"}}).message


def test_all_faults_stand_in_one_message() -> None:
    message = broken({"finetune": {"steps": 0}, "engin": {}}).message
    assert "finetune.steps" in message
    assert "engin" in message


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"a: [", "not YAML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[1]", "no mapping"),
        (b"name: x\ndata:\n  seed: 1\n  seed: 2\n", r"the key seed stands here twice\s.*line 4"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=text):
        load_spec(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot read spec"):
        load_spec(tmp_path / "none.yaml")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "name: x\ndata: {source: jsonl, jobs: j.jsonl, pairs: p.jsonl}\n"
        "base: {source: model}\nfinetune: {teacher: /abs/teacher}\n"
    )
    spec = load_spec(path)
    assert spec.base.source == str(tmp_path / "model")
    assert spec.finetune.teacher == Path("/abs/teacher")
    assert spec.data.source == "jsonl"
    assert spec.data.jobs == tmp_path / "j.jsonl"


def test_paths_of_an_overlay_are_its_own(tmp_path: Path) -> None:
    """They were read from the folder of the file that it extends: another folder's data."""
    for name in ("base", "own"):
        (tmp_path / name).mkdir()
    (tmp_path / "base" / "s.yaml").write_text(
        "name: x\ndata: {source: jsonl, jobs: j.jsonl, pairs: p.jsonl}\nbase: {source: model}\n"
    )
    path = tmp_path / "own" / "s.yaml"
    path.write_text("extends: ../base/s.yaml\ndata: {jobs: j.jsonl}\n")
    spec = load_spec(path)
    assert spec.data.source == "jsonl"
    assert spec.data.jobs.resolve() == tmp_path / "own" / "j.jsonl"
    assert spec.data.pairs.resolve() == tmp_path / "base" / "p.jsonl"
    assert Path(spec.base.source).resolve() == tmp_path / "base" / "model"


def test_what_replaces_and_what_is_merged(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "name: x\ndata: {source: onet-database, folder: f, held_back: h.txt}\n"
        "base: {source: model, preset: qwen3-reranker}\n"
        "evaluate: {sets: {a: {source: onet-database, folder: f}}}\n"
        "finetune: {steps: 5}\ndeploy: {placement: {node_selector: {disk: ssd}}}\n"
    )
    path = tmp_path / "own.yaml"
    path.write_text("extends: base.yaml\ndata: {source: jsonl, jobs: j.jsonl, pairs: p.jsonl}\n")
    spec = load_spec(path, ["base.source=other", "deploy.placement.node_selector.pool=b"])
    assert spec.data.source == "jsonl"
    assert spec.base.preset == "qwen3-reranker"
    assert spec.deploy.placement.node_selector == {"disk": "ssd", "pool": "b"}
    emptied = load_spec(path, ["evaluate.sets={}", "deploy.placement.node_selector={}"])
    assert emptied.evaluate.sets == {}
    assert emptied.deploy.placement.node_selector == {}
    other = load_spec(
        path,
        [
            "evaluate.sets.a.source=jsonl",
            "evaluate.sets.a.jobs=j.jsonl",
            "evaluate.sets.a.pairs=p.jsonl",
        ],
    )
    assert other.evaluate.sets["a"].source == "jsonl"
    # In whatever order a command line has them.
    early = ["data.seed=7", "data.jobs=k.jsonl", "data.source=jsonl", "data.pairs=p.jsonl"]
    given = load_spec(tmp_path / "base.yaml", early).data
    assert (given.source, given.seed) == ("jsonl", 7)
    assert is_overlay(tmp_path / "base.yaml", early, load_spec(tmp_path / "base.yaml", early))
    again = ["evaluate.sets={}", "evaluate.sets.b.jobs=j.jsonl", "evaluate.sets.b.source=jsonl"]
    sets = load_spec(path, [*again, "evaluate.sets.b.pairs=p.jsonl"]).evaluate.sets
    assert list(sets) == ["b"]
    for before in ("data={seed: 9}", "data={jobs: j.jsonl}", "evaluate={split: dev}"):
        rest = ["data.source=jsonl", "data.jobs=j.jsonl", "data.pairs=p.jsonl"]
        assert load_spec(path, [before, *rest]).data.source == "jsonl"
    assert load_spec(path, ["data={seed: 9}", *rest]).data.seed == 9
    for before in ("data=null", "data={source: jsonl, jobs: a, pairs: b}", "data.source=onet"):
        rest = ["data.source=parquet", "data.jobs=c.parquet", "data.pairs=d.parquet"]
        assert load_spec(path, [before, *rest]).data.source == "parquet"
    # One overlay cannot empty a section and fill it again.
    assert is_overlay(
        path,
        ["finetune.steps=7", "finetune.seed=3"],
        load_spec(path, ["finetune.steps=7", "finetune.seed=3"]),
    )
    twice = ["finetune=null", "finetune={seed: 3}"]
    assert not is_overlay(path, twice, load_spec(path, twice))


def test_what_a_file_extends_is_found_as_other_paths_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text("name: x\ndata: {source: onet}\nschema: 1\n")
    path = tmp_path / "own.yaml"
    path.write_text("extends: ~/base.yaml\n")
    assert load_spec(path).name == "x"
    path.write_text("extends: nope.yaml\n")
    with pytest.raises(SpecError, match="whose user is not known here"):
        path.write_text("extends: ~nosuchuser/x.yaml\n")
        load_spec(path)
    path.write_text("extends: nope.yaml\n")
    with pytest.raises(SpecError, match=r"nope\.yaml, which .*own\.yaml extends, is no file"):
        load_spec(path)


def test_none_and_numbers_that_are_none(tmp_path: Path) -> None:
    spec = load_spec(DEMO)
    assert change_spec(spec, read_override("finetune=null")).finetune is None
    (tmp_path / "s.yaml").write_text(f"extends: {DEMO}\nfinetune: null\nrecover: null\n")
    assert load_spec(tmp_path / "s.yaml").finetune is None
    for value in (".inf", ".nan"):
        with pytest.raises(SpecError, match="finite number"):
            change_spec(spec, read_override(f"sweep.slo.latency_ms={value}"))


@pytest.mark.parametrize("place", ["memory", "redis", "rediss//h", "redis://:secret@h/0"])
def test_a_cache_elsewhere_is_a_url_and_a_password_is_not_shown(place: str) -> None:
    with pytest.raises(SpecError, match="neither memory: nor redis://HOST") as caught:
        change_spec(load_spec(DEMO), {"repository": {"cache": {"place": place}}})
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "change",
    [
        "deploy.storage.bundles_url=s3://key:secret@bucket/bundles",
        "deploy.watch.source=kafka://u:secret@h:9092/jobs",
        "deploy.watch.source=kafka:u:secret@h:9092/jobs",
        "deploy.catalogue.jobs=s3://key:secret@bucket/jobs",
        "deploy.catalogue.out=s3://key:secret@bucket/out?region=x",
        "deploy.catalogue.out=s3://key:sec/ret@bucket/out",
        "deploy.storage.bundles_url=S3://key:secret@bucket/bundles",
    ],
)
def test_no_password_gets_into_a_manifest(change: str) -> None:
    with pytest.raises(SpecError, match="has a password in its url") as caught:
        change_spec(load_spec(DEMO), read_override(change))
    assert "ret@" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://b/jobs@2024",
        "hdfs://name:8020/jobs@2024",
        "hdfs://etl@name:8020/jobs",
        "abfss://container@account.dfs.core.windows.net/jobs",
        "s3://b/a:b@c",
    ],
)
def test_an_at_sign_alone_is_no_password(url: str) -> None:
    spec = change_spec(load_spec(DEMO), read_override(f"deploy.catalogue.jobs={url}"))
    assert spec.deploy.catalogue.jobs == url
    change_spec(load_spec(DEMO), read_override("deploy.watch.source=redis-stream:jobs@v2"))


def test_a_folder_whose_name_is_no_text_is_named(tmp_path: Path) -> None:
    """The file was blamed for half a character, which it had not."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xe9d"))
    folder.mkdir()
    (folder / "a.yaml").write_text("name: a\ndata: {source: jsonl, jobs: j, pairs: p}\n")
    with pytest.raises(SpecError, match="has a name that is not UTF-8"):
        load_spec(folder / "a.yaml")
    (folder / "a.yaml").unlink()
    folder.rmdir()


def test_the_remedy_names_the_file_that_is_here(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as raised:
        load_spec(tmp_path / "build" / "demo.yaml")
    assert str(DEMO) in raised.value.hint


def test_a_fault_names_the_file_that_wrote_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "name: x\ndata: {source: onet}\nsweep: {itms: [1]}\nrecover: {steps: 3}\n"
    )
    over = tmp_path / "over.yaml"
    over.write_text("extends: base.yaml\nsweep: {window_ms: 3}\n")
    with pytest.raises(SpecError) as caught:
        load_spec(over, ["finetune.lora.rnk=3"])
    of_file = {part.partition(": ")[0] for part in caught.value.message.split("; ")}
    assert of_file >= {str(over), str(tmp_path / "base.yaml"), "--set"}
    for told in (
        f"{over}: sweep.window_ms: Input should",
        f"{tmp_path / 'base.yaml'}: sweep.itms: unknown key; did you mean 'items'?",
        "--set: finetune.lora.rnk: unknown key; did you mean 'rank'?",
    ):
        assert told in caught.value.message
    # Nobody wrote what is missing, or what two files say together: the one that was asked for.
    (tmp_path / "base.yaml").write_text("name: x\ndata: {source: onet}\nrecover: {steps: 3}\n")
    over.write_text("extends: base.yaml\n")
    with pytest.raises(SpecError, match="recover needs a prune section") as caught:
        load_spec(over)
    assert caught.value.message.startswith(f"{over}: ")


def test_sources_and_keys_of_named_sets_are_suggested() -> None:
    base = {"name": "x", "data": {"source": "onet"}}
    sets = {"sets": {"mine": {"source": "jsonl", "jbs": "x", "pairs": "y"}}}
    with pytest.raises(SpecError, match=r"sets\.mine\.jbs: unknown key; .*'jobs'") as caught:
        parse_spec({**base, "evaluate": sets}, Path())
    assert "pairs" in caught.value.hint
    with pytest.raises(SpecError, match=r"data\.source: 'onett' is no source; .*'onet'") as caught:
        parse_spec({**base, "data": {"source": "onett"}}, Path())
    assert caught.value.hint == "sources are onet, onet-database, jsonl, parquet"
    with pytest.raises(SpecError, match=r"extnds: unknown key; did you mean 'extends'"):
        parse_spec({**base, "extnds": "a.yaml"}, Path())


def test_a_mapping_that_was_merged_is_no_key_that_stands_twice(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "name: x\ndata: {source: onet}\nevaluate: {sets: {one: &a {<<: &b {source: jsonl, jobs: j, "
        "pairs: p}, pairs: q}}}\nsweep: {slo: {}}\nsummarize: {}\n"
    )
    assert load_spec(path).evaluate.sets["one"].pairs == tmp_path / "q"
    text = "first: {inner: &a {<<: &b {k: 1, l: 2}, k: 3}}\nsecond: {<<: *a, l: 5}\n"
    found = OnceEachLoader(text).get_single_data()
    assert found == {"first": {"inner": {"k": 3, "l": 2}}, "second": {"k": 3, "l": 5}}
    with pytest.raises(yaml.YAMLError, match="the key k stands here twice"):
        OnceEachLoader("x: &a {k: 1, k: 2}\ny: {<<: *a}").get_single_data()


def test_a_section_of_the_wrong_kind_is_laid_to_who_wrote_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: x\ndata: {source: onet}\ntuning: {steps: 3}\n")
    over = tmp_path / "over.yaml"
    over.write_text("extends: base.yaml\n")
    with pytest.raises(SpecError) as caught:
        load_spec(over, ["sweep.items={a: 1}"])
    assert f"{tmp_path / 'base.yaml'}: tuning: unknown key" in caught.value.message
    assert "--set: sweep.items: Input should be a valid list" in caught.value.message
    with pytest.raises(SpecError, match=r"^--set: data\.source: 'jsonll' is no source"):
        load_spec(DEMO, ["data.source=jsonll"])
    with pytest.raises(SpecError, match="^--set: extends: stands in a file, not in --set"):
        load_spec(DEMO, ["extends=other.yaml"])


def test_a_set_that_is_called_like_a_source_keeps_its_name() -> None:
    sets = {"sets": {"onet": {"source": "jsonl", "jbs": "x", "pairs": "y"}}}
    spec = {"name": "x", "data": {"source": "onet"}, "evaluate": sets}
    with pytest.raises(SpecError, match=r"sets\.onet\.jbs: unknown key; .*'jobs'"):
        parse_spec(spec, Path())
    missing = {"sets": {"onet": {"source": "jsonl", "jobs": "x"}}}
    with pytest.raises(SpecError, match=r"evaluate\.sets\.onet\.pairs: Field required"):
        parse_spec({**spec, "evaluate": missing}, Path())


def test_a_target_and_a_key_that_is_no_word_are_laid_to_who_wrote_them(tmp_path: Path) -> None:
    base, over = tmp_path / "base.yaml", tmp_path / "over.yaml"
    base.write_text("name: x\ndata: {source: onet}\nsweep: {on: 1}\nengine: {target: cpu}\n")
    over.write_text("extends: base.yaml\n")
    with pytest.raises(SpecError) as caught:
        load_spec(over)
    assert caught.value.message.startswith(f"{base}: ")
    assert "sweep.True: Keys should be strings" in caught.value.message
    assert str(over) not in caught.value.message
    with pytest.raises(SpecError, match="^--set: engine.target: 'openvin' is none of .*'openvino'"):
        load_spec(DEMO, ["engine.target=openvin"])


def test_keys_that_stand_twice_are_found_behind_many_documents() -> None:
    """The nodes of a document that was read are freed, and their ids are used again."""
    for before in range(1, 40):
        text = "data: {k: v, l: w}\n---\n" * before + "data: {k: v, k: w}\n"
        with pytest.raises(yaml.YAMLError, match="the key k stands here twice"):
            list(yaml.load_all(text, OnceEachLoader))

"""Generated configurations, the ensemble check, and the files of a repository."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from slmrank.errors import RepositoryError
from slmrank.repository.generate import RepositorySettings, check_repository, render_configs
from slmrank.repository.rankers import OpenVinoRanker
from slmrank.triton.config import parse_config, print_config
from slmrank.triton.graph import check_ensemble

GOLDEN = Path(__file__).parent / "golden"
SETTINGS = RepositorySettings(
    max_batch_size=32,
    max_queue_delay_us=500,
    max_queue_size=256,
    queue_timeout_us=10_000_000,
    max_items=1000,
)
IDENTITY = {"engine": "e" * 16, "prompt_hash": "p" * 16, "tokenizer_hash": "t" * 16}


def rendered() -> dict[str, Any]:
    return render_configs(SETTINGS, OpenVinoRanker(threads=2), IDENTITY)


@pytest.mark.parametrize("name", ["prepare", "ranker", "rank"])
def test_the_rendered_text_is_the_golden_one(name: str) -> None:
    text = print_config(rendered()[name])
    path = GOLDEN / f"{name}.pbtxt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
    assert print_config(parse_config(text)) == text


def test_the_identity_follows_every_setting() -> None:
    def identity(**changes: Any) -> str:
        made = render_configs(replace(SETTINGS, **changes), OpenVinoRanker(threads=2), IDENTITY)
        value: str = made["rank"].parameters["settings"].string_value
        return value

    others = [{"max_queue_delay_us": 1}, {"max_items": 5}, {"max_queue_size": 9}]
    assert len({identity(), *(identity(**one) for one in others)}) == 4
    threads = render_configs(SETTINGS, OpenVinoRanker(threads=3), IDENTITY)["rank"].parameters
    assert threads["settings"].string_value != identity()


def test_our_own_ensemble_passes() -> None:
    configs = rendered()
    check_ensemble(configs["rank"], configs)


Breaker = Callable[[dict[str, Any]], Any]


def _dtype(c: dict[str, Any]) -> None:
    c["prepare"].output[0].data_type = 9


def _dims(c: dict[str, Any]) -> None:
    c["ranker"].input[0].dims[:] = [-1, 2]


def _missing_model(c: dict[str, Any]) -> None:
    del c["ranker"]


def _missing_output(c: dict[str, Any]) -> None:
    del c["prepare"].output[1]


def _unmapped(c: dict[str, Any]) -> None:
    del c["rank"].ensemble_scheduling.step[1].input_map["item_ids"]


def _unknown_edge(c: dict[str, Any]) -> None:
    c["rank"].ensemble_scheduling.step[1].input_map["item_ids"] = "nothing"


def _written_twice(c: dict[str, Any]) -> None:
    c["rank"].ensemble_scheduling.step[1].output_map["score"] = "status"


def _optional(c: dict[str, Any]) -> None:
    c["prepare"].input[2].optional = False


def _batch(c: dict[str, Any]) -> None:
    c["ranker"].max_batch_size = 8


def _unused(c: dict[str, Any]) -> None:
    c["rank"].input.add(name="extra", data_type=13, dims=[1])


@pytest.mark.parametrize(
    ("breaker", "text"),
    [
        (_dtype, "TYPE_INT64 but ranker.prefix_ids is TYPE_INT32"),
        (_dims, "has dims [-1] but ranker.prefix_ids has [-1, 2]"),
        (_missing_model, "model 'ranker' is not in the repository"),
        (_missing_output, "'prepare' has no output 'item_ids'"),
        (_unmapped, "'ranker' input 'item_ids' is not mapped"),
        (_unknown_edge, "reads 'nothing', which no earlier step writes"),
        (_written_twice, "'status' is written twice"),
        (_optional, "is optional but prepare.job_text is not"),
        (_batch, "max_batch_size 32 is above that of 'ranker' (8)"),
        (_unused, "input 'extra' is used by no step"),
    ],
)
def test_every_broken_edge_is_named(breaker: Breaker, text: str) -> None:
    configs = rendered()
    breaker(configs)
    with pytest.raises(RepositoryError) as caught:
        check_ensemble(configs["rank"], configs)
    assert text in str(caught.value)


def test_a_field_that_does_not_exist_is_refused() -> None:
    with pytest.raises(RepositoryError, match="max_batchsize"):
        parse_config("max_batchsize: 4")


def test_a_folder_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="not a model repository"):
        check_repository(tmp_path)


def test_the_files_of_a_repository(tiny_repository: Path) -> None:
    configs = check_repository(tiny_repository)
    assert set(configs) == {"rank", "prepare", "ranker"}
    present = {
        str(path.relative_to(tiny_repository))
        for path in tiny_repository.rglob("*")
        if path.is_file()
    }
    assert {
        "prepare/1/model.py",
        "prepare/1/tokenizer.json",
        "prepare/1/ranker.json",
        "prepare/1/store/data.mdb",
        "ranker/1/model.py",
        "ranker/1/engine/items.xml",
        "rank/1/.keep",
    } <= present


def test_a_renamed_model_and_a_missing_version_are_refused(tmp_path: Path) -> None:
    for name, config in rendered().items():
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "config.pbtxt").write_text(print_config(config))
    check_repository(tmp_path)
    (tmp_path / "ranker" / "1").rmdir()
    with pytest.raises(RepositoryError, match="no version folder"):
        check_repository(tmp_path)
    (tmp_path / "ranker").rename(tmp_path / "scorer")
    with pytest.raises(RepositoryError, match="is not its folder's name"):
        check_repository(tmp_path)

"""Generated configurations, the ensemble check, and the files of a repository."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from slmrank.engine.targets.registry import TARGETS
from slmrank.errors import RepositoryError
from slmrank.prompt.labels import Labels
from slmrank.repository.generate import check_repository, queue_of, render_configs
from slmrank.shipped import shipped
from slmrank.spec.bundle import BundleSpec
from slmrank.spec.reading import change_spec, load_spec
from slmrank.triton.config import parse_config, print_config
from slmrank.triton.graph import check_ensemble

GOLDEN = Path(__file__).parent / "golden"
IDENTITY = {"engine": "e" * 16, "prompt_hash": "p" * 16, "tokenizer_hash": "t" * 16}


# What a target asks of a checkpoint when it renders.
CHECKPOINT: Any = SimpleNamespace(
    path=GOLDEN,
    labels=Labels(yes=11, no=22),
    geometry=SimpleNamespace(vocab_size=960),
    encoder=lambda: SimpleNamespace(max_prompt_tokens=235),
)


def spec(**changes: Any) -> BundleSpec:
    """The demo's spec with two threads, and changes."""
    made = change_spec(load_spec(shipped("build/demo.yaml")), {"repository": {"threads": 2}})
    return change_spec(made, changes)


def rendered(target: str = "openvino", **changes: Any) -> dict[str, Any]:
    """What a target's repository holds, for a checkpoint that is not there."""
    made = spec(**changes)
    figures = {"tag": "0123456789ab"}
    models = TARGETS.get(target).triton_models(made, CHECKPOINT, figures, queue_of(made))
    return render_configs(made, models, IDENTITY)


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
        value: str = rendered(**changes)["rank"].parameters["configuration"].string_value
        return value

    others: list[dict[str, Any]] = [
        {"repository": {"max_queue_delay_us": 1}},
        {"repository": {"max_items": 5}},
        {"repository": {"max_queue_size": 9}},
        {"repository": {"threads": 3}},
    ]
    assert len({identity(), *(identity(**one) for one in others)}) == 5


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
    c["ranker"].max_batch_size = 0


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
        (_optional, "is optional but prepare.job is not"),
        (_batch, "max_batch_size 1 is above that of 'ranker' (0)"),
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

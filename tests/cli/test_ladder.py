"""`control ladder` on the tiny bundle: real server, real perf_analyzer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from slmrank.errors import SweepError
from slmrank.pipeline import ladder
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.ladder import _is_servable, is_trained_trimmed, plan_ladder
from slmrank.pipeline.steps import Runner, Watcher
from slmrank.spec.reading import change_spec

from tests.conftest import Control, TinyBundle


@pytest.mark.long
@pytest.mark.perf
@pytest.mark.triton
def test_every_rung_is_scored_and_measured(
    control: Control, tiny: TinyBundle, tmp_path: Path
) -> None:
    command = ("ladder", tiny.spec, "--artifacts", tiny.artifacts, "--items", "4")
    command += ("--set", "evaluate.full_text_tokens=96")  # what the tiny ranker was trained with
    done = control(*command, "--out", tmp_path, "--json", timeout_s=600)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    names = [row["name"] for row in rows]
    assert names[0] == "transformers float32, full text"
    assert names[-1] == "+ float32"
    assert all(row["items_per_s"] > 0 and row["ratio"] > 0 for row in rows)
    assert [row["p95_ms"] is None for row in rows] == [True, True, False, False, False, False]
    assert rows[1]["ratio"] == rows[2]["engine_ratio"] == 1
    parameters = [row["parameters"] for row in rows]
    assert parameters[0] == parameters[3] > parameters[4] == parameters[5]
    tokens = [row["quality"]["prompt_tokens"] for row in rows]
    assert tokens[0] == tokens[2] > tokens[3] == tokens[5]
    assert len({row["quality"]["pairs"] for row in rows}) == 1
    # The engine computes what transformers does.
    assert rows[2]["quality"]["mean_abs_dp"] < 0.02
    written = {path.suffix for path in tmp_path.iterdir()}
    assert written == {".html", ".md", ".png", ".json"}
    again = control(*command, timeout_s=600)
    assert "transformers bfloat16" in again.stdout
    assert "made in" not in again.stderr


def test_no_rung_trains_another_ranker(tiny: TinyBundle) -> None:
    rungs = plan_ladder(tiny.bundle)
    full = [one for one in rungs if one.full_text]
    assert len(full) == 3
    assert {one.bundle.finetuned.key for one in rungs} == {tiny.bundle.finetuned.key}
    told: list[str] = []
    assert [_is_servable(one, told.append) for one in full] == [False] * 3
    assert "prompt.max_item_tokens 256 from the start" in told[0]


def test_a_vocabulary_that_is_cut_is_a_rung(tiny: TinyBundle) -> None:
    """All rungs had it, the one of the unpruned model as transformers runs it too."""
    trained = Bundle(change_spec(tiny.bundle.spec, {"trim": {"tokens": 512}}))
    assert is_trained_trimmed(trained)
    assert {one.bundle.spec.trim for one in plan_ladder(trained)} == {trained.spec.trim}
    merged = {"finetune": {"adapter": "adapter", "lora": None, "steps": 0}}
    rungs = plan_ladder(Bundle(change_spec(trained.spec, merged)))
    assert [one.bundle.spec.trim is None for one in rungs] == [True] * 4 + [False] * 3
    assert rungs[4].name == "+ 512 tokens"
    assert rungs[4].bundle.spec.prune is None


def test_rungs_are_served_without_what_answers_for_them(
    tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = change_spec(tiny.bundle.spec, {"repository": {"cache": {}}})
    served: list[Bundle] = []

    def opened(bundle: Bundle, *_: object) -> None:
        served.append(bundle)
        raise SweepError("enough", "")

    monkeypatch.setattr(ladder, "open_bundle_session", opened)
    figures = {"scoring_s": 1.0, "pairs": 10, "item_tokens": 100}
    with pytest.raises(SweepError):
        ladder._served(
            plan_ladder(Bundle(spec))[-1],
            SimpleNamespace(figures=figures),  # type: ignore[arg-type]
            4,
            Runner(tiny.store, Watcher(), "cpu"),
            print,
        )
    assert served[0].spec.repository.cache is None


def test_a_spec_without_pruning_is_refused(control: Control, tiny: TinyBundle) -> None:
    done = control("ladder", tiny.spec, "--set", "prune=null", "--set", "recover=null")
    assert done.returncode == 2
    assert "prune and recover" in done.stderr

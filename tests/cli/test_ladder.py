"""`control ladder` on the tiny bundle: real server, real perf_analyzer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from slmrank.pipeline.ladder import _is_servable, plan_ladder

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
    assert rows[1]["ratio"] == 1
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


def test_a_spec_without_pruning_is_refused(control: Control, tiny: TinyBundle) -> None:
    done = control("ladder", tiny.spec, "--set", "prune=null", "--set", "recover=null")
    assert done.returncode == 2
    assert "prune and recover" in done.stderr

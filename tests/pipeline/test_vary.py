"""`control vary`, pruning in stages and unlabelled queries, on the tiny bundle for real."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from slmrank.artifacts import ArtifactStore
from slmrank.errors import SpecError
from slmrank.model.checkpoint import CHECKPOINT_FOLDER, open_checkpoint
from slmrank.model.reference import ReferenceScorer
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import in_order, run
from slmrank.pipeline.vary import plan_variants, read_grid, reference_step
from slmrank.spec.reading import change_spec, load_spec
from slmrank.store.registry import open_store

from tests.conftest import Control, TinyBundle


def test_stages_see_other_queries(tiny: TinyBundle) -> None:
    """Three stages saw a third of the data three times."""
    spec = change_spec(tiny.bundle.spec, {"prune": {"stages": 3}, "recover": {"steps": 9}})
    steps = [step for step in in_order(Bundle(spec).recovered) if step.kind == "recovered"]
    seeds = [step.settings["seed"] for step in steps]
    assert seeds == [seeds[0] + number for number in range(3)]
    [one] = [step for step in in_order(tiny.bundle.recovered) if step.kind == "recovered"]
    assert one.settings["seed"] == seeds[0]


def test_a_ranker_of_full_texts_is_the_reference_on_them(tiny: TinyBundle) -> None:
    full = {"text": "full", "text_tokens": 64}
    taught = {"teacher_text": "full"}
    spec = change_spec(tiny.bundle.spec, {"finetune": full, "recover": taught})
    reference = reference_step(Bundle(spec), "own")
    assert reference.settings["full_text"]
    assert not reference_step(tiny.bundle, "own").settings["full_text"]
    [one] = plan_variants(Bundle(spec), {"recover.seed": [5]}, "recovered", "own")
    assert not one.step.settings["full_text"]


@pytest.mark.long
@pytest.mark.slow
def test_a_grid_of_stages_and_unlabelled_queries(
    control: Control, tiny: TinyBundle, tmp_path: Path
) -> None:
    grid = ("--vary", "prune.stages=[1, 2]", "--vary", "recover.unlabelled_queries=[0, 6]")
    sizes = ("--set", "prune.layers=1", "--set", "prune.intermediate_size=64")
    command = ("vary", tiny.spec, "--artifacts", tiny.artifacts, *grid, *sizes)
    done = control(*command, "--out", tmp_path, "--json", timeout_s=400)
    assert done.returncode == 0, done.stderr
    first, *rows = json.loads(done.stdout)["rows"]
    assert first["values"] == {}
    assert first["row"]["delta_ndcg10"] is None
    assert [tuple(row["values"].values()) for row in rows] == [(1, 0), (1, 6), (2, 0), (2, 6)]
    assert len({row["row"]["mean_abs_dp"] for row in rows}) == 4
    assert len({row["row"]["parameters"] for row in rows}) == 1
    assert next(tmp_path.glob("*.png")).read_bytes().startswith(b"\x89PNG")
    # In two stages there is a model between: a layer and 64 neurons off, with half of the steps.
    bundle = Bundle(load_spec(tiny.spec, ["prune.stages=2", *sizes[1::2]]))
    chain = [step for step in in_order(bundle.recovered) if step.kind in ("pruned", "recovered")]
    store = ArtifactStore(tiny.artifacts)
    made = [store.read(step.kind, step.key) for step in chain]
    assert [one.kind for one in made] == ["pruned", "recovered", "pruned", "recovered"]
    widths = [json.loads((one.path / "checkpoint/config.json").read_text()) for one in made[::2]]
    assert [(one["num_hidden_layers"], one["intermediate_size"]) for one in widths] == [
        (2, 128),
        (1, 64),
    ]
    steps = bundle.spec.recover.steps if bundle.spec.recover else 0
    assert made[1].figures["steps"] + made[3].figures["steps"] == steps
    # Interrupted or grown: what was made is found.
    again = control(*command, "--dry-run", timeout_s=60)
    assert "to be made" not in again.stdout


@pytest.mark.slow
def test_full_texts_are_trained_on_and_taught_from(tiny: TinyBundle, tmp_path: Path) -> None:
    changes = {
        "finetune": {"text": "full", "text_tokens": 160},
        "recover": {"teacher_text": "full", "text_tokens": 160},
    }
    bundle = Bundle(change_spec(tiny.bundle.spec, changes))
    full, short = (run(one.finetuned, tiny.store).figures for one in (bundle, tiny.bundle))
    assert full["pairs"] == short["pairs"]
    assert full["tokens_this_run"] > 1.5 * short["tokens_this_run"]
    # The student reads summaries as ever, and learns from what the teacher says of full texts.
    taught = run(bundle.recovered, tiny.store).figures
    own = run(
        Bundle(change_spec(bundle.spec, {"recover": {"teacher_text": "summary"}})).recovered,
        tiny.store,
    ).figures
    assert taught["tokens_this_run"] == own["tokens_this_run"]
    assert taught["loss"][0] != own["loss"][0]
    # Servers read summaries, so that known answers are of these.
    pruned = {
        "prune": None,
        "recover": None,
        "engine": {"target": "torch", "torch": {"dtype": "float32"}},
    }
    served = Bundle(change_spec(bundle.spec, pruned))
    checkpoint = open_checkpoint(run(served.finetuned, tiny.store).path / CHECKPOINT_FOLDER)
    encoder, scorer = checkpoint.encoder(), ReferenceScorer(checkpoint)
    place = served.spec.summarize.store
    shutil.copytree(run(served.summaries, tiny.store).path, tmp_path / "summaries")
    with contextlib.closing(open_store(place, tmp_path / "summaries")) as stored:
        for answer in run(served.engine, tiny.store).figures["known_answers"]:
            (ids,) = stored.ids_many([answer["job_id"]])
            prompt = np.concatenate([encoder.prefix(answer["query"]), encoder.item(ids).ids])
            p = float(scorer.probabilities([prompt])[0])
            assert p == pytest.approx(answer["p"], abs=1e-4)


def test_what_a_grid_cannot_be(tiny: TinyBundle) -> None:
    with pytest.raises(SpecError, match="no list of values"):
        read_grid(["recover.steps=20"])
    bundle = Bundle(load_spec(tiny.spec))
    for other in ({"evaluate.split": ["dev"]}, {"data.seed": [9]}, {"evaluate.queries": [1]}):
        with pytest.raises(SpecError, match="changes which queries are asked"):
            plan_variants(bundle, other, "recovered", "own")
    with pytest.raises(SpecError, match="recover"):
        plan_variants(bundle, {"recover.step": [1]}, "recovered", "own")
    # Values that fit only together are changed together.
    few = Bundle(load_spec(tiny.spec, ["recover.steps=1"]))
    assert plan_variants(few, {"prune.stages": [2], "recover.steps": [2]}, "recovered", "own")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["prune.stages=3", "recover=null"], "needs a recover section"),
        (["prune.stages=9", "recover.steps=4"], "of 9 steps or more"),
        (["prune.stages=2", "prune.recorded=x.json"], "pruned at once"),
        (["prune.stages=2", "recover.adapter=x"], "pruned at once"),
        (["recover.unlabelled_queries=5", "recover.teacher=labels"], "no grades to learn from"),
        (["finetune.unlabelled_queries=5"], "finetune.teacher"),
        (["finetune.teacher_text=full"], "is for a teacher"),
        (["recover.text=full"], "nothing about full texts"),
    ],
)
def test_stages_and_unlabelled_queries_that_cannot_be(
    tiny: TinyBundle, changes: list[str], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        load_spec(tiny.spec, changes)

"""The summarizer that asks a trained ranker, from fitting to serving, on the tiny bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slmrank.client.client import RankClient
from slmrank.data.labelled import read_labelled
from slmrank.data.records import Job, Pair
from slmrank.errors import DataError
from slmrank.model.checkpoint import CHECKPOINT_FOLDER, open_checkpoint
from slmrank.model.reference import ReferenceScorer
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import run
from slmrank.serving.server import ANY_PORTS, Server
from slmrank.spec.compress import SummarizeSpec
from slmrank.spec.reading import change_spec
from slmrank.summarize.effects import measure_effects
from slmrank.summarize.summarizer import Fitting

SPEC = {"method": "ranker", "budget_tokens": 12, "learn_jobs": 6}


def fitting_of(job: Job, pairs: list[Pair], ranker: Path) -> Fitting:
    spec = SummarizeSpec(learn_jobs=5)
    return Fitting(spec=spec, jobs=[job], encode=lambda _: [], ranker=ranker, pairs=pairs)


@pytest.mark.slow
@pytest.mark.usefixtures("in_float32")
def test_an_effect_is_what_the_reference_scorer_says(tiny: Any) -> None:
    folder = run(tiny.bundle.finetuned, tiny.store).path / CHECKPOINT_FOLDER
    job = Job(job_id="a", description="Welds beams, paints walls.")
    pairs = [
        Pair(query="welder", job_id="a", grade=4, split="train"),
        Pair(query="painter", job_id="a", grade=3, split="train"),
        Pair(query="nurse", job_id="a", grade=0, split="train"),
        Pair(query="not asked: neither good nor bad", job_id="a", grade=2, split="train"),
    ]
    found, table = measure_effects(fitting_of(job, pairs, folder))
    assert [one.phrase for one in found] == ["Welds beams", "paints walls"]
    checkpoint = open_checkpoint(folder)
    encoder, scorer = checkpoint.encoder(), ReferenceScorer(checkpoint)
    assert len(table) == checkpoint.geometry.vocab_size

    def added(query: str, phrase: str) -> float:
        items = [encoder.item(encoder.body(text)).ids for text in (phrase, "")]
        prompts = [np.concatenate([encoder.prefix(query), item]) for item in items]
        with_it, without = scorer.logits(prompts)
        return float(with_it - without)

    for one in found:
        good = (added("welder", one.phrase) + added("painter", one.phrase)) / 2
        assert one.effect == pytest.approx(good - added("nurse", one.phrase), abs=1e-4)
    wide = "\u711a\u63a5\uff0c\u5237\u6f06\u3002"  # Chinese, with the signs that end its clauses
    chinese = job.model_copy(update={"description": wide})
    found, _ = measure_effects(fitting_of(chinese, pairs, folder))
    assert [one.phrase for one in found] == ["\u711a\u63a5", "\u5237\u6f06"]


def test_jobs_without_queries_of_both_kinds_are_refused(tiny: Any) -> None:
    folder = run(tiny.bundle.finetuned, tiny.store).path / CHECKPOINT_FOLDER
    job = Job(job_id="a", description="Welds beams.")
    pairs = [Pair(query="welder", job_id="a", grade=4, split="train")]
    with pytest.raises(DataError, match="no job has a training query") as caught:
        measure_effects(fitting_of(job, pairs, folder))
    assert "salience" in caught.value.hint


@pytest.mark.long
@pytest.mark.triton
def test_it_is_fitted_once_for_all_budgets_and_serves_new_jobs(tiny: Any) -> None:
    bundle = Bundle(change_spec(tiny.bundle.spec, {"summarize": SPEC}))
    default = Bundle(change_spec(tiny.bundle.spec, {"summarize": {"budget_tokens": 12}}))
    assert bundle.summarizer.inputs["ranker"].key == default.finetuned.key
    wider = bundle.spec.summarize.model_copy(update={"budget_tokens": 20})
    other = bundle.summaries_of(bundle.data, wider)
    assert other.key != bundle.summaries.key
    assert other.inputs["summarizer"].key == bundle.summarizer.key
    made = run(bundle.repository, tiny.store)
    figures = run(bundle.summaries, tiny.store).figures
    assert figures["summary_tokens_mean"] <= 12 < figures["description_tokens_mean"]
    assert figures["ms_per_job"] > 0
    jobs = read_labelled(run(bundle.data, tiny.store).path).jobs
    with Server(made.path, ANY_PORTS) as server, RankClient(server.url) as client:
        by_id = client.score("nurse", list(jobs)[:9])
        by_fields = client.score("nurse", list(jobs.values())[:9])
    assert [one.score for one in by_id] == [one.score for one in by_fields]

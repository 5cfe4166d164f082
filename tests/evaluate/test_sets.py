"""Named evaluation sets: their own jobs and pairs, through the bundle's summarizer and models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from slmrank.data.labelled import read_labelled
from slmrank.evaluate.metrics import Listing
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.quality import asked_in_training, plan_quality, queries_of
from slmrank.pipeline.score_step import OWN, score_step
from slmrank.pipeline.stages.scores_dense import DenseScorer
from slmrank.pipeline.steps import run
from slmrank.spec.reading import change_spec, load_spec

from tests.conftest import Control, TinyBundle


@pytest.fixture
def spec(tiny: TinyBundle, tmp_path: Path) -> Path:
    """The tiny spec with a set of other jobs, whose pairs name no split."""
    jobs = [
        {"job_id": f"new-{n}", "title": f"{trade} {n}", "description": f"A {trade} at work. " * 9}
        for n, trade in enumerate(["nurse", "welder", "cook", "pilot"] * 3)
    ]
    pairs = [
        {
            "query": f"{trade} wanted",
            "job_id": job["job_id"],
            "grade": 4 if str(job["title"]).startswith(trade) else 0,
            "kind": kind,
        }
        for trade, kind in [("nurse", "title"), ("cook", "title"), ("pilot", "headline")]
        for job in jobs
    ]
    for name, records in (("jobs", jobs), ("pairs", pairs)):
        lines = "".join(json.dumps(one) + "\n" for one in records)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    values: dict[str, Any] = yaml.safe_load(tiny.spec.read_text())
    values["data"] |= {name: str(tiny.spec.parent / f"{name}.jsonl") for name in ("jobs", "pairs")}
    values["evaluate"]["sets"] = {
        "trades": {"source": "jsonl", "jobs": "jobs.jsonl", "pairs": "pairs.jsonl"}
    }
    path = tmp_path / "with-set.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.long
@pytest.mark.slow
def test_a_named_set_is_scored_by_every_row_and_gets_a_page(
    tiny: TinyBundle, tiny_repository: Path, spec: Path, control: Control
) -> None:
    done = control("evaluate", spec, "--artifacts", tiny.artifacts, "--set", "trades", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [row["name"] for row in answer["rows"]] == [
        "BM25",
        "fine-tuned",
        "pruned + recovered",
        "engine",
    ]
    for row in answer["rows"]:
        assert (row["queries"], row["pairs"]) == (3, 36)
        assert row["kinds"]["headline"]["queries"] == 1
        assert 0 <= row["order"]["value"] <= 1
    assert answer["rows"][0]["auc"]["value"] == 1, "the query's word stands in the exact jobs alone"
    assert answer["rows"][0]["mrr"]["value"] == 1
    assert answer["rows"][0]["ece"] is None
    assert answer["rows"][1]["ece"]["low"] <= answer["rows"][1]["ece"]["high"]
    page = Path(answer["page"]).read_text()
    for text in ("pruned + recovered", "pilot wanted", "nurse 0", "<svg", "by kind of query"):
        assert text in page
    assert re.search(r"<td[^>]*>headline</td><td[^>]*>1</td><td[^>]*>BM25, ", page)


@pytest.mark.slow
def test_queries_of_a_set_that_were_trained_on_are_counted(tiny: TinyBundle, spec: Path) -> None:
    """A set that is cut with another seed is tested on what was trained."""
    bundle = Bundle(load_spec(spec))
    data = run(bundle.data, tiny.store)
    trained = [pair.query for pair in read_labelled(data.path).pairs["train"]]
    asked = [f" {trained[0].upper()}  ", trained[0], trained[-1], "never asked"]
    listings = [Listing(scores=np.ones(1), grades=np.ones(1), query=one) for one in asked]
    distinct = len({trained[0].lower(), trained[-1].lower()})
    assert asked_in_training(bundle, tiny.store, listings) == distinct
    assert f"{distinct} of its queries were TRAINED ON" in queries_of("trades", "test", distinct)
    alone = Bundle(change_spec(bundle.spec, {"prune": None, "recover": None}))
    assert asked_in_training(alone, tiny.store, listings) == distinct
    assert queries_of(OWN, "dev") == "dev queries"


@pytest.mark.long
@pytest.mark.triton
def test_a_server_scores_a_set_by_its_fields(
    tiny: TinyBundle, tiny_repository: Path, spec: Path
) -> None:
    """The store in the repository has none of these jobs."""
    bundle = Bundle(load_spec(spec))
    found = {}
    for row in ("engine", "served"):
        artifact = run(score_step(bundle, row, on="trades"), tiny.store)
        lines = (artifact.path / "scores.jsonl").read_text().splitlines()
        found[row] = [json.loads(line)["score"] for line in lines]
    assert found["served"] == pytest.approx(found["engine"], abs=1e-5)


@pytest.mark.slow
def test_what_is_not_named_is_refused_with_the_names(spec: Path, control: Control) -> None:
    done = control("evaluate", spec, "--set", "onet-titels")
    assert done.returncode == 2
    assert "no evaluation set 'onet-titels'; it has trades" in done.stderr
    done = control("status", spec, "--set", "trades")
    assert done.returncode == 2
    assert "is not KEY=VALUE" in done.stderr


@pytest.fixture
def dense(tmp_path: Path) -> DenseScorer:
    """A small random BERT that knows a few words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "nurse", "cook", "pilot", "night", "day", "by", "and"]
    known = {word: place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(tmp_path)
    return DenseScorer(tmp_path)


def test_a_text_has_its_own_vector_whatever_stands_beside_it(
    dense: DenseScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmrank.pipeline.stages.scores_dense.BATCH", 2)
    texts = ["nurse by night and by day", "cook", "pilot by night", "nurse", "day and night cook"]
    told: list[tuple[int, int]] = []
    found = dense.embed(texts, lambda *given: told.append(given))
    for text, vector in zip(texts, found, strict=True):
        assert vector == pytest.approx(dense.embed([text], lambda *_: None)[0], abs=1e-5)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    likeness = found @ found.T
    assert likeness[~np.eye(5, dtype=bool)].max() < 0.999, "they can be told apart"
    assert told == [(2, 5), (4, 5), (5, 5)]
    asked = [("nurse", "b"), ("nurse", "a"), ("cook", "a")]
    scores = dense.scores(asked, {"a": texts[0], "b": texts[2]}, lambda *_: None)
    assert scores == {
        ("nurse", "b"): pytest.approx(likeness[3, 2], abs=1e-5),
        ("nurse", "a"): pytest.approx(likeness[3, 0], abs=1e-5),
        ("cook", "a"): pytest.approx(likeness[1, 0], abs=1e-5),
    }


def test_the_dense_rival_has_two_rows(spec: Path) -> None:
    bundle = Bundle(load_spec(spec, ["evaluate.dense_baseline=true"]))
    plan = plan_quality(bundle, served=False, on="trades")
    assert [pair for pair in plan.rows if pair[0] == "minilm"] == [
        ("minilm", "full"),
        ("minilm", "summary"),
    ]

"""The rankers in the box: small files that rebuild what they were trained to be, here as elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slmrank.compress.record import read_record
from slmrank.prompt.template import template_of
from slmrank.shipped import shipped
from slmrank.spec.model import PromptSpec

BOX = shipped("build/ranker")
LISTING = {
    "registered nurse night shift": "Job: RN - Medical Surgical Unit\nGive medicine to patients.",
    "long haul truck driver": "Job: CDL-A Tractor Trailer Operator\nHaul freight between states.",
    "java developer": "Job: Backend Software Engineer\nWrite and test server programs.",
    "pastry chef": "Job: Baker\nPrepare cakes, breads and desserts.",
    "hiring: electrician": "Job: Journeyman Wireman\nInstall wiring and switchboards.",
    "teach children with learning disabilities": "Job: Special Education Teacher\nPlan lessons.",
    "bookkeeper": "Job: Accounting Clerk\nPost entries and reconcile accounts.",
    "Welder wanted": "Job: MIG Fabricator\nJoin metal parts by arc.",
}


@pytest.mark.parametrize("name", ["full", "pruned"])
def test_each_is_small_and_says_what_it_is(name: str) -> None:
    folder = BOX / name
    assert max(path.stat().st_size for path in folder.iterdir()) <= 12_000_000
    note = json.loads((folder / "ranker_adapter.json").read_text())
    assert note["prompt_hash"] == template_of(PromptSpec()).hash
    card = (folder / "README.md").read_text()
    for text in ("CC BY 4.0", "What it cannot do", "Quality on onet-titles", "MiniLM", "steps"):
        assert text in card
    log = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert np.mean([one["loss"] for one in log[-50:]]) < np.mean([one["loss"] for one in log[:50]])


def test_the_record_is_small_and_of_the_packaged_model() -> None:
    path = BOX / "pruned" / "pruning.json"
    assert path.stat().st_size < 100_000
    record = read_record(path)
    assert (record.layers_before, len(record.layers)) == (30, 24)
    assert {len(one) for one in record.neurons} == {1024}


def rank(ranker: Any, checkpoint: Any) -> Any:
    """Log-odds of every (query, job) of LISTING, [N, N]."""
    import torch
    from slmrank.model.batch_tensors import batch_tensors
    from slmrank.model.decoder import score_items
    from slmrank.prompt.corpus import EncodedQuery

    encoder = checkpoint.encoder()
    items = tuple(encoder.item(encoder.body(text)).ids for text in LISTING.values())
    names = tuple(LISTING)
    zeros = tuple(0 for _ in names)
    rows = []
    for query in names:
        one = EncodedQuery(
            query=query,
            prefix=encoder.prefix(query),
            items=items,
            job_ids=names,
            grades=zeros,
            targets=tuple(0.0 for _ in names),
        )
        with torch.no_grad():
            rows.append(score_items(ranker, *batch_tensors([one], ranker.placement)).numpy())
    return np.array(rows)


@pytest.mark.long
@pytest.mark.slow
def test_they_rank_and_other_calibration_prompts_change_little(
    smollm2: Any, tmp_path: Path
) -> None:
    """The refit runs on every machine anew: its last bits, and even other prompts, must not matter
    to the adapter that was trained on top."""
    from slmrank.compress.structured import prune_model
    from slmrank.model.reference import load_model
    from slmrank.spec.compress import PruneSpec
    from slmrank.spec.train import TrainSpec
    from slmrank.train.sft import train

    right = np.eye(len(LISTING), dtype=bool)
    found = {}
    for name in ("full", "as recorded", "other prompts"):
        ranker = load_model(smollm2)
        merged = TrainSpec(steps=0, adapter=BOX / "full")
        train(ranker, [], merged, tmp_path, lambda *_: None, inputs={})
        if name != "full":
            record = read_record(BOX / "pruned" / "pruning.json")
            if name == "other prompts":
                record = replace(record, prompts=record.prompts[::2])
            spec = PruneSpec(intermediate_size=1024, layers=24)
            kept = smollm2.tokenizer_hash
            prune_model(ranker, [], spec, lambda *_: None, tokenizer_hash=kept, recorded=record)
            merged = TrainSpec(steps=0, adapter=BOX / "pruned")
            train(ranker, [], merged, tmp_path, lambda *_: None, inputs={})
        scores = rank(ranker, smollm2)
        # Of other prompts one more may fall: the second least of the margins is 0.33 of log-odds.
        missed = 2 if name == "other prompts" else 1
        assert (scores.argmax(axis=1) == np.arange(len(LISTING))).sum() >= len(LISTING) - missed
        assert scores[right].min() > np.median(scores[~right]), name
        found[name] = 1 / (1 + np.exp(-scores))
    moved = np.abs(found["as recorded"] - found["other prompts"])
    # Measured 0.011 with half of the prompts left out, beside 0.01 to 0.03 of INT8.
    assert moved.mean() < 0.02
    assert np.abs(found["full"] - found["as recorded"]).mean() < 0.1

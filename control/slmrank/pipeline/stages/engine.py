"""Make `engine`: let the target build it, and write down what it answers."""

from __future__ import annotations

from slmrank.data.records import Split
from slmrank.engine.known_answers import choose_known
from slmrank.engine.targets.base import Building, EngineTarget
from slmrank.model.probability import probability
from slmrank.pipeline.stages.inputs import checkpoint_of, split_queries, take_items
from slmrank.pipeline.steps import Making
from slmrank.prompt.corpus import corpus_figures
from slmrank.spec.bundle import BundleSpec

KNOWN_QUERIES = 4
ITEMS_PER_QUERY = 16


def make_engine(spec: BundleSpec, target: EngineTarget, making: Making) -> None:
    checkpoint = checkpoint_of(making.inputs["checkpoint"])
    full_tokens = spec.full_texts.get("full_tokens")
    training = split_queries(making, checkpoint, "train", 1, full_tokens=full_tokens)
    split: Split = "dev" if making.inputs["data"].figures["pairs"]["dev"] else "test"
    held_out = take_items(
        split_queries(making, checkpoint, split, 1, full_tokens=full_tokens),
        spec.engine.parity.pairs,
        ITEMS_PER_QUERY,
    )
    figures = target.build(
        Building(
            spec=spec,
            checkpoint=checkpoint,
            calibration=lambda items: take_items(training, items),
            held_out=held_out,
            folder=making.draft.path,
            report=lambda note: making.watcher.progress(0, 0, note),
        )
    )
    scorer = target.open_scorer(making.draft.path, checkpoint)
    asked = held_out[:KNOWN_QUERIES]
    if full_tokens is not None:  # servers read summaries, whatever the ranker was trained on
        read = split_queries(making, checkpoint, split, 1)
        asked = take_items(read, KNOWN_QUERIES * ITEMS_PER_QUERY, ITEMS_PER_QUERY)[:KNOWN_QUERIES]
    scored = [
        (query.query, job_id, float(p))
        for query in asked
        for job_id, p in zip(query.job_ids, probability(scorer(query)), strict=True)
    ]
    making.draft.figures.update(
        {
            "target": target.name,
            **figures,
            "held_out": corpus_figures(held_out),
            "known_answers": [answer.values() for answer in choose_known(scored)],
        }
    )

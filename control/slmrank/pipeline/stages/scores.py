"""Make `scores`: the evaluation pairs, scored by one row of the quality table."""

from __future__ import annotations

import importlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from slmrank.data.bm25 import Bm25
from slmrank.data.labelled import read_labelled
from slmrank.data.records import group_by_query
from slmrank.engine.parity import Scorer
from slmrank.engine.targets.base import EngineTarget
from slmrank.errors import DataError
from slmrank.machine.host import what_computes
from slmrank.model.probability import probability
from slmrank.pipeline.stages.inputs import Scores, checkpoint_of, read_pairs
from slmrank.pipeline.steps import Making
from slmrank.prompt.corpus import EncodedQuery, sample_queries

SCORES_FILE = "scores.jsonl"
APART = {  # rows whose scorer is a module of its own
    "minilm": "slmrank.pipeline.stages.scores_dense",
    "served": "slmrank.pipeline.stages.scores_served",
}


def make_scores(settings: Mapping[str, Any], target: EngineTarget, making: Making) -> None:
    """P(relevant) of every evaluation pair, or BM25 scores, by the row's scorer."""
    labelled = read_labelled(making.inputs["data"].path)
    pairs = sample_queries(labelled.pairs[settings["split"]], settings["queries"], settings["seed"])
    if not pairs:
        raise DataError(
            f"the data has no pairs in split {settings['split']!r}",
            "choose another evaluate.split, or give pairs with that split",
        )
    figures: dict[str, Any] = {"pairs": len(pairs), "prompt_tokens": 0}
    if settings["row"] == "bm25":
        index = Bm25(labelled.jobs)
        scores: Scores = {}
        for query, group in group_by_query(pairs).items():
            job_ids = [pair.job_id for pair in group]
            found = index.scores(query, job_ids)
            scores |= {(query, job_id): p for job_id, p in zip(job_ids, found, strict=True)}
    elif settings["row"] in APART:
        # By name: an import would make the scores of every row hang on the code of these.
        scorer = importlib.import_module(APART[settings["row"]])
        scores = scorer.scores_of(pairs, labelled, settings, making)
    else:
        encoder = checkpoint_of(making.inputs["checkpoint"]).encoder(settings["item_tokens"])
        jobs = labelled.jobs if settings["full_text"] else None
        queries = read_pairs(making, pairs, encoder, jobs)
        figures["prompt_tokens"] = sum(
            len(query.prefix) + len(item) for query in queries for item in query.items
        )
        figures["item_tokens"] = sum(len(item) for query in queries for item in query.items)
        figures["items_cut"] = sum(query.truncated for query in queries)
        figures["item_limit"] = encoder.max_item_tokens
        scores = _in_process(settings, queries, target, making)
    wrong = [place for place, score in scores.items() if not math.isfinite(score)]
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(scores)} scores are no numbers, the first for query "
            f"{wrong[0][0]!r} and job {wrong[0][1]!r}",
            "look at the training's log: such a ranker must be trained again",
        )
    with (making.draft.path / SCORES_FILE).open("w", encoding="utf-8") as stream:
        for pair in pairs:
            record = pair.model_dump(exclude={"split", "group"}, exclude_none=True)
            record["score"] = scores[pair.query, pair.job_id]
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
    making.draft.figures.update(figures)


def _in_process(
    settings: Mapping[str, Any],
    queries: Sequence[EncodedQuery],
    target: EngineTarget,
    making: Making,
) -> Scores:
    checkpoint = checkpoint_of(making.inputs["checkpoint"])
    measured_on = what_computes()
    if settings["row"] == "engine":
        score = partial(_by_query, target.open_scorer(making.inputs["engine"].path, checkpoint))
    else:
        from slmrank.model.batch_tensors import query_logits
        from slmrank.model.placement import choose_placement
        from slmrank.model.reference import ReferenceScorer, load_model

        placement = choose_placement(making.device, settings["dtype"])
        making.draft.figures["dtype"] = placement.dtype
        measured_on["device"] = placement.device
        if settings["whole_prompts"]:
            score = partial(_by_prompt, ReferenceScorer(checkpoint, placement))
        else:
            ranker = load_model(checkpoint, placement)
            score = partial(_by_query, partial(query_logits, ranker, mixed=False))
    started = time.perf_counter()
    found = score(queries, making)
    seconds = round(time.perf_counter() - started, 3)
    making.draft.figures |= {"scoring_s": seconds, "measured_on": measured_on}
    keys = [(query.query, job_id) for query in queries for job_id in query.job_ids]
    return dict(zip(keys, found, strict=True))


def _by_query(scorer: Scorer, queries: Sequence[EncodedQuery], making: Making) -> list[float]:
    found: list[float] = []
    for number, query in enumerate(queries, start=1):
        found += probability(scorer(query)).tolist()
        making.watcher.progress(number, len(queries), "queries")
    return found


def _by_prompt(reference: Any, queries: Sequence[EncodedQuery], making: Making) -> list[float]:
    prompts = [prompt for query in queries for prompt in query.prompts()]
    found: list[float] = reference.probabilities(
        prompts, lambda done, total: making.watcher.progress(done, total, "pairs")
    ).tolist()
    return found

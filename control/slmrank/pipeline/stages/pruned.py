"""Make `pruned`: fewer MLP neurons and layers."""

from __future__ import annotations

import random

from slmrank.compress.record import RECORD_FILE, read_record, write_record
from slmrank.pipeline.stages.inputs import checkpoint_of, split_queries
from slmrank.pipeline.steps import Making
from slmrank.prompt.corpus import corpus_figures
from slmrank.spec.compress import PruneSpec
from slmrank.tokens import Ids


def make_pruned(spec: PruneSpec, left: int, full_tokens: int | None, making: Making) -> None:
    from slmrank.compress.structured import prune_model, stage_of
    from slmrank.model.placement import choose_placement
    from slmrank.model.reference import load_model, save_model

    checkpoint = checkpoint_of(making.inputs["checkpoint"])
    spec = stage_of(spec, checkpoint.geometry, left)
    recorded = read_record(spec.recorded) if spec.recorded is not None else None
    prompts: list[Ids] = []
    if recorded is None:
        queries = split_queries(making, checkpoint, "train", 0, full_tokens=full_tokens)
        places = [(query, place) for query in queries for place in range(len(query.items))]
        random.Random(spec.seed).shuffle(places)
        chosen = places[: spec.calibration_prompts]
        prompts = [query.pick([place]).prompts()[0] for query, place in chosen]
        making.draft.figures.update(corpus_figures(queries))
    ranker = load_model(checkpoint, choose_placement(making.device))
    figures, record = prune_model(
        ranker,
        prompts,
        spec,
        lambda layer, layers: making.watcher.progress(layer, layers, "layers"),
        tokenizer_hash=checkpoint.tokenizer_hash,
        recorded=recorded,
        scratch=making.draft.work,
    )
    save_model(ranker, checkpoint, making.draft.path)
    write_record(making.draft.path / RECORD_FILE, record)
    making.draft.figures.update(figures)

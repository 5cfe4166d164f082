"""Mine a bundle's own mistakes: its data again, with hard negatives added to the training pairs."""

from __future__ import annotations

import contextlib
import filecmp
import itertools
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from slmrank.data.bm25 import Bm25
from slmrank.data.labelled import JOBS_FILE, PAIRS_FILE, read_labelled
from slmrank.data.mining import Mining, minable, mistakes, unjudged
from slmrank.data.records import SPLITS, Pair, write_jsonl
from slmrank.data.words import same_query
from slmrank.errors import DataError
from slmrank.model.probability import probability
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.stages.inputs import checkpoint_of
from slmrank.pipeline.steps import Runner
from slmrank.prompt.corpus import encode_pairs, stored_bodies
from slmrank.store.registry import open_store


def mine(
    bundle: Bundle, target: Path, mining: Mining, queries: int | None, runner: Runner
) -> dict[str, Any]:
    """Write `jobs.jsonl` and `pairs.jsonl` into `target`: what the bundle has, and its fine-tuned
    ranker's mistakes on (a sample of) its training queries. Returns figures.

    Raises DataError when `target` holds such pairs already, or cannot be written.
    """
    from slmrank.model.batch_tensors import query_logits
    from slmrank.model.placement import choose_placement
    from slmrank.model.reference import load_model

    data = runner.run(bundle.data).path
    there = target / JOBS_FILE
    # Of a run that stopped between its two files, the first is the set's own.
    other = there.exists() and not filecmp.cmp(data / JOBS_FILE, there, shallow=False)
    if other or (target / PAIRS_FILE).exists():
        name = JOBS_FILE if other else PAIRS_FILE
        raise DataError(f"{target} holds {name} already", "name another folder")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to {target}: {error}", "name another folder") from error
    checkpoint = checkpoint_of(runner.run(bundle.finetuned))
    summarized = runner.run(bundle.summaries).path
    labelled = read_labelled(data)
    trained = labelled.pairs["train"]
    groups: dict[str, list[int]] = {}  # places: five million pairs as objects are 6 GB
    for place, pair in enumerate(trained):
        groups.setdefault(pair.query, []).append(place)
    asked = list(groups)
    if queries is not None and queries < len(asked):
        asked = sorted(random.Random(0).sample(asked, queries))
    # However the query is spelled, and in any split.
    judged_as: dict[str, set[str]] = {same_query(query): set() for query in asked}
    for split in SPLITS:
        for pair in labelled.pairs[split]:
            known = judged_as.get(same_query(pair.query))
            if known is not None:
                known.add(pair.job_id)
    encoder = checkpoint.encoder()
    index = Bm25(labelled.jobs, minable(labelled))
    ranker = load_model(checkpoint, choose_placement(runner.device))
    added: list[Pair] = []
    runner.watcher.begin("mining")
    with contextlib.closing(open_store(bundle.spec.summarize.store, summarized)) as kept:
        bodies = partial(stored_bodies, kept)
        for number, query in enumerate(asked, start=1):
            judged = [trained[place] for place in groups[query]]
            found = unjudged(query, judged_as[same_query(query)], index, mining)
            listed = [*judged, *(judged[0].model_copy(update={"job_id": one}) for one in found)]
            encoded = encode_pairs(listed, encoder, bodies)[0]
            p = probability(query_logits(ranker, encoded)).tolist()
            p_of = dict(zip(encoded.job_ids, p, strict=True))
            added += mistakes(judged, p_of, found, mining)
            runner.watcher.progress(number, len(asked), f"queries, {len(added)} mistakes")

    try:
        shutil.copy2(data / JOBS_FILE, target / f".{JOBS_FILE}")
        everything = itertools.chain(*(labelled.pairs[split] for split in SPLITS), added)
        write_jsonl(target / f".{PAIRS_FILE}", everything)
        for name in (JOBS_FILE, PAIRS_FILE):
            (target / f".{name}").rename(target / name)
    except OSError as error:
        raise DataError(f"cannot write to {target}: {error}", "free space, and repeat") from error
    return {
        "queries": len(asked),
        "mistakes": len(added),
        "queries_with_mistakes": len({pair.query for pair in added}),
        "jobs": str(target / JOBS_FILE),
        "pairs": str(target / PAIRS_FILE),
    }

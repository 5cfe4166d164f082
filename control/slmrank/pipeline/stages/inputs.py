"""What several stages read from their inputs: the checkpoint, and a split's queries as ids."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

from slmrank.artifacts import Artifact
from slmrank.data.labelled import read_labelled
from slmrank.data.records import SPLITS, Job, Pair, Split
from slmrank.data.unlabelled import unlabelled_pairs
from slmrank.model.checkpoint import CHECKPOINT_FOLDER, Checkpoint, open_checkpoint
from slmrank.pipeline.steps import Making
from slmrank.prompt.corpus import EncodedQuery, encode_pairs, full_bodies, stored_bodies
from slmrank.prompt.encoder import PromptEncoder
from slmrank.store.job_store import JobStore
from slmrank.store.registry import open_store

Scores = dict[tuple[str, str], float]  # by query and job id


def checkpoint_of(artifact: Artifact) -> Checkpoint:
    """The checkpoint inside an artifact of kind base, finetuned, pruned or recovered."""
    return open_checkpoint(artifact.path / CHECKPOINT_FOLDER)


def stored_summaries(making: Making) -> contextlib.closing[JobStore]:
    """The store of the input `summaries`."""
    summaries = making.inputs["summaries"]
    url = summaries.manifest["settings"]["store"]
    return contextlib.closing(open_store(url, summaries.path))


def split_queries(
    making: Making,
    checkpoint: Checkpoint,
    split: Split,
    seed: int,
    *,
    unlabelled: int = 0,
    full_tokens: int | None = None,
) -> list[EncodedQuery]:
    """A split's queries on summaries, or on full texts of so many tokens, in an order that the seed
    decides, with so many queries among them that nobody judged."""
    labelled = read_labelled(making.inputs["data"].path)
    pairs: Iterable[Pair] = labelled.pairs[split]
    encoder = checkpoint.encoder(full_tokens)
    if unlabelled:
        known = {pair.query for one in SPLITS for pair in labelled.pairs[one]}
        more = unlabelled_pairs(
            labelled.jobs, pairs, unlabelled, seed, known=known, usable=encoder.takes
        )
        pairs = itertools.chain(pairs, more)
    jobs = labelled.jobs if full_tokens is not None else None
    queries = read_pairs(making, pairs, encoder, jobs)
    random.Random(seed).shuffle(queries)
    return queries


def read_pairs(
    making: Making, pairs: Iterable[Pair], encoder: PromptEncoder, jobs: Mapping[str, Job] | None
) -> list[EncodedQuery]:
    """Pairs on the full texts of these jobs, as far as the encoder takes them, or on summaries."""
    if jobs is not None:
        return encode_pairs(pairs, encoder, partial(full_bodies, encoder, jobs))
    with stored_summaries(making) as store:
        return encode_pairs(pairs, encoder, partial(stored_bodies, store))


def read_in_full(
    making: Making, checkpoint: Checkpoint, tokens: int
) -> Callable[[EncodedQuery], EncodedQuery]:
    """Gives a query with its jobs' full texts, of so many tokens, instead of what it holds."""
    encoder = checkpoint.encoder(tokens)
    jobs = read_labelled(making.inputs["data"].path).jobs

    def in_full(query: EncodedQuery) -> EncodedQuery:
        bodies = full_bodies(encoder, jobs, query.job_ids)
        return replace(query, items=tuple(encoder.item(one).ids for one in bodies))

    return in_full


def take_items(queries: list[EncodedQuery], items: int, per_query: int = 4) -> list[EncodedQuery]:
    """The first queries that together hold `items` items, at most `per_query` of each."""
    taken: list[EncodedQuery] = []
    left = items
    for query in queries:
        if left <= 0:
            break
        taken.append(query.pick(range(min(per_query, left, len(query.items)))))
        left -= len(taken[-1].items)
    return taken

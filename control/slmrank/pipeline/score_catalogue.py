"""Offline scores: every query against its candidates or the whole catalogue. A worker holds the
engine and the summaries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from slmrank.artifacts import ArtifactStore
from slmrank.code_hash import code_hash
from slmrank.data.parquet import reading
from slmrank.data.parts import Part, Place, plan_parts, read_part
from slmrank.errors import ControlError, DataError
from slmrank.model.probability import probability
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.part_runs import run_parts
from slmrank.pipeline.stages.inputs import checkpoint_of
from slmrank.pipeline.steps import run
from slmrank.plugins import load_plugins
from slmrank.prompt.corpus import EncodedQuery
from slmrank.spec.bundle import BundleSpec
from slmrank.store.registry import open_store

PART_QUERIES = 20
ITEMS = 256  # of one pass
# What looks like candidates: lists with texts in them, however deep, as Arrow writes their type
# (`string:` would be a field's name), and these names.
_IDS = re.compile(r"(large_|fixed_size_)?list(_view)?<.*string(_view)?\b(?!:)")
_NAMES = ("job_id", "jobs", "jobs_ids", "candidates")


class ListedQuery(BaseModel):
    """A query and its candidates; without `job_ids` every stored job is one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: str = Field(min_length=1)
    job_ids: list[str] | None = None


class ScoreWorker:
    """Scores the queries of `source` with a bundle's engine. The artifacts must lie at the same
    path on every machine."""

    def __init__(self, spec: dict[str, Any], artifacts: str, source: str) -> None:
        load_plugins()  # a target may be one of them, and this a process of its own
        bundle, store = Bundle(BundleSpec.model_validate(spec)), ArtifactStore(Path(artifacts))
        engine, summaries = run(bundle.engine, store), run(bundle.summaries, store)
        checkpoint = checkpoint_of(run(bundle.final, store))
        self._encoder = checkpoint.encoder()
        self._scorer = bundle.target.open_scorer(engine.path, checkpoint)
        self._store = open_store(bundle.spec.summarize.store, summaries.path)
        self._source = Place(source)
        self.identity = {
            "engine": engine.digest,
            "summaries": summaries.digest,
            "prompt": checkpoint.template.hash,
            "tokenizer": checkpoint.tokenizer_hash,
            "limits": [checkpoint.max_item_tokens, checkpoint.max_query_tokens],
            "code": code_hash(__name__, type(bundle.target).__module__, *bundle.target.server_code),
        }

    def do(self, part: Part, target: Place) -> None:
        import pyarrow as pa

        schema = pa.schema(
            [("query", pa.string()), ("job_id", pa.string()), ("score", pa.float32())]
        )
        row = part.start
        with target.table(part.name, schema) as add:
            for queries in read_part(self._source, part, ListedQuery):
                for one in queries:
                    row += 1
                    for job_ids, scores in self._scores(one, f"{part.file}: row {row}"):
                        columns = [[one.query] * len(job_ids), job_ids, scores]
                        add(pa.table(columns, schema=schema))

    def _scores(
        self, asked: ListedQuery, where: str
    ) -> Iterator[tuple[list[str], list[float | None]]]:
        """Candidates and their scores, in passes; null for a job that is not in the store."""
        try:
            prefix = self._encoder.prefix(asked.query)
        except ControlError as error:
            raise DataError(
                f"{where}: query {asked.query[:60]!r}: {error.message}", error.hint
            ) from error
        names = list(self._store.job_ids()) if asked.job_ids is None else asked.job_ids
        for start in range(0, len(names), ITEMS):
            job_ids = names[start : start + ITEMS]
            bodies = self._store.ids_many(job_ids)
            items = {
                place: self._encoder.item(body).ids
                for place, body in enumerate(bodies)
                # None: not in the store; without ids: of no text, or damaged.
                if body is not None and len(body)
            }
            scores: list[float | None] = [None] * len(job_ids)
            if items:
                names_of = [job_ids[place] for place in items]
                known = EncodedQuery.unjudged(asked.query, prefix, [*items.values()], names_of)
                found = probability(np.asarray(self._scorer(known))).tolist()
                for place, p in zip(items, found, strict=True):
                    scores[place] = p
            yield job_ids, scores


def score_catalogue(
    bundle: Bundle, store: ArtifactStore, queries: str, target: str, **how: Any
) -> dict[str, Any]:
    """Scores of the queries of a Parquet table (`query`, and `job_ids` where they have candidates)
    below `target`; `how` as `run_parts` takes it.

    Raises DataError for a row that is no query, or columns that look like candidates and are not
    named so.
    """
    source = Place(queries)
    _check_columns(source)
    parts = plan_parts(source, PART_QUERIES, cut_groups=True)
    for step in (bundle.engine, bundle.summaries, bundle.final):
        run(step, store)
    # As it was asked for: what is not set decides keys as well.
    spec = bundle.spec.model_dump(mode="json", exclude_unset=True)
    root = str(store.root.resolve())
    return run_parts(partial(ScoreWorker, spec, root, queries), parts, queries, target, **how)


def _check_columns(source: Place) -> None:
    """Raises DataError where a table without `job_ids` has what looks like it: without candidates
    every query is scored against all jobs."""
    for path, *_ in source.files():
        with reading(path), source.open(path) as opened:
            schema = opened.schema_arrow
        if "job_ids" in schema.names:
            continue
        for field in schema:
            if _IDS.match(str(field.type)) or field.name in _NAMES:
                raise DataError(
                    f"{path} has no column job_ids, and {field.name!r} is not read: every query "
                    "would be scored against all jobs",
                    "name the lists of candidates job_ids, or leave that column out for all jobs",
                )

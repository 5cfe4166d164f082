"""`control score-catalogue`: offline scores of many queries."""

from __future__ import annotations

from functools import partial

import click

from slmrank.cli.options import How, Opened, run_options, spec_options
from slmrank.cli.part_runs import part_run_options, show_run
from slmrank.pipeline.score_catalogue import score_catalogue


@click.command("score-catalogue")
@spec_options
@click.option(
    "--queries",
    required=True,
    help="Parquet with a column query, and job_ids (lists) where they have candidates; file, "
    "folder, or url such as s3://bucket/queries",
)
@click.option("--out", required=True, help="folder or url for the scores, part by part")
@part_run_options
@run_options
def score_catalogue_command(
    opened: Opened, queries: str, out: str, where: str, workers: int, how: How
) -> None:
    """Score every query against its candidates, or against all jobs of SPEC, with its engine and
    without a server. The output is Parquet of query, job_id and score, in parts of twenty queries:
    a run that was killed goes on with those that are not finished.

    On a Ray cluster, --artifacts must lie at the same path on every machine.

    \b
    Example:
      control score-catalogue build/demo.yaml --queries queries.parquet --out scores
      control score-catalogue build/demo.yaml --queries s3://b/queries --out s3://b/scores --on ray
    """
    steps = [opened.bundle.engine, opened.bundle.summaries]
    how.plan(opened.store, steps)
    for step in steps:
        opened.run(step, device=how.device)
    work = partial(
        score_catalogue, opened.bundle, opened.store, queries, out, on=where, workers=workers
    )
    show_run("scores", "queries", work, as_json=how.as_json)

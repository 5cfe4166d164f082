"""`control mine`: the ranker's own mistakes as training pairs."""

from __future__ import annotations

from pathlib import Path

import click

from slmrank.cli.display import StepDisplay, print_json
from slmrank.cli.options import Opened, PathType, device_option, json_option, spec_options
from slmrank.data.mining import Mining
from slmrank.pipeline.mine import mine

DEFAULT = Mining()


@click.command("mine")
@spec_options
@click.option("--out", type=PathType, required=True, help="folder for jobs.jsonl and pairs.jsonl")
@click.option("--queries", type=click.IntRange(1), help="a sample of the training queries")
@click.option(
    "--retrieve",
    type=click.IntRange(1),
    default=DEFAULT.retrieve,
    show_default=True,
    help="unjudged jobs that BM25 puts before the ranker, per query",
)
@click.option(
    "--keep",
    type=click.IntRange(1),
    default=DEFAULT.keep,
    show_default=True,
    help="mistakes kept per query, the worst ones",
)
@click.option(
    "--least-p",
    type=click.FloatRange(0, 1),
    default=DEFAULT.least_p,
    show_default=True,
    help="p from which a job is a mistake",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 1),
    default=DEFAULT.margin,
    show_default=True,
    help="how far its p must stay below the best judged job's: closer ones may be right",
)
@device_option
@json_option
def mine_command(
    opened: Opened,
    out: Path,
    queries: int | None,
    retrieve: int,
    keep: int,
    least_p: float,
    margin: float,
    device: str,
    as_json: bool,
) -> None:
    """Find what the fine-tuned ranker of SPEC wrongly likes among the jobs that BM25 retrieves, and
    write its data again with these as pairs of grade 0. Train the next one on them.

    \b
    Example:
      control mine mine.yaml --out mined --queries 2000
      control finetune mine.yaml --set data.jobs=mined/jobs.jsonl --set data.pairs=mined/pairs.jsonl
    """
    mining = Mining(retrieve=retrieve, keep=keep, least_p=least_p, margin=margin)
    with StepDisplay() as display:
        found = mine(
            opened.bundle, opened.store, out, mining, display, queries=queries, device=device
        )
    if as_json:
        print_json(found)
        return
    click.echo(
        f"{found['mistakes']} mistakes on {found['queries_with_mistakes']} of {found['queries']} "
        f"queries\n{found['pairs']}"
    )

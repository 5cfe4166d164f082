"""`control mine`: the ranker's own mistakes as training pairs."""

from __future__ import annotations

from pathlib import Path

import click

from slmrank.cli.display import StepDisplay, show_result
from slmrank.cli.options import How, Opened, PathType, run_options, spec_options
from slmrank.cli.section_options import section_options
from slmrank.data.mining import Mining
from slmrank.pipeline.mine import mine
from slmrank.pipeline.steps import Runner


@click.command("mine")
@spec_options
@click.option("--out", type=PathType, required=True, help="folder for jobs.jsonl and pairs.jsonl")
@click.option("--queries", type=click.IntRange(1), help="a sample of the training queries")
@section_options(Mining)
@run_options
def mine_command(opened: Opened, out: Path, queries: int | None, given: Mining, how: How) -> None:
    """Find what the fine-tuned ranker of SPEC wrongly likes among the jobs that BM25 retrieves, and
    write its data again with these as pairs of grade 0. Train the next one on them.

    \b
    Example:
      control mine mine.yaml --out mined --queries 2000
      control finetune mine.yaml --set data.jobs=mined/jobs.jsonl --set data.pairs=mined/pairs.jsonl
      (and --set data.source=jsonl where the spec reads Parquet)
    """
    how.plan(opened.store, [opened.bundle.finetuned, opened.bundle.summaries])
    with StepDisplay() as display:
        runner = Runner(opened.store, display, how.device)
        found = mine(opened.bundle, out, given, queries, runner)
    told = (
        f"{found['mistakes']} mistakes on {found['queries_with_mistakes']} of {found['queries']} "
        f"queries\n{found['pairs']}"
    )
    show_result(found, told, as_json=how.as_json)

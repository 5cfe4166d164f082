"""`control summarize`: the summaries of a spec's jobs, or of a catalogue of any size."""

from __future__ import annotations

from functools import partial

import click

from slmrank.cli.display import show_artifact, show_plan
from slmrank.cli.options import (
    Opened,
    device_option,
    dry_run_option,
    force_option,
    json_option,
    spec_options,
)
from slmrank.cli.part_runs import part_run_options, show_run
from slmrank.pipeline.catalogue import summarize_catalogue


@click.command("summarize")
@spec_options
@click.option(
    "--jobs",
    "source",
    help="Parquet of other jobs than those of SPEC: file, folder, or url such as s3://bucket/jobs",
)
@click.option("--out", help="folder or url for their summaries, part by part")
@part_run_options
@force_option
@device_option
@dry_run_option
@json_option
def summarize_command(
    opened: Opened,
    source: str | None,
    out: str | None,
    where: str,
    workers: int,
    force: bool,
    device: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Summarise the job descriptions of SPEC under the token budget into the summary store.

    Summaries do not depend on queries. What an earlier run wrote for the same job, summarizer and
    tokenizer is copied.

    With --jobs and --out a catalogue of any size is summarised by the fitted summarizer of SPEC,
    in parts of about a thousand jobs: a run that was killed goes on with those that are not
    finished; `control publish --from` reads them.

    \b
    Example:
      control summarize build/demo.yaml
      control summarize build/demo.yaml --set summarize.budget_tokens=56
      control summarize build/demo.yaml --jobs s3://bucket/jobs --out s3://bucket/summaries --on ray
    """
    if source is None and out is None:
        if dry_run:
            show_plan([opened.bundle.summaries], opened.store, as_json=as_json)
            return
        show_artifact(
            opened.run(opened.bundle.summaries, force=force, device=device), as_json=as_json
        )
        return
    if source is None or out is None:
        raise click.UsageError("--jobs and --out belong together")
    if dry_run:
        show_plan([opened.bundle.summarizer], opened.store, as_json=as_json)
        return
    opened.run(opened.bundle.summarizer, force=force, device=device)
    work = partial(
        summarize_catalogue, opened.bundle, opened.store, source, out, on=where, workers=workers
    )
    show_run("catalogue", "jobs", lambda told: work(told=told), as_json=as_json)

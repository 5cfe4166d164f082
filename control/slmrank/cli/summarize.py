"""`control summarize`: the summaries of a spec's jobs, or of a catalogue of any size."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from slmrank.cli.display import show_artifact, show_result
from slmrank.cli.options import How, Opened, force_option, run_options, source_options
from slmrank.cli.part_runs import part_run_options, show_run
from slmrank.data.parts import Place
from slmrank.pipeline.catalogue import kit_of_bundle, kit_of_repository, summarize_catalogue
from slmrank.pipeline.part_runs import LOCAL


@click.command("summarize")
@source_options
@click.option(
    "--jobs",
    "jobs",
    help="Parquet of other jobs than those of SOURCE: file, folder, or url such as s3://bucket/jobs",
)
@click.option("--out", help="folder or url for their summaries, part by part")
@part_run_options
@force_option
@run_options
def summarize_command(
    source: Opened | Path,
    jobs: str | None,
    out: str | None,
    where: str,
    workers: int,
    force: bool,
    how: How,
) -> None:
    """Summarise the job descriptions of SOURCE, a spec, under the token budget into the summary
    store.

    Summaries do not depend on queries. What an earlier run wrote for the same job, summarizer and
    tokenizer is copied.

    With --jobs and --out a catalogue of any size is summarised by the fitted summarizer of SOURCE,
    which then may be a repository folder as well, in parts of about a thousand jobs: a run that was
    killed goes on with those that are not finished; `control publish --from` reads them.

    \b
    Example:
      control summarize build/demo.yaml
      control summarize build/demo.yaml --set summarize.budget_tokens=56
      control summarize build/demo.yaml --jobs s3://bucket/jobs --out s3://bucket/summaries --on ray
    """
    if (jobs is None) != (out is None):
        raise click.UsageError("--jobs and --out belong together")
    if jobs is None and where != LOCAL:
        raise click.UsageError("--on is for a catalogue: give --jobs and --out")
    if jobs is not None and force:
        raise click.UsageError("--force is for the bundle's own summaries; remove --out instead")
    if jobs is None or out is None:
        if isinstance(source, Path):
            raise click.UsageError("a repository has its summaries; give --jobs and --out")
        how.plan(source.store, [source.bundle.summaries], force=force)
        made = source.run(source.bundle.summaries, force=force, device=how.device)
        show_artifact(made, as_json=how.as_json)
        return
    Place(jobs).files()  # better now than after a summarizer was made
    if isinstance(source, Path):
        if how.dry_run:
            text = f"would summarise {jobs} into {out}, as {source} does"
            plan = {"summarizer": str(source), "jobs": jobs, "out": out}
            show_result({"plan": plan}, text, as_json=how.as_json)
            return
        kit = kit_of_repository(source)
    else:
        how.plan(source.store, [source.bundle.summarizer], force=force)
        source.run(source.bundle.summarizer, force=force, device=how.device)
        kit = kit_of_bundle(source.bundle, source.store)
    work = partial(
        summarize_catalogue, kit, jobs, out, on=where, workers=workers, device=how.device
    )
    show_run("catalogue", "jobs", work, as_json=how.as_json)

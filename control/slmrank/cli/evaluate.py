"""`control evaluate`: the quality table and page."""

from __future__ import annotations

import click

from slmrank.artifacts import write_atomic
from slmrank.cli.display import StepDisplay, print_json, print_table
from slmrank.cli.measured_page import provenance_of
from slmrank.cli.options import How, Opened, run_options, spec_options
from slmrank.data.job_file import JobFile
from slmrank.data.labelled import JOBS_FILE
from slmrank.evaluate.page import (
    QUALITY_COLUMNS,
    compared_with,
    full_text_title,
    kind_table,
    quality_cells,
    quality_page,
    sizes_of,
)
from slmrank.evaluate.table import QualityRow
from slmrank.pipeline.quality import asked_in_training, measure_quality, plan_quality, queries_of
from slmrank.pipeline.score_step import OWN
from slmrank.pipeline.steps import Runner, run


@click.command("evaluate")
@spec_options
@click.option(
    "--on",
    multiple=True,
    metavar="NAME",
    help="evaluate on this set of evaluate.sets instead of the bundle's own pairs; `--set NAME` "
    "means the same; repeatable",
)
@click.option("--served", is_flag=True, help="score the engine row through a real server")
@run_options
def evaluate_command(opened: Opened, on: list[str], served: bool, how: How) -> None:
    """Measure NDCG@10, AUC (grade 4 against 0), MRR, pair order, calibration and mean |dp| of every
    stage of SPEC, and write a page with the worst queries.

    Rows: BM25, with evaluate.dense_baseline a bi-encoder, fine-tuned, recovered, engine, on
    summaries; on SPEC's own pairs also pruned, and base where it is trained here; of a GPU target
    without --served, the engine's weights with reference arithmetic. With
    evaluate.full_text_queries, the fine-tuned model also on the full texts of that many queries.
    Intervals are 95 % bootstrap intervals over queries, differences are paired.

    \b
    Example:
      control evaluate build/demo.yaml
      control evaluate build/demo.yaml --set evaluate.split=dev
      control evaluate build/train.yaml --set onet-titles --served
    """
    plans = {name: plan_quality(opened.bundle, served=served, on=name) for name in on or [OWN]}
    how.plan(opened.store, [step for plan in plans.values() for step in plan.steps])
    results = {}
    for name, plan in plans.items():
        with StepDisplay() as display:
            runner = Runner(opened.store, display, how.device)
            scored, rows, few = measure_quality(opened.bundle, plan, runner)
        data = run(next(iter(plan.rows.values())).inputs["data"], opened.store)
        jobs = JobFile(data.path / JOBS_FILE)
        page = opened.store.root / "reports" / f"quality-{opened.bundle.spec.name}-{name}.html"
        trained_on = 0
        if name != OWN:
            trained_on = asked_in_training(opened.bundle, opened.store, scored[0].listings)
        asked = queries_of(name, opened.bundle.spec.evaluate.split, trained_on)
        title = f"Ranking quality of {opened.bundle.spec.name} on {asked}"
        if not how.as_json:
            show_quality(rows, few, asked)
        told: str | None = str(page)
        try:
            page.parent.mkdir(parents=True, exist_ok=True)
            provenance = provenance_of(opened, plan.steps, how.device)
            write_atomic(page, quality_page(title, rows, scored, jobs, few, provenance))
        except OSError as error:  # a store that others made may be read alone
            click.echo(f"no page was written: {error}", err=True)
            told = None
        results[name] = {
            "rows": rows,
            "full_text": few,
            "page": told,
            "queries_trained_on": trained_on,
        }
        if told is not None and not how.as_json:
            click.echo(f"page: {page}")
    if how.as_json:
        print_json(results[on[0] if on else OWN] if len(results) == 1 else {"sets": results})


def show_quality(rows: list[QualityRow], few: list[QualityRow], asked: str) -> None:
    """The quality tables on stdout; `asked` says of whose queries."""
    title = f"quality on {asked}: {sizes_of(rows[0])}"
    print_table(f"{title} ({compared_with(rows)})", QUALITY_COLUMNS, quality_cells(rows))
    if rows[0].kinds:
        print_table(*kind_table(rows))
    if few:
        print_table(full_text_title(few), QUALITY_COLUMNS, quality_cells(few))

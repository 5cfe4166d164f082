"""`control vary`: one spec with other values, side by side."""

from __future__ import annotations

import click

from slmrank.cli.measured_page import Measurement, measured_options, named_set_option
from slmrank.pipeline.quality import NAMES
from slmrank.pipeline.score_step import Row
from slmrank.pipeline.vary import (
    draw_variants,
    measure_variants,
    plan_variants,
    read_grid,
    reference_step,
    vary_table,
)

NOTE = (
    "The first row is the ranker before pruning. delta: NDCG@10 against it, paired by query. pairs "
    "seen: by the last training. order: share of pairs of different grade in the right order. "
    "|dp|: against the first row. 95 % bootstrap intervals over queries."
)


@click.command("vary")
@click.option(
    "--vary",
    "grid",
    multiple=True,
    required=True,
    metavar="KEY=[V,...]",
    help="values of a key of the spec; repeatable: every combination is made",
)
@click.option(
    "--row",
    type=click.Choice(["finetuned", "pruned", "recovered", "engine"]),
    help="what is scored  [default: recovered, or the last stage that SPEC has]",
)
@named_set_option
@measured_options
def vary_command(asked: Measurement, grid: tuple[str, ...], row: Row | None, named: str) -> None:
    """Make SPEC with other values of some keys, and compare what they rank: steps of recovery,
    pruning in stages, an adapter or all weights, which layers go.

    What has been made is found: a grid that was interrupted, or grew, goes on.

    \b
    Example:
      control vary build/demo.yaml --vary recover.steps=[6,20,60] --set recover.adapter=null
      control vary SPEC --vary prune.stages=[1,3] --vary recover.steps=[60,180]
    """
    bundle = asked.opened.bundle
    kind = bundle.final.kind
    row = row or (kind if kind in NAMES else "finetuned")
    variants = plan_variants(bundle, read_grid(grid), row, named)
    steps = [reference_step(bundle, named), *(one.step for one in variants)]
    asked.plan(asked.opened.store, steps)
    with asked.running() as runner:
        rows = measure_variants(bundle, variants, named, runner)
    keys = "-".join(key.replace(".", "-") for key in variants[0].values)
    asked.show_page(
        f"vary-{bundle.spec.name}-{keys}-{row}-{named}",
        f"{bundle.spec.name} with other values, {asked.queries(named)}: {row}",
        [NOTE],
        vary_table(rows),
        draw_variants(rows),
        rows,
        steps,
    )

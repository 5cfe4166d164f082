"""`control depth-table`: what ranking fewer jobs costs in quality."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from slmrank.cli.display import StepDisplay, show_plan
from slmrank.cli.measured_page import named_set_option, out_option, show_page
from slmrank.cli.options import (
    Opened,
    device_option,
    dry_run_option,
    json_option,
    spec_options,
)
from slmrank.pipeline.depth_table import (
    depth_steps,
    depth_table,
    draw_depth_table,
    measure_depth_table,
)


@click.command("depth-table")
@spec_options
@named_set_option
@out_option
@device_option
@dry_run_option
@json_option
def depth_table_command(
    opened: Opened, named: str, out: Path | None, device: str, dry_run: bool, as_json: bool
) -> None:
    """Measure what ranking depth costs: NDCG@10 when the engine ranks only a share of each query's
    jobs, the best of BM25's first, and the others stay behind them.

    That is what `repository.depth` does under load, and what it costs. Intervals are 95 % bootstrap
    intervals over queries, delta is paired with ranking everything.

    \b
    Example:
      control depth-table build/demo.yaml
      control depth-table build/demo.yaml --on onet-titles
    """
    if dry_run:
        show_plan(depth_steps(opened.bundle, named), opened.store, as_json=as_json)
        return
    with StepDisplay() as display:
        rows = measure_depth_table(opened.bundle, named, opened.store, display, device)
    show_page(
        opened,
        f"depth-{opened.bundle.spec.name}-{named}",
        f"What ranking depth costs: {opened.bundle.spec.name}, {named}",
        [
            "ranked: share of each listing that the engine ranks, in BM25's order; the others stay "
            "behind them. delta: NDCG@10 against ranking everything, paired. order: share of pairs "
            "of different grade in the right order."
        ],
        depth_table(rows),
        draw_depth_table(rows),
        [dataclasses.asdict(row) for row in rows],
        out=out,
        as_json=as_json,
    )

"""`control depth-table`: what ranking fewer jobs costs in quality."""

from __future__ import annotations

import click

from slmrank.cli.measured_page import Measurement, measured_options, named_set_option
from slmrank.pipeline.depth_table import (
    depth_steps,
    depth_table,
    draw_depth_table,
    measure_depth_table,
)


@click.command("depth-table")
@named_set_option
@measured_options
def depth_table_command(asked: Measurement, named: str) -> None:
    """Measure what ranking depth costs: NDCG@10 when the engine ranks only a share of each query's
    jobs, the best of BM25's first, and the others stay behind them.

    That is what `repository.depth` does under load, and what it costs. Intervals are 95 % bootstrap
    intervals over queries, delta is paired with ranking everything.

    \b
    Example:
      control depth-table build/demo.yaml
      control depth-table build/demo.yaml --on onet-titles
    """
    steps = depth_steps(asked.opened.bundle, named)
    asked.plan(asked.opened.store, steps)
    with asked.running() as runner:
        rows = measure_depth_table(asked.opened.bundle, named, runner)
    asked.show_page(
        f"depth-{asked.opened.bundle.spec.name}-{named}",
        f"What ranking depth costs: {asked.opened.bundle.spec.name}, {asked.queries(named)}",
        [
            "ranked: share of each listing that the engine ranks, in BM25's order; the others stay "
            "behind them. delta: NDCG@10 against ranking everything, paired. order: share of pairs "
            "of different grade in the right order."
        ],
        depth_table(rows),
        draw_depth_table(rows),
        rows,
        steps,
    )

"""`control ladder`: from a plain language model to the served engine, rung by rung."""

from __future__ import annotations

import click

from slmrank.cli.measured_page import Measurement, measured_options, named_set_option
from slmrank.pipeline.ladder import (
    draw_ladder,
    is_trained_trimmed,
    ladder_table,
    measure_ladder,
    plan_ladder,
)

NOTES = (
    "One rung changes one thing against the rung before it; all are scored on the same queries. "
    "delta: NDCG@10 against the first rung, paired. order: share of pairs of different grade in "
    "the right order.",
    "items/s: transformers scores all prompts in batches sorted by length; the engine is measured "
    "through a served repository, one listing in flight, and shares a query's prefix among its "
    "jobs. p95: latency of such a listing. times: items/s against transformers in bfloat16; times "
    "engine: against the engine on full texts. MB: weights, or the engine, on disk.",
)
TRIMMED = "All rungs have the vocabulary that training had: {tokens} tokens."


@click.command("ladder")
@named_set_option
@click.option("--items", default=16, type=click.IntRange(1, 512), help="jobs of a listing")
@measured_options
def ladder_command(asked: Measurement, named: str, items: int) -> None:
    """Measure quality, rate and size of every step from the unpruned model on full texts, as
    transformers runs it, to the engine that SPEC serves.

    Needs sections prune and recover, and a target whose engines run here. Full texts are slow on a
    CPU: take a sample of queries with evaluate.queries, or evaluate.set_queries for a named set.
    What was measured is kept: an interrupted ladder goes on where it was.

    \b
    Example:
      control ladder build/demo.yaml
      control ladder build/demo.yaml --on onet-titles --set evaluate.set_queries=40
    """
    rungs = plan_ladder(asked.opened.bundle)
    steps = [rung.scores(named) for rung in rungs]
    asked.plan(asked.opened.store, steps)
    trim = asked.opened.bundle.spec.trim
    trimmed = []
    if trim is not None and is_trained_trimmed(asked.opened.bundle):
        trimmed.append(TRIMMED.format(tokens=trim.tokens))
    with asked.running() as runner:
        rows = measure_ladder(rungs, named, items, runner, lambda line: click.echo(line, err=True))
    asked.show_page(
        f"ladder-{asked.opened.bundle.spec.name}-{named}",
        f"The ladder of {asked.opened.bundle.spec.name}, {asked.queries(named)}",
        [*NOTES, *trimmed],
        ladder_table(rows),
        draw_ladder(rows),
        rows,
        steps,
    )

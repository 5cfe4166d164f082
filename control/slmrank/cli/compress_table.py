"""`control compress-table`: what each summarizer costs at equal budgets."""

from __future__ import annotations

import click

from slmrank.cli.measured_page import Measurement, measured_options, named_set_option
from slmrank.cli.options import sizes_from
from slmrank.pipeline.compress_table import (
    compress_table,
    draw_compress_table,
    measure_compress_table,
    plan_compress_table,
)
from slmrank.spec.bundle import BundleSpec

METHODS = "lead,stopwords,salience,ranker"
BUDGETS = "36,56,96,128"


def _names(_ctx: click.Context, _option: click.Parameter, value: str) -> list[str]:
    names = list(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    if not names:
        raise click.BadParameter("names no summarizer")
    return names


@click.command("compress-table")
@named_set_option
@click.option("--methods", default=METHODS, callback=_names, help="summarizers, by name")
@click.option("--budgets", default=BUDGETS, callback=sizes_from(8), help="tokens of a summary")
@click.option(
    "--scorer",
    type=click.Choice(["finetuned", "recovered", "engine"]),
    default="engine",
    help="stage of SPEC whose ranker reads the texts",
)
@click.option(
    "--own-ranker",
    is_flag=True,
    help="also train SPEC's ranker on full texts, and score them with it: dear",
)
@measured_options
def compress_table_command(
    asked: Measurement,
    named: str,
    methods: list[str],
    budgets: list[int],
    scorer: str,
    own_ranker: bool,
) -> None:
    """Compare summarizers at equal budgets: tokens removed, quality against full texts, and what a
    summary costs.

    One ranker of SPEC, frozen, reads every text: the one that was trained on SPEC's own summaries.
    It is no judge of what full texts hold: --own-ranker trains another one on these.
    Full texts are cut at evaluate.full_text_tokens only. Intervals are 95 % bootstrap intervals
    over queries; delta is paired with full text. How many queries: evaluate.queries, of a named set
    evaluate.set_queries.

    \b
    Example:
      control compress-table build/demo.yaml --budgets 36,56
      control compress-table build/demo.yaml --on onet-titles --methods salience,ranker
    """
    cells = plan_compress_table(
        asked.opened.bundle,
        scorer,  # type: ignore[arg-type]
        methods,
        budgets,
        named,
        own_ranker=own_ranker,
    )
    steps = [cell.step for cell in cells]
    asked.plan(asked.opened.store, steps)
    with asked.running() as runner:
        rows = measure_compress_table(asked.opened.bundle, cells, runner)
    note = (
        f"One ranker ({scorer}), {trained_on(asked.opened.bundle.spec, scorer)}, reads every text. "
        "removed: share of the descriptions' tokens. delta: NDCG@10 against full text, paired. "
        "order: share of pairs of different grade in the right order. |dp|: against full text."
    )
    asked.show_page(
        f"compress-{asked.opened.bundle.spec.name}-{named}",
        f"What summaries cost: {asked.opened.bundle.spec.name}, {asked.queries(named)}",
        [note],
        compress_table(rows),
        draw_compress_table(rows),
        rows,
        steps,
    )


def trained_on(spec: BundleSpec, scorer: str) -> str:
    """What texts the ranker at a stage has seen, in words."""
    trained = spec.finetune if scorer == "finetuned" else spec.recover or spec.finetune
    if trained is None:
        return "not trained here"
    if trained.text == "full":
        return f"trained on full texts of {trained.text_tokens} tokens"
    own = spec.summarize
    return f"trained on summaries of method {own.method} with {own.budget_tokens} tokens"

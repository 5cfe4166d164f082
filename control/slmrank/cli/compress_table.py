"""`control compress-table`: what each summarizer costs at equal budgets."""

from __future__ import annotations

from pathlib import Path

import click

from slmrank.cli.display import StepDisplay, print_json, print_table, show_plan
from slmrank.cli.options import (
    Opened,
    PathType,
    device_option,
    dry_run_option,
    json_option,
    spec_options,
)
from slmrank.cli.provenance import provenance_of
from slmrank.pipeline.compress_table import (
    CompressRow,
    compress_table,
    draw_compress_table,
    measure_compress_table,
    plan_compress_table,
)
from slmrank.pipeline.score_step import OWN
from slmrank.table_page import TablePage, write_table_page

METHODS = "lead,stopwords,salience,ranker"
BUDGETS = "36,56,96,128"


def _names(_ctx: click.Context, _option: click.Parameter, value: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))


def _sizes(ctx: click.Context, option: click.Parameter, value: str) -> list[int]:
    try:
        sizes = [int(part) for part in _names(ctx, option, value)]
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no list of whole numbers, as 36,56") from error
    if not sizes or min(sizes) < 8:
        raise click.BadParameter(f"{value!r}: a budget has 8 tokens or more")
    return sizes


@click.command("compress-table")
@spec_options
@click.option(
    "--on", "named", default=OWN, metavar="NAME", help="a set of evaluate.sets  [default: own]"
)
@click.option(
    "--methods", default=METHODS, show_default=True, callback=_names, help="summarizers, by name"
)
@click.option(
    "--budgets", default=BUDGETS, show_default=True, callback=_sizes, help="tokens of a summary"
)
@click.option(
    "--scorer",
    type=click.Choice(["finetuned", "recovered", "engine"]),
    default="engine",
    show_default=True,
    help="stage of SPEC whose ranker reads the texts",
)
@click.option("--out", type=PathType, help="folder of page, plot and figures  [default: reports]")
@device_option
@dry_run_option
@json_option
def compress_table_command(
    opened: Opened,
    named: str,
    methods: list[str],
    budgets: list[int],
    scorer: str,
    out: Path | None,
    device: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Compare summarizers at equal budgets: tokens removed, quality against full texts, and what a
    summary costs.

    One ranker of SPEC, frozen, reads every text: the one that was trained on SPEC's own summaries.
    Full texts are cut at evaluate.full_text_tokens only. Intervals are 95 % bootstrap intervals
    over queries; delta is paired with full text. How many queries: evaluate.queries, of a named set
    evaluate.set_queries.

    \b
    Example:
      control compress-table build/demo.yaml --budgets 36,56
      control compress-table build/demo.yaml --on onet-titles --methods salience,ranker
    """
    cells = plan_compress_table(opened.bundle, scorer, methods, budgets, named)  # type: ignore[arg-type]
    if dry_run:
        show_plan([cell.step for cell in cells], opened.store, as_json=as_json)
        return
    with StepDisplay() as display:
        rows = measure_compress_table(opened.bundle, cells, opened.store, display, device)
    name = f"compress-{opened.bundle.spec.name}-{named}"
    page = _page(opened, rows, named, scorer)
    figures = {"rows": [row.as_dict() for row in rows], "provenance": dict(page.provenance)}
    written = write_table_page(out or opened.store.root / "reports", name, page, figures)
    if as_json:
        print_json({**figures, "page": str(written)})
        return
    print_table(*compress_table(rows))
    click.echo(f"page: {written}")


def _page(opened: Opened, rows: list[CompressRow], on: str, scorer: str) -> TablePage:
    own = opened.bundle.spec.summarize
    return TablePage(
        title=f"What summaries cost: {opened.bundle.spec.name}, {on}",
        notes=[
            f"One ranker ({scorer}), trained on summaries of method {own.method} with "
            f"{own.budget_tokens} tokens, reads every text. removed: share of the descriptions' "
            "tokens. delta: NDCG@10 against full text, paired. order: share of pairs of different "
            "grade in the right order. |dp|: against full text.",
        ],
        tables=[compress_table(rows)],
        plot=draw_compress_table(rows),
        provenance=provenance_of(opened),
    )

"""What verbs share that measure one table and write it as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from slmrank import __version__
from slmrank.cli.display import print_json, print_table
from slmrank.cli.options import Opened, PathType
from slmrank.html_page import Table
from slmrank.load.evidence import host_facts, machine_line
from slmrank.pipeline.score_step import OWN
from slmrank.table_page import TablePage, write_table_page

named_set_option = click.option(
    "--on", "named", default=OWN, metavar="NAME", help="a set of evaluate.sets  [default: own]"
)
out_option = click.option(
    "--out", type=PathType, help="folder of page, plot and figures  [default: reports]"
)


def show_page(
    opened: Opened,
    name: str,
    title: str,
    notes: Sequence[str],
    table: Table,
    plot: bytes,
    rows: Sequence[Any],
    *,
    out: Path | None,
    as_json: bool,
) -> None:
    """Write the page NAME of a table, and print the table, or as JSON its `rows` (dataclasses)."""
    provenance = _provenance(opened)
    page = TablePage(title=title, notes=notes, tables=[table], plot=plot, provenance=provenance)
    figures: dict[str, Any] = {"rows": rows, "provenance": provenance}
    written = write_table_page(out or opened.store.root / "reports", name, page, figures)
    if as_json:
        print_json({**figures, "page": str(written)})
        return
    print_table(*table)
    click.echo(f"page: {written}")


def _provenance(opened: Opened) -> dict[str, str]:
    """Spec, artifacts and machine, as text."""
    bundle = opened.bundle
    return {
        "spec": f"{bundle.spec.name} ({opened.path.name})",
        "slmrank": __version__,
        "data": bundle.data.key,
        "fine-tuned": bundle.finetuned.key,
        "served": f"checkpoint {bundle.final.key}, engine {bundle.engine.key}",
        "machine": machine_line(host_facts()),
    }

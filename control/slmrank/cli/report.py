"""`control report`: a page over one sweep record, or the comparison of two."""

from __future__ import annotations

from pathlib import Path

import click

from slmrank.cli.display import show_result
from slmrank.cli.options import PathType, json_option
from slmrank.load.page import write_report
from slmrank.load.record import read_record


@click.command("report")
@click.argument("records", type=PathType, nargs=-1, required=True)
@click.option("--out", type=PathType, help="folder of the report  [default: beside the record]")
@json_option
def report_command(records: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write report.html (one page, plots inside), the plots as PNG and report.md, from the record
    of `control sweep` and `control slo`. With two records, also their ratios, second over first.

    \b
    Example:
      control report artifacts/sweeps/demo-1a2b3c4d.json
      control report before.json after.json --out comparison
    """
    if len(records) > 2:
        raise click.UsageError(f"{len(records)} records given, a report takes one or two")
    read = [read_record(path) for path in records]
    first = records[0]
    name = first.stem if first.suffix else f"{first.name}-report"
    if len(records) > 1:
        name += f"-against-{records[1].stem}"
    folder = out or first.with_name(name)
    paths = [str(path) for path in write_report(folder, read)]
    show_result({"files": paths}, *paths, as_json=as_json)

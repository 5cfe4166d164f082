"""The report: one HTML page that needs nothing beside it, the plots, and a Markdown summary."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from slmrank.artifacts import write_atomic
from slmrank.html_page import Table, html_page, html_table
from slmrank.load.compare import Comparison, compare
from slmrank.load.figures import cell_name, cell_of, draw, in_order, load_name, rate_text, title_of
from slmrank.load.perf_result import percentile_cell
from slmrank.load.record import Record
from slmrank.machine.host import machine_line
from slmrank.table_page import markdown_table, time_span

PAGE, SUMMARY = "report.html", "report.md"
_CAPTIONS = {
    "latency-throughput": "p95 latency by throughput, one line for each kind of request",
    "items-per-second": "best throughput of each kind of request",
    "stage-times": "mean time of a request by stage",
    "pareto": "throughput against p95 latency",
}


def write_report(folder: Path, records: Sequence[Record]) -> list[Path]:
    """Write `report.html`, `report.md` and the PNGs of one record, or of two and their comparison,
    into `folder`; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    plots: list[dict[str, bytes]] = []
    for number, record in enumerate(records, start=1):
        images = draw(record)
        plots.append(images)
        for name, image in images.items():
            path = folder / (f"{name}.png" if len(records) == 1 else f"{name}-{number}.png")
            path.write_bytes(image)
            written.append(path)
    compared = compare(records[0], records[1]) if len(records) == 2 else None
    write_atomic(folder / PAGE, _html(records, plots, compared))
    write_atomic(folder / SUMMARY, _markdown(records, compared))
    return [folder / PAGE, folder / SUMMARY, *written]


def point_table(record: Record) -> Table:
    """Every point, those without numbers with their reason."""
    rows = []
    for point in sorted(record["points"], key=in_order):
        name = [cell_name(cell_of(point)), load_name(point["load"])]
        if not point["stable"]:
            first = (point.get("reason") or "").partition("\n")[0][:80]
            told = point["verdict"] + (f": {first}" if first else "")
            rows.append([*name, *["-"] * 6, told])
            continue
        joined = point.get("requests_per_execution", {}).get("ranker")
        figures = [rate_text(point["items_per_s"]), str(point["requests"])]
        figures += [percentile_cell(point, percentile) for percentile in (50, 95, 99)]
        rows.append([*name, *figures, f"{joined:.1f}" if joined else "-", point["verdict"]])
    columns = ["request", "load", "items/s", "requests", "p50 ms", "p95 ms", "p99 ms"]
    columns += ["requests per execution", "verdict"]
    return "Points", columns, rows


def slo_table(record: Record) -> Table:
    """Rates at the objective, per replica: one server with all its instances."""
    rows = []
    for cell in record["slo"]:
        name = [cell_name(cell_of(cell)), f"p{cell['percentile']} <= {cell['limit_ms']:g} ms"]
        if cell["items_per_s"] is None:
            rows.append([*name, "none holds", "-", "-"])
            continue
        low, high = cell["items_per_s_range"]
        fast, slow = cell["latency_ms_range"]
        figure = f"{rate_text(cell['items_per_s'])} [{rate_text(low)}, {rate_text(high)}]"
        rows.append([*name, f"{cell['rate']:g}", figure, f"{fast:.0f} to {slow:.0f}"])
    columns = ["request", "objective", "requests/s", "items/s per replica", "confirmed ms"]
    return "Highest rate at the objective (open loop)", columns, rows


def comparison_tables(compared: Comparison) -> list[Table]:
    rows = []
    for one in compared.ratios:
        rates = [rate_text(one.first), rate_text(one.second)]
        found = (one.items_per_s, one.p95)
        rows.append([one.name, *rates, *("-" if x is None else f"{x:.2f}" for x in found)])
    if compared.median is not None:
        spread = f"{compared.median:.2f} [{compared.low:.2f}, {compared.high:.2f}]"
        rows.append(["median and range of the ratios", "", "", spread, ""])
    columns = ["point", "first items/s", "second items/s", "ratio", "ratio of p95"]
    alone = " and ".join(
        f"{count} of the {which} alone"
        for count, which in zip(compared.alone, ("first", "second"), strict=True)
        if count
    )
    title = "Second over first, the same points" + (f" (beside {alone})" if alone else "")
    tables: list[Table] = [(title, columns, rows)]
    if compared.slo:
        slo = [
            [
                name,
                *("none holds" if rate is None else rate_text(rate) for rate in (a, b)),
                f"{b / a:.2f}" if a and b else "-",
                "yes" if apart else "no",
            ]
            for name, a, b, apart in compared.slo
        ]
        named = ["request and objective", "first", "second", "ratio", "told apart"]
        tables.append(("Second over first, items/s at the objective", named, slo))
    return tables


def provenance(record: Record) -> list[str]:
    """What was measured, with what, where."""
    served, host = record["served"], record["host"]
    names = ("engine", "checkpoint", "summaries", "prompt_hash", "settings")
    hashes = ", ".join(f"{name} {served[name]}" for name in names if name in served)
    measured = time_span(filter(None, (point.get("created") for point in record["points"])))
    lines = [
        f"served: {hashes}" + (f" at {record['server']}" if record.get("server") else ""),
        *([f"measured: {measured}"] if measured else []),
        f"tool: perf_analyzer, {record['perf_analyzer'] or 'none yet'}",
        f"machine: {machine_line(host)}",
    ]
    if record["drift"] is not None:
        lines.append(
            f"drift: the first point again at the end gave {record['drift']:.2f} of its rate"
        )
    return lines


def _tables(record: Record) -> list[Table]:
    return [slo_table(record), point_table(record)] if record["slo"] else [point_table(record)]


def _html(
    records: Sequence[Record], plots: Sequence[dict[str, bytes]], compared: Comparison | None
) -> str:
    parts: list[str] = []
    if compared is not None:
        parts += [html_table(table) for table in comparison_tables(compared)]
    for number, (record, images) in enumerate(zip(records, plots, strict=True), start=1):
        if len(records) > 1:
            parts.append(f"<h1>{number}: {escape(title_of(record))}</h1>")
        parts += [f'<p class="note">{escape(line)}</p>' for line in provenance(record)]
        tables = _tables(record)
        if record["slo"]:
            parts.append(html_table(tables[0]))
        for plot, image in images.items():
            data = base64.b64encode(image).decode()
            caption = escape(_CAPTIONS[plot])
            parts.append(
                f'<h2>{caption}</h2><img alt="{caption}" src="data:image/png;base64,{data}">'
            )
        parts.append(html_table(tables[-1]))
    return html_page(" against ".join(title_of(record) for record in records), parts)


def _markdown(records: Sequence[Record], compared: Comparison | None) -> str:
    def table(one: Table) -> str:
        title, columns, rows = one
        return f"## {title}\n\n{markdown_table(columns, rows)}"

    parts = [f"# {' against '.join(title_of(record) for record in records)}"]
    if compared is not None:
        parts += map(table, comparison_tables(compared))
    for record in records:
        if len(records) > 1:
            parts.append(f"# {title_of(record)}")
        parts.append("\n".join(f"- {line}" for line in provenance(record)))
        parts += map(table, _tables(record))
    return "\n\n".join(parts) + "\n"

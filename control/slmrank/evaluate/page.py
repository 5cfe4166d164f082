"""The quality page: tables, the reliability curve, quality by kind of query, and the worst queries
of the last row, each with its listing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from slmrank.data.records import Job
from slmrank.evaluate.metrics import Interval, Listing, ndcg_at_10, reliability
from slmrank.evaluate.table import QualityRow, ScoredRow
from slmrank.html_page import Table, html_page, html_provenance, html_table
from slmrank.pyplot import COLORS

WORST = 20
_COMPARED = ("parameters", "prompt tokens", "NDCG@10", "delta", "AUC 4 v 0")
QUALITY_COLUMNS = ("row", "text", *_COMPARED, "MRR", "order", "ECE", "|dp|")


# A row's figures as text, by the name of their column.
_FIGURES: Mapping[str, Callable[[QualityRow], str]] = {
    "parameters": lambda row: f"{row.parameters / 1e6:.1f}M" if row.parameters else "-",
    "prompt tokens": lambda row: f"{row.prompt_tokens:.0f}" if row.prompt_tokens else "-",
    "NDCG@10": lambda row: shown(row.ndcg10),
    "delta": lambda row: shown(row.delta_ndcg10, signed=True),
    "AUC 4 v 0": lambda row: shown(row.auc),
    "delta AUC": lambda row: shown(row.delta_auc, signed=True),
    "order": lambda row: shown(row.order),
    "delta order": lambda row: shown(row.delta_order, signed=True),
    "|dp|": lambda row: f"{row.mean_abs_dp:.3f}" if row.mean_abs_dp is not None else "-",
}


def figures_of(row: QualityRow, columns: Iterable[str]) -> list[str]:
    """The cells of these columns of a comparison."""
    return [_FIGURES[name](row) for name in columns]


def sizes_of(row: QualityRow) -> str:
    """What a comparison was made on."""
    return f"{row.queries} queries, {row.pairs} pairs"


def compared_with(rows: Sequence[QualityRow]) -> str:
    """What the differences of a quality table are from."""
    reference = next(row.name for row in rows if row.delta_ndcg10 is None)
    return f"delta and |dp| against '{reference}'"


def full_text_title(few: Sequence[QualityRow]) -> str:
    """Of the small table: what the model makes of full texts."""
    return (
        f"full text against summaries, {sizes_of(few[0])} "
        "(the model was trained on summaries; delta and |dp| against the first row)"
    )


def quality_cells(rows: Sequence[QualityRow], *, intervals: bool = False) -> list[list[str]]:
    """The cells of QUALITY_COLUMNS; `intervals` also of the last ones, for which a terminal has no
    room."""

    def short(figure: Interval | None) -> str:
        return shown(figure) if intervals or figure is None else _known(figure.value)

    return [
        [
            row.name,
            row.text,
            *figures_of(row, _COMPARED),
            *map(short, (row.mrr, row.order, row.ece)),
            *figures_of(row, ["|dp|"]),
        ]
        for row in rows
    ]


def shown(interval: Interval | None, *, signed: bool = False) -> str:
    """A figure with its interval, as text."""
    if interval is None or math.isnan(interval.value):
        return "-"
    form = "+.3f" if signed else ".3f"
    if math.isnan(interval.low):
        return f"{interval.value:{form}}"
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def interval_bars(axes: Any, at: Sequence[Any], values: Sequence[Interval], **style: Any) -> None:
    """Values over the places `at`, with their intervals as bars."""
    below = [one.value - one.low for one in values]
    above = [one.high - one.value for one in values]
    axes.errorbar(at, [one.value for one in values], yerr=[below, above], capsize=3, **style)


def _known(value: float) -> str:
    """A figure, or that nothing in the pairs can tell it."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def kind_table(rows: Sequence[QualityRow]) -> Table:
    """NDCG@10 and AUC of every row by kind of query; no rows where the pairs name no kind."""
    cells = [
        [kind, str(of.queries), f"{row.name}, {row.text}", shown(of.ndcg10), shown(of.auc)]
        for kind in rows[0].kinds
        for row in rows
        for of in [row.kinds[kind]]
    ]
    return "by kind of query", ["kind", "queries", "row", "NDCG@10", "AUC"], cells


def quality_page(
    title: str,
    rows: Sequence[QualityRow],
    scored: Sequence[ScoredRow],
    jobs: Mapping[str, Job],
    few: Sequence[QualityRow],
    provenance: Mapping[str, str],
) -> str:
    """The page as HTML. `rows` are the figures of `scored`, in the same order; `few` those of the
    small table on full texts."""
    note = (
        f"{sizes_of(rows[0])}; {compared_with(rows)}. Intervals: 95 %, bootstrap over "
        "queries; differences on the same resamples. order: share of pairs of different grade in "
        "the right order. ECE: p against the judged p (a target, or grade / 4), ten bins."
    )
    parts = [f'<p class="note">{escape(note)}</p>']
    more = ("delta AUC", "delta order")
    shown_tables = [("Quality", rows), *([(full_text_title(few), few)] if few else [])]
    for name, table in shown_tables:
        cells = [
            [*cells, *figures_of(row, more)]
            for row, cells in zip(table, quality_cells(table, intervals=True), strict=True)
        ]
        parts.append(html_table((name, (*QUALITY_COLUMNS, *more), cells)))
    kinds = kind_table(rows)
    if kinds[2]:
        parts.append(html_table(kinds))
    curves = [
        (f"{one.name}, {one.text}", reliability(one.listings))
        for one in scored
        if one.probabilistic
    ]
    parts.append("<h2>Reliability: mean judged p by mean p</h2>" + _reliability_plot(curves))
    worst = scored[-1]
    tables = worst_tables(worst.listings, jobs)
    parts.append(f"<h2>The worst {len(tables)} queries of: {escape(worst.name)}</h2>")
    parts += [html_table(one) for one in tables]
    return html_page(title, [*parts, html_provenance(provenance)])


def worst_tables(listings: Sequence[Listing], jobs: Mapping[str, Job]) -> list[Table]:
    """The listings of lowest NDCG@10, best score first."""
    values = [(ndcg_at_10(one), place) for place, one in enumerate(listings)]
    order = sorted((value, place) for value, place in values if not math.isnan(value))
    tables: list[Table] = []
    for value, place in order[:WORST]:
        one = listings[place]
        ranked = np.argsort(-one.scores, kind="stable")
        cells = [
            [
                f"{one.scores[item]:.4f}",
                f"{one.grades[item]:.0f}",
                jobs[one.job_ids[item]].title or one.job_ids[item],
            ]
            for item in ranked
        ]
        kind = f", {one.kind}" if one.kind else ""
        tables.append(
            (f"{one.query} (NDCG@10 {value:.3f}{kind})", ["score", "grade", "job"], cells)
        )
    return tables


def _reliability_plot(curves: Sequence[tuple[str, list[tuple[float, float, int]]]]) -> str:
    """An SVG: the diagonal is perfect calibration; a dot's area is its share of the pairs."""
    size, edge = 360, 46
    names = []

    def at(x: float, y: float) -> tuple[float, float]:
        return edge + x * size, edge + (1 - y) * size

    lines = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        (x, bottom), (left, y) = at(tick, 0), at(0, tick)
        lines.append(
            f'<text x="{x:.0f}" y="{bottom + 18:.0f}" text-anchor="middle">{tick:g}</text>'
        )
        lines.append(f'<text x="{left - 8:.0f}" y="{y + 4:.0f}" text-anchor="end">{tick:g}</text>')
    middle, below = edge + size / 2, 2 * edge + size - 4
    for x, y, turn, axis in ((middle, below, 0, "mean p"), (12, middle, -90, "mean judged p")):
        lines.append(
            f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="middle" '
            f'transform="rotate({turn} {x:.0f} {y:.0f})">{axis}</text>'
        )
    (x0, y0), (x1, y1) = at(0, 0), at(1, 1)
    lines.append(
        f'<rect x="{x0}" y="{y1}" width="{size}" height="{size}" fill="none" stroke="#999"/>'
    )
    lines.append(
        f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="#999" stroke-dasharray="4"/>'
    )
    for number, (name, points) in enumerate(curves):
        colour = COLORS[number % len(COLORS)]
        total = max(sum(count for _, _, count in points), 1)
        places = [at(p, target) for p, target, _ in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        for (x, y), (_, _, count) in zip(places, points, strict=True):
            radius = 2 + 10 * math.sqrt(count / total)
            lines.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}" '
                'fill-opacity="0.35"/>'
            )
        names.append(f'<span style="color:{colour}">\u25cf</span> {escape(name)}')
    width, height = size + 2 * edge, size + 2 * edge
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" font-size="13" '
        f'font-family="system-ui, sans-serif" role="img">{"".join(lines)}</svg>'
        f"<p>{'<br>'.join(names)}</p>"
    )

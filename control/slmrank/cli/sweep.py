"""`control sweep` and `control slo`: throughput, latency, and the rate at an objective."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import click

from slmrank.artifacts import Artifact
from slmrank.cli.display import StepDisplay, print_json, print_table, show_plan, show_result
from slmrank.cli.options import (
    Decorated,
    Opened,
    dry_run_option,
    force_option,
    json_option,
    spec_options,
)
from slmrank.errors import SweepError
from slmrank.html_page import Table
from slmrank.load.figures import rate_text
from slmrank.load.perf_result import percentile_cell
from slmrank.load.record import read_record
from slmrank.load.run import estimate_s
from slmrank.load.session import Session
from slmrank.load.slo import search_s
from slmrank.pipeline.measure import open_bundle_session
from slmrank.pipeline.steps import find_current


def _session_options(function: Decorated) -> Any:
    """SPEC and its options, the server that is measured, --force, --dry-run and --json, given to
    the command as `session`, `dry_run` and `as_json`. A dry run that lacks the repository shows
    what makes it, and ends."""

    @spec_options
    @click.option("--url", help="measure this running server instead of starting one")
    @click.option("--metrics-url", help="metrics page of that server, as http://host:8002/metrics")
    @force_option
    @dry_run_option
    @json_option
    @functools.wraps(function)
    def command(
        opened: Opened,
        url: str | None,
        metrics_url: str | None,
        force: bool,
        dry_run: bool,
        as_json: bool,
    ) -> None:
        if metrics_url is not None and url is None:
            raise click.UsageError("--metrics-url is of a running server: give its --url too")
        bundle, store = opened.bundle, opened.store
        needed = (bundle.repository, bundle.data)
        if dry_run and any(find_current(one, store) is None for one in needed):
            show_plan(needed, store, as_json=as_json)
            return
        with StepDisplay() as display:
            session = open_bundle_session(bundle, store, display, url=url, metrics_url=metrics_url)
        function(session=replace(session, again=force), dry_run=dry_run, as_json=as_json)

    return command


@click.command("sweep")
@_session_options
def sweep_command(session: Session, dry_run: bool, as_json: bool) -> None:
    """Drive the repository of SPEC with the real perf_analyzer: one process per point, over items
    per request x tokens per item x query tokens x load (section sweep). Points that are done are
    skipped.

    Throughput and percentiles are recomputed from the exported requests inside the stable windows
    and compared with the tool's own figure. An open-loop point that sent less than 99 % of its rate
    has no number. The first point is measured again at the end, as a drift check.

    \b
    Example:
      control sweep build/demo.yaml
      control sweep build/demo.yaml --set sweep.items=[1,32] --set sweep.concurrency=[1,4]
      control sweep build/demo.yaml --set sweep.concurrency=[] --set sweep.rates=[4,8]
    """
    if dry_run:
        _show_tasks(session, as_json=as_json)
        return
    points, path = session.sweep(announce)
    drift = read_record(path)["drift"]
    if as_json:
        shown = [_entry(point) for point in points]
        served = dict(session.subject.identity)
        print_json({"served": served, "points": shown, "drift": drift, "record": str(path)})
    else:
        show_points(points)
        if drift is not None:
            click.echo(f"drift: the first point again at the end, {drift:.2f} of its rate")
        click.echo(f"record: {path} (control report {path})")
    refuse_failed(points)


@click.command("slo")
@_session_options
def slo_command(session: Session, dry_run: bool, as_json: bool) -> None:
    """Find the highest rate of Poisson arrivals at which a latency percentile stays under the
    objective (sweep.slo of SPEC), for each kind of request: items x tokens x query tokens.

    Short runs show where to look, confirmation runs of 100 times the objective and 5 times
    sweep.slo.requests decide: five to ten minutes for each kind of request at 500 ms, longer where
    under 8 requests a second are answered. Each run is kept, so an interrupted search goes on.

    \b
    Example:
      control slo build/demo.yaml --set sweep.items=[8] --set sweep.slo.latency_ms=300
    """
    if dry_run:
        slo = session.spec.slo
        cells = [
            {"cell": task.point.cell, "state": "cached" if known else "to be searched"}
            for task, known in zip(session.cells, session.searched, strict=True)
        ]
        seconds = sum(known is None for known in session.searched) * search_s(
            slo, session.spec.window_ms
        )
        title = f"p{slo.percentile} <= {slo.latency_ms:g} ms, at least {seconds:.0f} s"
        table = (title, ["cell", "state"], [list(cell.values()) for cell in cells])
        plan = {"plan": cells, "limit_ms": slo.latency_ms, "estimate_s": seconds}
        show_result(plan, table, as_json=as_json)
        return
    found, path = session.slo(lambda text: click.echo(text, err=True))
    cells_found = [dict(artifact.figures) for artifact in found]
    value = {"served": dict(session.subject.identity), "slo": cells_found, "record": str(path)}
    show_result(value, slo_table(cells_found), f"record: {path}", as_json=as_json)


def announce(number: int, total: int, name: str) -> None:
    """Progress of a sweep on stderr."""
    click.echo(f"sweep {number}/{total} {name}", err=True)


def refuse_failed(points: list[Artifact]) -> None:
    """Raises SweepError where the tool itself failed at a point."""
    failed = [point for point in points if point.figures["verdict"] == "failed"]
    if failed:
        reason = str(failed[0].figures["reason"]).splitlines()[0]
        raise SweepError(f"{len(failed)} points failed: {reason}", "run the sweep again")


def show_points(points: list[Artifact]) -> None:
    """The sweep table on stdout, and on stderr why a point has no figures."""
    rows, notes = [], []
    for artifact in points:
        point, figures = artifact.manifest["settings"]["point"], artifact.figures
        load = point["load"]
        sign = "" if load["kind"] == "concurrency" else "/s"
        tokens = point["tokens"] or f"~{figures['mean_item_tokens']:.0f}"
        query = str(point["query_tokens"] or "-")
        cell = [str(point["items"]), str(tokens), query, f"{load['level']:g}{sign}"]
        if not figures["stable"]:
            rows.append([*cell, *["-"] * 9, figures["verdict"]])
            reason = str(figures.get("reason", "")).partition("\n")[0]
            kind = f"{cell[0]} items, {cell[1]} tokens, query {query}, load {cell[3]}"
            notes.append(f"{kind}: {reason}")
            continue
        stage = figures["stages_us"]
        times = [
            f"{stage[name]['compute'] / 1000:.1f}" if name in stage else "-"
            for name in ("prepare", "ranker")
        ]
        queue = f"{stage['ranker']['queue'] / 1000:.1f}" if "ranker" in stage else "-"
        rates = [rate_text(figures[name]) for name in ("items_per_s", "requests_per_s")]
        waits = [percentile_cell(figures, percentile) for percentile in (50, 95, 99)]
        count = str(figures["requests"])
        rows.append([*cell, *rates, count, *waits, *times, queue, figures["verdict"]])
    columns = ["items", "tokens", "query", "load", "items/s", "req/s", "requests", "p50 ms"]
    columns += ["p95 ms", "p99 ms", "prepare ms", "ranker ms", "queue ms", "verdict"]
    version = points[0].manifest["versions"]["perf_analyzer"] if points else ""
    print_table(f"sweep with perf_analyzer ({version})", columns, rows)
    for note in notes:
        click.echo(note, err=True)


def slo_table(cells: list[dict[str, Any]]) -> Table:
    """The table of rates at the objective."""
    rows = []
    for cell in cells:
        kind = [
            str(cell["items"]),
            str(cell["tokens"] or "stored"),
            str(cell["query_tokens"] or "-"),
        ]
        if cell["rate"] is None or cell["items_per_s_range"] is None:
            rows.append([*kind, "none holds", "-", "-", "-", str(cell["runs"])])
            continue
        low, high = cell["items_per_s_range"]
        fast, slow = cell["latency_ms_range"]
        rate = f"{rate_text(cell['items_per_s'])} [{rate_text(low)}, {rate_text(high)}]"
        failed = f"{cell['failed_at']:g}" if cell["failed_at"] else "-"
        waits = f"{fast:.0f} to {slow:.0f}"
        rows.append([*kind, f"{cell['rate']:g}", rate, waits, failed, str(cell["runs"])])
    title = f"p{cells[0]['percentile']} <= {cells[0]['limit_ms']:g} ms" if cells else "no cell"
    columns = ["items", "tokens", "query", "requests/s", "items/s per replica"]
    columns += ["confirmed ms", "failed at", "runs"]
    return f"highest rate with {title}, open loop", columns, rows


def _show_tasks(session: Session, *, as_json: bool) -> None:
    pending = session.pending
    seconds = estimate_s(pending)
    points = [
        {"point": task.point.name, "state": "to be measured" if task in pending else "cached"}
        for task in session.tasks
    ]
    title = f"{len(pending)} of {len(points)} points to measure, about {seconds:.0f} s"
    table = (title, ["point", "state"], [list(point.values()) for point in points])
    show_result({"plan": points, "estimate_s": seconds}, table, as_json=as_json)


def _entry(artifact: Artifact) -> dict[str, object]:
    point = artifact.manifest["settings"]["point"]
    return {
        **{name: point[name] for name in ("items", "tokens", "query_tokens", "load")},
        **artifact.figures,
        "path": str(artifact.path),
    }

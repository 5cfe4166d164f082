"""`control autoscale`: what an autoscaling policy would do to real traffic, before it does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from slmrank.artifacts import write_atomic
from slmrank.cli.display import json_text, show_result
from slmrank.cli.options import PathType, artifacts_option, json_option
from slmrank.cli.section_options import section_options
from slmrank.deploy.autoscale.figure import draw_comparison
from slmrank.deploy.autoscale.simulate import Result, best, compare, find_floor
from slmrank.deploy.autoscale.situation import Situation, open_trace, plan_situation
from slmrank.deploy.release import RELEASE_FILE, load_release
from slmrank.html_page import Table
from slmrank.load.capacity import FORMULAS
from slmrank.pyplot import new_figure
from slmrank.spec.load import SimulateSpec

DEFAULT_RELEASE = Path("k8s/base") / RELEASE_FILE


@click.group("autoscale")
def autoscale_command() -> None:
    """Try autoscaling policies on traffic before a cluster does.

    \b
    Example:
      control autoscale simulate --trace burst --load 160 --burst 3 --cold-start 90
    """


@autoscale_command.command("simulate", short_help="Compare policies on a traffic trace")
@click.argument("release", type=PathType, default=DEFAULT_RELEASE)
@section_options(SimulateSpec)
@click.option("--history", type=PathType, help="CSV of an earlier day, for the scheduled policy")
@click.option("--find-floor", "search", is_flag=True, help="also search the least floor for it")
@click.option("--plot/--no-plot", default=True, help="draw the comparison")
@artifacts_option
@json_option
def simulate_command(
    release: Path,
    given: SimulateSpec,
    history: Path | None,
    search: bool,
    plot: bool,
    artifacts: Path,
    as_json: bool,
) -> None:
    """Replay traffic against autoscaling policies, each request through cold starts, queues and
    refusals, and report what share meets the objective and what it costs. Capacity, objective,
    target and scaling behaviour come from RELEASE (k8s/base/release.yaml); the HPA is a port of
    the real one.

    \b
    Example:
      control autoscale simulate --trace burst --load 160 --burst 3 --cold-start 90 --find-floor
      control autoscale simulate --trace monday.csv --history sunday.csv
    """
    if plot:  # better now than after the simulation
        new_figure()
    loaded = load_release(release / RELEASE_FILE if release.is_dir() else release)
    trace = open_trace(given, history)
    situation, plan = plan_situation(loaded, given, trace)
    console = Console(stderr=True, emoji=False)

    def report_progress(note: str) -> None:
        console.print(f"{trace.name}: {note} ...", markup=False, highlight=False)

    results, outcomes = compare(situation, trace, report_progress)
    report: dict[str, Any] = {
        "trace": {
            "name": trace.name,
            "hours": trace.seconds / 3600,
            "base": plan.load,
            "peak": float(trace.rates.max()),
        },
        "release": loaded.hash,
        "objective": {"percentile": loaded.percentile, "limit_ms": loaded.latency_ms},
        "capacity_items_per_s": loaded.capacity.items_per_s,
        "target_items_per_s": situation.target_items_per_s,
        "simulated": given.settings(),
        "service_ms": situation.service_s * 1000,
        "queue": situation.queue,
        "queue_timeout_s": situation.queue_timeout_s,
        "policies": results,
        "floor_by_formula": plan.as_dict(),
    }
    found = None
    if search:
        found, tried = find_floor(situation, trace, given.attainment, report_progress)
        report |= {"floor_by_search": found, "floors_tried": tried}
    folder = artifacts / "autoscale"
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", trace.name)
    write_atomic(folder / f"{name}.json", json_text(report) + "\n")
    if plot:
        image = folder / f"{name}.png"
        image.write_bytes(draw_comparison(trace, outcomes, situation))
        report["plot"] = str(image)
    told = _words(report, results, situation, given.attainment)
    if search:
        most = max(floor for floor, _ in report["floors_tried"])
        text = f"no floor up to {most} does" if found is None else f"{found} replicas"
        share = f"{100 * given.attainment:.4g}% with floor, shedding and pending (searched)"
        told.append(f"least floor for {share}: {text}")
    drawn = f", plot: {report['plot']}" if plot else ""
    told.append(f"report: {folder / f'{name}.json'}{drawn}")
    show_result(report, *told, as_json=as_json)


def _words(
    report: dict[str, Any], results: list[Result], situation: Situation, attainment: float
) -> list[str | Table]:
    within = f"within {situation.limit_s * 1000:g} ms"
    columns = ["policy", "floor", within, "refused", "p99", "ranked", "NDCG@10", "replica hours"]
    table = (
        f"{report['trace']['name']}, {report['trace']['hours']:g} h, {results[0].requests} "
        f"requests of {situation.items} items, {report['trace']['base']:.0f} to "
        f"{report['trace']['peak']:.0f} items/s, cold start {situation.cold_start_s:g} s",
        [*columns, "most"],
        [
            [
                one.policy,
                str(one.floor),
                f"{one.within:.2%}",
                f"{one.refused:.2%}",
                f"{one.p99_s:.2f} s",
                f"{one.ranked:.1%}",
                "-" if one.ndcg is None else f"{one.ndcg:.3f}",
                f"{one.replica_hours:.1f}",
                str(one.most_replicas),
            ]
            for one in results
        ],
    )
    cheapest = best(results, attainment)
    told = "none of them" if cheapest is None else f"{cheapest.policy}, the cheapest that does"
    floor = report["floor_by_formula"]["floor"]
    return [
        table,
        f"floor for this burst and cold start: {floor} replicas, by",
        *(f"  {formula}" for formula in FORMULAS[:2]),
        f"{100 * attainment:.4g}% within the objective: {told}",
    ]

"""`control autoscale`: what an autoscaling policy would do to real traffic, before it does."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from slmrank.artifacts import write_atomic
from slmrank.cli.display import json_text, print_json, print_table
from slmrank.cli.options import PathType, artifacts_option, json_option
from slmrank.deploy.autoscale.figure import draw_comparison
from slmrank.deploy.autoscale.hpa import parse_behavior
from slmrank.deploy.autoscale.simulate import (
    Result,
    Situation,
    best,
    compare,
    find_floor,
    service_for,
)
from slmrank.deploy.autoscale.traces import HOURS, KINDS, Trace, make_trace, read_trace
from slmrank.deploy.release import RELEASE_FILE, load_release
from slmrank.deploy.scaling import behavior
from slmrank.errors import DataError
from slmrank.load.capacity import FORMULAS, plan_capacity

DEFAULT_RELEASE = Path("k8s/base") / RELEASE_FILE
POSITIVE = click.FloatRange(min=0, min_open=True)


@click.group("autoscale")
def autoscale_command() -> None:
    """Try autoscaling policies on traffic before a cluster does.

    \b
    Example:
      control autoscale simulate --trace burst --load 160 --burst 3 --cold-start 90
    """


@autoscale_command.command("simulate", short_help="Compare policies on a traffic trace")
@click.argument("release", type=PathType, default=DEFAULT_RELEASE)
@click.option(
    "--trace",
    "source",
    default="diurnal",
    show_default=True,
    help=f"{', '.join(KINDS)}, or a CSV with the columns seconds and items_per_s",
)
@click.option("--history", type=PathType, help="CSV of an earlier day, for the scheduled policy")
@click.option("--load", type=POSITIVE, default=160.0, show_default=True, help="base items/s")
@click.option(
    "--burst",
    type=click.FloatRange(min=1),
    default=3.0,
    show_default=True,
    help="largest load over the base load",
)
@click.option("--hours", type=POSITIVE, help="length of a made trace  [default: 24, burst, ramp 2]")
@click.option(
    "--cold-start",
    "cold_start_s",
    type=click.FloatRange(min=0),
    default=90.0,
    show_default=True,
    help="seconds from the decision until a new replica serves",
)
@click.option(
    "--items", type=click.IntRange(min=1), default=4, show_default=True, help="jobs in a request"
)
@click.option(
    "--service-ms",
    type=POSITIVE,
    help="time of a request in an idle replica  [default: what just meets the objective at the "
    "capacity]",
)
@click.option(
    "--jitter",
    type=click.FloatRange(0, 2),
    default=0.1,
    show_default=True,
    help="spread of that time, standard deviation over mean",
)
@click.option(
    "--queue",
    type=click.IntRange(min=1),
    help="waiting requests of a replica above which it refuses  [default: the release's]",
)
@click.option(
    "--floor",
    type=click.IntRange(min=1),
    help="minimum of the floor policies  [default: by the formula of `control capacity`]",
)
@click.option(
    "--max",
    "maximum",
    type=click.IntRange(min=1),
    help="most replicas  [default: enough for the peak]",
)
@click.option(
    "--attainment",
    type=click.FloatRange(0.5, 1),
    default=0.99,
    show_default=True,
    help="share of requests that must meet the objective",
)
@click.option("--find-floor", "search", is_flag=True, help="also search the least floor for it")
@click.option("--seed", type=int, default=0, show_default=True, help="seed of load and arrivals")
@click.option("--plot/--no-plot", default=True, show_default=True, help="draw the comparison")
@artifacts_option
@json_option
def simulate_command(
    release: Path,
    source: str,
    history: Path | None,
    load: float,
    burst: float,
    hours: float | None,
    cold_start_s: float,
    items: int,
    service_ms: float | None,
    jitter: float,
    queue: int | None,
    floor: int | None,
    maximum: int | None,
    attainment: float,
    search: bool,
    seed: int,
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
    given = load_release(release)
    trace = _trace(source, history, load=load, burst=burst, hours=hours, seed=seed)
    capacity = given.capacity.items_per_s
    limit_s = given.latency_ms / 1000
    base, peak = _base_and_peak(trace, load if source in KINDS else None)
    plan = plan_capacity(
        load=base,
        burst=max(1.0, peak / base),
        cold_start_s=cold_start_s,
        ramp_s=0.0 if source in ("burst", *_files(source)) else trace.seconds / 3,
        per_instance=capacity,
    )
    service_s = (
        service_ms / 1000
        if service_ms is not None
        else service_for(capacity, items, limit_s, given.percentile)
    )
    if service_s > limit_s:
        raise DataError(
            f"a request takes {service_s * 1000:.0f} ms alone, the objective is "
            f"{given.latency_ms:g} ms",
            "correct --service-ms or the objective",
        )
    scaling = given.deploy.scaling
    needed = math.ceil(peak / (capacity * scaling.target_share)) + 1
    situation = Situation(
        capacity_items_per_s=capacity,
        items=items,
        limit_s=limit_s,
        service_s=service_s,
        jitter=jitter,
        cold_start_s=cold_start_s,
        queue=queue or given.max_queue_size,
        queue_timeout_s=given.queue_timeout_us / 1e6,
        target_share=scaling.target_share,
        pending=scaling.pending,
        floor=floor or plan.floor,
        maximum=maximum or needed,
        behavior=parse_behavior(behavior(given)),
        seed=seed,
    )
    console = Console(stderr=True)

    def told(note: str) -> None:
        console.print(f"{trace.name}: {note} ...", markup=False, highlight=False)

    results, outcomes = compare(situation, trace, told)
    found, tried = find_floor(situation, trace, attainment, told) if search else (None, [])
    report: dict[str, Any] = {
        "trace": {"name": trace.name, "hours": trace.seconds / 3600, "base": base, "peak": peak},
        "release": given.hash,
        "objective": {"percentile": given.percentile, "limit_ms": given.latency_ms},
        "capacity_items_per_s": capacity,
        "items": items,
        "service_ms": service_s * 1000,
        "cold_start_s": cold_start_s,
        "target_share": scaling.target_share,
        "queue": situation.queue,
        "queue_timeout_s": situation.queue_timeout_s,
        "seed": seed,
        "policies": [one.as_dict() for one in results],
        "floor_by_formula": plan.as_dict(),
    }
    if search:
        report |= {"attainment": attainment, "floor_by_search": found, "floors_tried": tried}
    folder = artifacts / "autoscale"
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", trace.name)
    write_atomic(folder / f"{name}.json", json_text(report) + "\n")
    if plot:
        image = folder / f"{name}.png"
        image.write_bytes(draw_comparison(trace, outcomes, situation))
        report["plot"] = str(image)
    if as_json:
        print_json(report)
        return
    _show(report, results, situation, attainment)
    if search:
        text = "no floor up to the peak does" if found is None else f"{found} replicas"
        click.echo(f"least floor for {attainment:.0%} with the shipped policy (searched): {text}")
    click.echo(f"report: {folder / f'{name}.json'}" + (f", plot: {report['plot']}" if plot else ""))


def _trace(
    source: str,
    history: Path | None,
    *,
    load: float,
    burst: float,
    hours: float | None,
    seed: int,
) -> Trace:
    if source in KINDS:
        length = hours or HOURS[source]
        return make_trace(source, load=load, burst=burst, hours=length, seed=seed)
    path = Path(source)
    if not path.is_file():
        raise DataError(
            f"--trace {source!r} is neither a file nor one of {', '.join(KINDS)}",
            "give a CSV with the columns seconds and items_per_s",
        )
    return read_trace(path, history)


def _files(source: str) -> tuple[str, ...]:
    return () if source in KINDS else (source,)


def _base_and_peak(trace: Trace, load: float | None) -> tuple[float, float]:
    """Ordinary and largest load: given for a made trace, median and maximum of a file."""
    ordered = sorted(trace.rates.tolist())
    median = ordered[len(ordered) // 2]
    return max(load if load is not None else median, 1e-9), ordered[-1]


def _show(
    report: dict[str, Any], results: list[Result], situation: Situation, attainment: float
) -> None:
    limit = f"{situation.limit_s * 1000:g} ms"
    print_table(
        f"{report['trace']['name']}, {report['trace']['hours']:g} h, {results[0].requests} "
        f"requests of {situation.items} items, {report['trace']['base']:.0f} to "
        f"{report['trace']['peak']:.0f} items/s, cold start {situation.cold_start_s:g} s",
        ["policy", "floor", f"within {limit}", "refused", "p99", "replica hours", "most"],
        [
            [
                one.policy,
                str(one.floor),
                f"{one.within:.2%}",
                f"{one.refused:.2%}",
                f"{one.p99_s:.2f} s",
                f"{one.replica_hours:.1f}",
                str(one.most_replicas),
            ]
            for one in results
        ],
    )
    plan = report["floor_by_formula"]
    click.echo(f"floor for this burst and cold start: {plan['floor']} replicas, by")
    for formula in FORMULAS[:2]:
        click.echo(f"  {formula}")
    cheapest = best(results, attainment)
    told = "none of them" if cheapest is None else f"{cheapest.policy}, the cheapest that does"
    click.echo(f"{attainment:.0%} within the objective: {told}")

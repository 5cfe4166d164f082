"""`control capacity`: replicas for a load, from the rate at the objective."""

from __future__ import annotations

from pathlib import Path

import click
import yaml

from slmrank.cli.display import show_result
from slmrank.cli.options import POSITIVE, PathType, json_option
from slmrank.cli.section_options import section_options
from slmrank.load.capacity import FORMULAS, plan_capacity, slowest_cell
from slmrank.load.figures import rate_text
from slmrank.load.record import read_record
from slmrank.spec.deploy import ScalingSpec


@click.command("capacity")
@click.argument("record", type=PathType)
@click.option("--load", type=POSITIVE, required=True, help="items per second to be served")
@section_options(ScalingSpec, "burst", "cold_start_s", "ramp_s")
@click.option("--items", type=click.IntRange(1), help="only cells of this many items a request")
@click.option("--tokens", type=click.IntRange(1), help="only cells of this many tokens an item")
@click.option("--latency-ms", type=POSITIVE, help="only rates that were searched with this limit")
@click.option("--percentile", type=click.IntRange(1, 99), help="only rates of this percentile")
@json_option
def capacity_command(
    record: Path,
    load: float,
    given: ScalingSpec,
    items: int | None,
    tokens: int | None,
    latency_ms: float | None,
    percentile: int | None,
    as_json: bool,
) -> None:
    """Turn the rate that `control slo` found (RECORD) into replicas: the floor that carries a burst
    while new replicas start, the peak, and the autoscaler's target. The slowest kind of request
    that was measured counts, by the lower end of its spread. The formulas are printed, and the
    section deploy.scaling with which the manifests follow them.

    \b
    Example:
      control capacity artifacts/sweeps/demo-1a2b3c4d.json --load 500 --burst 2 --cold-start 90
    """
    chosen = {"items": items, "tokens": tokens, "limit_ms": latency_ms, "percentile": percentile}
    wanted = {name: value for name, value in chosen.items() if value is not None}
    cell = slowest_cell(read_record(record), str(record), wanted)
    plan = plan_capacity(load, cell["items_per_s_range"][0], given)
    low, high = cell["items_per_s_range"]
    kind = f"{cell['items']} items of {cell['tokens'] or 'stored'} tokens a request"
    least = rate_text(low)
    text = yaml.safe_dump({"deploy": {"scaling": plan.deploy_scaling()}}, sort_keys=False)
    show_result(
        {"cell": cell, "capacity": plan.as_dict()},
        f"measured: {least} to {rate_text(high)} items/s per replica at",
        f"  p{cell['percentile']} <= {cell['limit_ms']:g} ms, {kind}; {least} counts",
        f"asked: {load:g} items/s, bursts of {given.burst:g}x within {given.ramp_s:g} s, "
        f"cold start {given.cold_start_s:g} s",
        *(f"  {formula}" for formula in FORMULAS),
        f"reached before new replicas serve: {plan.reached:.2f}x the load",
        f"floor (min replicas): {plan.floor}",
        f"peak (max replicas):  {plan.peak}",
        f"autoscaler target:    {rate_text(plan.target)} items/s per replica",
        "in the spec:",
        *(f"  {line}" for line in text.splitlines()),
        as_json=as_json,
    )

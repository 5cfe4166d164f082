"""`control capacity`: replicas for a load, from the rate at the objective."""

from __future__ import annotations

from pathlib import Path

import click

from slmrank.cli.display import print_json
from slmrank.cli.options import PathType, json_option
from slmrank.errors import SweepError
from slmrank.load.capacity import FORMULAS, plan_capacity
from slmrank.load.record import read_record


@click.command("capacity")
@click.argument("record", type=PathType)
@click.option("--load", type=float, required=True, help="items per second to be served")
@click.option(
    "--burst", type=float, default=1.5, show_default=True, help="largest load over the load"
)
@click.option(
    "--cold-start",
    "cold_start_s",
    type=float,
    default=60.0,
    show_default=True,
    help="seconds until a new replica serves",
)
@click.option(
    "--ramp",
    "ramp_s",
    type=float,
    default=0.0,
    show_default=True,
    help="seconds in which a burst grows to its full size; 0: at once",
)
@click.option("--items", type=int, help="which cell of the record, if it holds several")
@click.option("--tokens", type=int, help="which cell of the record, if it holds several")
@json_option
def capacity_command(
    record: Path,
    load: float,
    burst: float,
    cold_start_s: float,
    ramp_s: float,
    items: int | None,
    tokens: int | None,
    as_json: bool,
) -> None:
    """Turn the rate that `control slo` found (RECORD) into replicas: the floor that carries a burst
    while new replicas start, the peak, and an autoscaler's target. The lower end of the measured
    spread counts. The formulas are printed.

    \b
    Example:
      control capacity artifacts/sweeps/demo-1a2b3c4d.json --load 500 --burst 2 --cold-start 90
    """
    measured = read_record(record)
    cells = [
        one
        for one in measured["slo"]
        if one["items_per_s_range"]
        and (items is None or one["items"] == items)
        and (tokens is None or one["tokens"] == tokens)
    ]
    if not cells:
        raise SweepError(
            f"{record} holds no rate at an objective for this cell", "run `control slo` first"
        )
    if len(cells) > 1:
        names = ", ".join(f"items {one['items']} tokens {one['tokens']}" for one in cells)
        raise SweepError(
            f"{record} holds {len(cells)} cells: {names}", "choose one with --items and --tokens"
        )
    cell = cells[0]
    plan = plan_capacity(
        load=load,
        burst=burst,
        cold_start_s=cold_start_s,
        ramp_s=ramp_s,
        per_instance=cell["items_per_s_range"][0],
    )
    if as_json:
        print_json({"cell": cell, "capacity": plan.as_dict()})
        return
    low, high = cell["items_per_s_range"]
    kind = f"{cell['items']} items of {cell['tokens'] or 'stored'} tokens a request"
    click.echo(f"measured: {low:.1f} to {high:.1f} items/s per instance at")
    click.echo(f"  p{cell['percentile']} <= {cell['limit_ms']:g} ms, {kind}; {low:.1f} counts")
    click.echo(
        f"asked: {load:g} items/s, bursts of {burst:g}x within {ramp_s:g} s, "
        f"cold start {cold_start_s:g} s"
    )
    for formula in FORMULAS:
        click.echo(f"  {formula}")
    click.echo(f"reached before new replicas serve: {plan.reached:.2f}x the load")
    click.echo(f"floor (min replicas): {plan.floor}")
    click.echo(f"peak (max replicas):  {plan.peak}")
    click.echo(f"autoscaler target:    {plan.target:.1f} items/s per replica")

"""`control tune`: the repository's settings with the best rate at the objective."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import click

from slmrank.artifacts import write_atomic
from slmrank.cli.display import StepDisplay, print_json, print_table
from slmrank.cli.options import (
    artifacts_option,
    dry_run_option,
    json_option,
    open_bundle,
    spec_argument,
)
from slmrank.cli.sweep import Axes, prepare_sweep, search_slo
from slmrank.errors import SweepError
from slmrank.load.record import FOLDER
from slmrank.load.tune import Candidate, Settings, default_axes, descend, overlay, winner
from slmrank.pipeline.bundle import Bundle

EXPOSED = ("instances", "threads", "max_queue_delay_us", "max_batch_size")


@click.command("tune")
@spec_argument
@click.option(
    "--axis",
    "chosen",
    multiple=True,
    metavar="NAME=V1,V2",
    help=f"try these values of a setting ({', '.join(EXPOSED)})  [default: by the cores]",
)
@artifacts_option
@dry_run_option
@json_option
def tune_command(
    spec: Path, chosen: tuple[str, ...], artifacts: Path, dry_run: bool, as_json: bool
) -> None:
    """Search instances, threads, queue delay and batch size of the repository of SPEC for the most
    items/s at the objective (sweep.slo), one setting after the other. A change must beat the
    spread of what it replaces. Writes a spec overlay that extends SPEC.

    \b
    Example:
      control tune build/demo.yaml
      control tune build/demo.yaml --axis threads=1,2 --axis max_queue_delay_us=0,2000
    """
    bundle, store = open_bundle(spec, artifacts)
    given = bundle.spec.repository.settings()
    start: Settings = {name: int(given[name]) for name in EXPOSED}
    axes = _axes(chosen) or default_axes(len(os.sched_getaffinity(0)), start)
    if dry_run:
        plan = {name: [start[name], *values] for name, values in axes.items()}
        if as_json:
            print_json({"plan": plan})
        else:
            rows = [[name, ", ".join(map(str, values))] for name, values in plan.items()]
            print_table("would try", ["setting", "from, values"], rows)
        return

    def measure(settings: Settings) -> Candidate:
        click.echo("try " + _told(settings), err=True)
        repository = bundle.spec.repository.model_copy(update=settings)
        tried = Bundle(bundle.spec.model_copy(update={"repository": repository}))
        display = StepDisplay()
        with contextlib.closing(display):
            axes = Axes(concurrency=(1,), rates=())
            plan, server = prepare_sweep(tried, store, display, axes)
        slo = tried.spec.sweep.slo
        cells, _ = search_slo(tried, plan, store, server, slo.latency_ms, slo.percentile)
        medians = [one.items_per_s for one in cells]
        ranges = [one.items_per_s_range for one in cells if one.items_per_s_range is not None]
        if any(one is None for one in medians):
            return Candidate(settings=settings, items_per_s=None, low=None, high=None)
        return Candidate(
            settings=settings,
            items_per_s=sum(one for one in medians if one is not None),
            low=sum(low for low, _ in ranges),
            high=sum(high for _, high in ranges),
        )

    found = list(descend(start, axes, measure))
    best = winner(found)
    if best.items_per_s is None:
        raise SweepError("no setting meets the objective at any rate", "raise sweep.slo.latency_ms")
    path = store.root / FOLDER / f"{bundle.spec.name}-tuned.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    slo = bundle.spec.sweep.slo
    evidence = {
        "objective": f"p{slo.percentile} <= {slo.latency_ms:g} ms",
        "winner": _figure(best),
        "before": f"{_figure(found[0])} with {_told(start)}",
        "tried": len(found),
    }
    base = os.path.relpath(spec.resolve(), path.parent.resolve())
    write_atomic(path, overlay(base, best.settings, evidence))
    if as_json:
        tried = [{"settings": one.settings, "items_per_s": one.items_per_s} for one in found]
        print_json({"best": best.settings, "tried": tried, "overlay": str(path)})
        return
    rows = [[*(str(one.settings[name]) for name in EXPOSED), _figure(one)] for one in found]
    title = f"items/s of one server at p{slo.percentile} <= {slo.latency_ms:g} ms, all cells"
    print_table(title, [*EXPOSED, "items/s"], rows)
    click.echo(f"best: {_told(best.settings)}; overlay: {path}")


def _axes(chosen: tuple[str, ...]) -> dict[str, list[int]]:
    axes = {}
    for text in chosen:
        name, _, values = text.partition("=")
        try:
            if name not in EXPOSED:
                raise ValueError
            axes[name] = [int(one) for one in values.split(",")]
        except ValueError as error:
            raise click.UsageError(
                f"--axis {text!r} is not NAME=V1,V2 with NAME one of {', '.join(EXPOSED)}"
            ) from error
    return axes


def _told(settings: Settings) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _figure(one: Candidate) -> str:
    if one.items_per_s is None:
        return "none holds"
    return f"{one.items_per_s:.1f} [{one.low:.1f}, {one.high:.1f}]"

"""`control tune`: the repository's settings with the best rate at the objective."""

from __future__ import annotations

import click

from slmrank.artifacts import write_atomic
from slmrank.cli.display import StepDisplay, show_result
from slmrank.cli.options import Opened, dry_run_option, json_option, spec_options
from slmrank.engine.targets.base import InProcessTarget
from slmrank.errors import SweepError
from slmrank.load.figures import rate_text
from slmrank.load.record import FOLDER
from slmrank.load.session import NOT_MEASURED
from slmrank.load.tune import Candidate, Settings, default_axes, descend, winner
from slmrank.machine.facts import usable_cores
from slmrank.pipeline.measure import measure_settings
from slmrank.spec.reading import change_spec

EXPOSED = ("instances", "threads", "max_queue_delay_us", "max_batch_size")


@click.command("tune")
@spec_options
@click.option(
    "--axis",
    "chosen",
    multiple=True,
    metavar="NAME=V1,V2",
    help=f"try these values of a setting ({', '.join(EXPOSED)})  [default: by the cores]",
)
@dry_run_option
@json_option
def tune_command(opened: Opened, chosen: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Search instances, threads, queue delay and batch size of the repository of SPEC for the most
    items/s at the objective (sweep.slo), one setting after the other. A change must hold
    more than what its rival did not; each setting takes as long as `control slo` does. Writes a
    spec overlay that extends SPEC.

    \b
    Example:
      control tune build/demo.yaml
      control tune build/demo.yaml --axis threads=1,2 --axis max_queue_delay_us=0,2000
    """
    bundle, store = opened.bundle, opened.store
    given = bundle.spec.repository.settings()
    start: Settings = {name: int(given[name]) for name in EXPOSED}
    asked = _axes(chosen)
    axes = asked or default_axes(usable_cores(), start)
    if not isinstance(bundle.target, InProcessTarget):
        # Its engine runs in a server of its own, which counts instances and threads by itself.
        if refused := sorted({"instances", "threads"}.intersection(asked)):
            raise click.UsageError(f"target {bundle.target.name} has no {' and no '.join(refused)}")
        axes = {name: one for name, one in axes.items() if name not in ("instances", "threads")}
    for name, values in axes.items():
        for value in values:  # better refused now than after others were measured
            change_spec(bundle.spec, {"repository": {name: value}})
    path = store.root / FOLDER / f"{bundle.spec.name}-tuned.yaml"
    opened.refuse_own_file(path)
    if dry_run:
        plan = {name: list(dict.fromkeys([start[name], *values])) for name, values in axes.items()}
        rows = [[name, ", ".join(map(str, values))] for name, values in plan.items()]
        table = ("would try", ["setting", "from, values"], rows)
        show_result({"plan": plan}, table, as_json=as_json)
        return

    def measure(settings: Settings) -> Candidate:
        click.echo("try " + _words(settings), err=True)
        with StepDisplay() as display:
            return measure_settings(
                bundle, settings, store, display, lambda text: click.echo(text, err=True)
            )

    found = list(descend(start, axes, measure, usable_cores()))
    best = winner(found)
    if best.items_per_s is None:
        raise SweepError("no setting meets the objective at any rate", "raise sweep.slo.latency_ms")
    path.parent.mkdir(parents=True, exist_ok=True)
    slo = bundle.spec.sweep.slo
    objective = f"p{slo.percentile} <= {slo.latency_ms:g} ms"
    evidence = {
        "objective": objective,
        "winner": _figure(best),
        "before": f"{_figure(found[0])} with {_words(start)}",
        "tried": len(found),
    }
    told = ["Written by `control tune`; use it like any other spec."]
    told += [f"{name}: {value}" for name, value in evidence.items()]
    left_out = [name for name in NOT_MEASURED if getattr(bundle.spec.repository, name) is not None]
    if left_out:
        told.append(f"measured without repository.{' and '.join(left_out)}, which stays on")
    changes = {"repository": dict(sorted(best.settings.items()))}
    write_atomic(path, opened.overlay(path, told, changes))
    figures = ("settings", "items_per_s", "low", "high")
    tried = [{name: getattr(one, name) for name in figures} for one in found]
    report = {"objective": objective, "best": best.settings, "tried": tried, "overlay": str(path)}
    rows = [[*(str(one.settings[name]) for name in EXPOSED), _figure(one)] for one in found]
    table = (f"items/s of one server at {objective}, all cells", [*EXPOSED, "items/s"], rows)
    text = f"best: {_words(best.settings)}; overlay: {path}"
    show_result(report, table, text, as_json=as_json)


def _axes(chosen: tuple[str, ...]) -> dict[str, list[int]]:
    axes: dict[str, list[int]] = {}
    for text in chosen:
        name, _, values = text.partition("=")
        try:
            if name not in EXPOSED:
                raise ValueError
            asked = [int(value) for value in values.split(",")]
            axes[name] = list(dict.fromkeys([*axes.get(name, ()), *asked]))
        except ValueError as error:
            raise click.UsageError(
                f"--axis {text!r} is not NAME=V1,V2 with NAME one of {', '.join(EXPOSED)}"
            ) from error
    return axes


def _words(settings: Settings) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _figure(candidate: Candidate) -> str:
    if candidate.items_per_s is None:
        return "none holds"
    low, high = rate_text(candidate.low or 0.0), rate_text(candidate.high or 0.0)
    return f"{rate_text(candidate.items_per_s)} [{low}, {high}]"

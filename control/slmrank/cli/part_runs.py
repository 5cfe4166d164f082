"""What verbs share that work on a big table part by part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from slmrank.cli.display import StepDisplay, show_result
from slmrank.cli.options import Decorated
from slmrank.errors import SpecError
from slmrank.pipeline.part_runs import LOCAL, RAY


def _place(_context: click.Context, _option: click.Parameter, value: str) -> str:
    if value not in (LOCAL, RAY) and not value.startswith("ray://"):
        raise SpecError(f"--on {value!r} is no place to run", "give local, ray or ray://HOST:PORT")
    return value


def part_run_options(function: Decorated) -> Any:
    """`--on`, given as `where`, and `--workers`."""
    workers = click.IntRange(1)
    function = click.option("--workers", type=workers, default=2, help="actors of Ray")(function)
    return click.option(
        "--on",
        "where",
        default=LOCAL,
        metavar="WHERE",
        callback=_place,
        help="local (this process), ray (on this machine, or where RAY_ADDRESS says), or "
        "ray://HOST:PORT",
    )(function)


def show_run(
    title: str, rows: str, work: Callable[..., Mapping[str, Any]], *, as_json: bool
) -> None:
    """Do `work`, which calls `run_parts`, with its progress as `told`; then print its figures."""
    with StepDisplay() as display:
        display.begin(title)
        found = work(told=lambda done, total: display.progress(done, total, rows))
    rate = f", {found['rows_per_s']} a second" if found["rows_per_s"] else ""
    text = (
        f"{found['rows']} {rows} in {found['parts']} parts: {found['done']} done now{rate}; "
        f"{found['found']} parts were there\n{found['out']}"
    )
    show_result(dict(found), text, as_json=as_json)

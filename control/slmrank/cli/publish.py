"""`control publish`: a catalogue's summaries for every server."""

from __future__ import annotations

import dataclasses
import datetime

import click

from slmrank.cli.display import StepDisplay, show_result
from slmrank.cli.options import Opened, json_option, spec_options
from slmrank.pipeline.publish import publish
from slmrank.store.changes import order_of
from slmrank.store.registry import shared_kind


@click.command("publish")
@spec_options
@click.option(
    "--from",
    "catalogue",
    help="output folder of `control summarize --jobs`, instead of the jobs of SPEC",
)
@click.option(
    "--as-of",
    type=click.DateTime(["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d"]),
    help="moment of the catalogue, UTC: changes by `control watch` up to then are in it  "
    "[default: none are, all are kept]",
)
@click.option(
    "--drop-others",
    is_flag=True,
    help="end the summaries of other tokenizers and summarizers after the grace, once no server "
    "needs them",
)
@json_option
def publish_command(
    opened: Opened,
    catalogue: str | None,
    as_of: datetime.datetime | None,
    drop_others: bool,
    as_json: bool,
) -> None:
    """Copy the summaries of SPEC into its shared store (summarize.store: redis://...).

    They are written beside those that servers read and become current in one step; running requests
    finish on the ones before, which disappear after the grace (grace_s in the url). A server reads
    what was made by its own tokenizer and summarizer alone.

    \b
    Example:
      control publish build/demo.yaml --set 'summarize.store=redis://localhost:6379/0'
    """
    order = ""
    if as_of is not None:
        moment, now = as_of.replace(tzinfo=datetime.UTC), datetime.datetime.now(datetime.UTC)
        if moment > now:
            raise click.BadParameter(
                f"{as_of.isoformat()} lies in the future: changes until then would change nothing. "
                f"In UTC it is {now:%Y-%m-%dT%H:%M:%S}",
                param_hint="--as-of",
            )
        order = order_of(int(moment.timestamp() * 1000))
    shared_kind(opened.bundle.spec.summarize.store)  # before summaries are made
    opened.run(opened.bundle.summaries)
    with StepDisplay() as display:
        display.begin("publishing")
        made = publish(
            opened.bundle,
            opened.store,
            lambda done, total: display.progress(done, total, "jobs"),
            catalogue=catalogue,
            as_of=order,
            drop_others=drop_others,
        )
    told = [f"version {made.version} is current: {made.jobs} jobs, {made.value_bytes} bytes"]
    if made.repeated:
        told.append(f"{made.repeated} rows repeat a job's id: the last of each counts")
    if made.carried:
        told.append(f"{made.carried} later changes of single jobs were carried over")
    if made.others:
        what = "end after the grace" if drop_others else "stay (--drop-others ends them)"
        told.append(f"summaries of {made.others} other tokenizers or summarizers {what}")
    show_result(dataclasses.asdict(made), *told, as_json=as_json)

"""`control status`: which artifacts of a bundle are made, stale or missing."""

from __future__ import annotations

import click

from slmrank.cli.display import show_result
from slmrank.cli.options import Opened, json_option, spec_options
from slmrank.pipeline.status import read_status


@click.command("status")
@spec_options
@json_option
def status_command(opened: Opened, as_json: bool) -> None:
    """List every artifact up to SPEC's repository: made, stale (and what differs: a setting, an
    input, the code that makes it), or missing. Needs no training package, so it also runs where a
    bundle is only served. Versions of tools decide nothing; others than here are noted.

    \b
    Example:
      control status build/demo.yaml
      control status build/demo.yaml --set finetune.steps=200
    """
    found = read_status([opened.bundle.repository], opened.store)
    rows = [
        [status.title, status.state, f"{status.kind} {status.key[:8]}", status.why, status.note]
        for status in found
    ]
    table = (str(opened.path), ["step", "state", "artifact", "why", "note"], rows)
    show_result({"artifacts": found}, table, as_json=as_json)

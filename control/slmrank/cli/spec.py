"""`control spec`: show a spec with its defaults, or the documentation of all keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import yaml

from slmrank.cli.display import print_json
from slmrank.cli.options import PathType, json_option, set_option
from slmrank.plugins import load_plugins
from slmrank.spec.bundle import BundleSpec
from slmrank.spec.engine import OTHER_SECTIONS
from slmrank.spec.reading import load_spec
from slmrank.store.kafka_topic import parse_topic
from slmrank.store.redis_scores import check_place
from slmrank.store.registry import store_kind
from slmrank.summarize.registry import SUMMARIZERS


@click.command("spec")
@click.argument("spec", type=PathType, required=False)
@click.option("--schema", is_flag=True, help="print the JSON schema of all keys")
@set_option
@json_option
def spec_command(
    spec: Path | None, schema: bool, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Check SPEC and print it with every default filled in.

    \b
    Example:
      control spec build/demo.yaml
      control spec --schema
    """
    if schema or spec is None:
        if overrides:
            raise click.UsageError("--set changes a spec: give one, and leave --schema out")
        print_json(_schema())
        return
    read = load_spec(spec, overrides)
    store_kind(read.summarize.store)  # before anything is shown: it may hold a password
    check_place(read.repository.cache)  # as well
    if read.deploy.watch is not None and read.deploy.watch.source.startswith("kafka:"):
        parse_topic(read.deploy.watch.source.removeprefix("kafka:"), read.name)
    SUMMARIZERS.get(read.summarize.method)
    values = read.model_dump(mode="json")
    if as_json:
        print_json(values)
    else:
        click.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), nl=False)


def _schema() -> dict[str, Any]:
    """JSON schema of a spec file: with `extends`, which is read before the spec is, and sections of
    targets that were registered elsewhere."""
    load_plugins()
    whole = BundleSpec.model_json_schema()
    definitions = whole.pop("$defs")
    told = "another spec file, whose keys these replace; as seen from the folder of this one"
    extends = {"extends": {"type": "string", "description": told}}
    # Of an overlay, what a section lacks stands in the file that it extends.
    names = extends | dict.fromkeys(whole["properties"], True)
    overlay = {"properties": names, "additionalProperties": False}
    sections = definitions["EngineSpec"]["properties"]
    for name, section in OTHER_SECTIONS.items():
        own = section.model_json_schema()
        definitions |= own.pop("$defs", {})
        sections[name] = own
    either = {"if": {"required": ["extends"]}, "then": overlay, "else": whole}
    return {"$defs": definitions, "type": "object", **either}

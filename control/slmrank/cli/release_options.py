"""The release that a command line names: by a spec, a release.yaml, or the folder of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from slmrank.artifacts import Artifact
from slmrank.cli.options import (
    Decorated,
    Opened,
    PathType,
    artifacts_option,
    open_spec,
    set_option,
    target_option,
)
from slmrank.deploy.release import (
    RELEASE_FILE,
    Place,
    Release,
    Track,
    is_release,
    load_release,
    make_release,
)
from slmrank.errors import DeployError, Refused
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import find_current
from slmrank.spec.reading import change_spec, load_spec

track_option = click.option(
    "--track",
    type=click.Choice(["stable", "canary"]),
    default="stable",
    help="of a spec: the deployment that serves, or the second one beside it",
)


def release_options(function: Decorated) -> Decorated:
    """What decides a release beside its source."""
    capacity = click.option(
        "--capacity",
        "record",
        type=PathType,
        help="record of `control slo`: what one replica serves at the objective",
    )
    for option in (capacity, target_option, set_option, artifacts_option, track_option):
        function = option(function)
    return function


def open_place(source: Path, track: Track, overrides: tuple[str, ...] = ()) -> Place:
    """Where a spec or a release is deployed; nothing is made for that."""
    source = source / RELEASE_FILE if source.is_dir() else source
    if is_release(source):
        if overrides:
            raise click.UsageError("--set is for a spec")
        place = load_release(source).place
        # A release knows its own track; the option names the canary beside it.
        return place if track == "stable" else replace(place, track=track)
    spec = load_spec(source, overrides)
    return Place(namespace=spec.deploy.namespace, bundle=spec.name, track=track)


def open_release(source: Path, *, making: bool = True, **options: Any) -> Release:
    """The release of a spec (its repository is made when missing), or the one in a file; `options`
    as of `open_sources`. Without `making` raises Refused where something is missing."""
    source = source / RELEASE_FILE if source.is_dir() else source
    if not is_release(source):
        return open_sources(source, making=making, **options)[0]
    refuse_spec_options(options)
    return load_release(source)


def refuse_spec_options(options: Mapping[str, Any]) -> None:
    """Raises UsageError where options that change a spec were given, and there is none."""
    given = (options[one] for one in ("overrides", "target", "record"))
    if options["track"] != "stable" or any(given):
        raise click.UsageError("--target, --set, --capacity and --track are for a spec")


def _as_made(opened: Opened) -> Opened:
    """The spec with the engine that was made, where this machine would make another one: whoever
    deploys has another processor than what serves."""
    spec, target = opened.bundle.spec, opened.bundle.target
    if find_current(opened.bundle.repository, opened.store) is None:
        for change in target.elsewhere(spec.engine):
            other = Bundle(change_spec(spec, {"engine": change}))
            if find_current(other.repository, opened.store) is not None:
                click.echo(f"with the engine that was made: {change}", err=True)
                return replace(opened, bundle=other)
    return opened


def open_sources(
    source: Path,
    *,
    artifacts: Path,
    overrides: tuple[str, ...],
    target: str | None,
    record: Path | None,
    track: Track,
    making: bool = True,
) -> tuple[Release, Artifact, Artifact]:
    """The release of a spec, its repository, which is made when missing, and its engine."""
    if source.is_dir() or is_release(source):
        raise click.UsageError(f"{source} is a release; its files are those of a spec: give that")
    opened = _as_made(open_spec(source, overrides, target, artifacts))
    bundle = opened.bundle
    if not making and find_current(bundle.repository, opened.store) is None:
        raise Refused(
            f"the repository of {source} is not made, so there is nothing to compare with",
            f"`control repo {source}`, with the same options",
        )
    repository = opened.run(bundle.repository)
    engine = opened.store.find(bundle.engine.kind, bundle.engine.key)
    if engine is None:
        raise DeployError(
            f"the engine of {source} is no longer in {artifacts}", "run `control build` again"
        )
    release = make_release(
        bundle.spec, bundle.target, repository, engine, record=record, track=track
    )
    return release, repository, engine

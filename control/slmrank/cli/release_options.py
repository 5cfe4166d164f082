"""The release that a command line names: by a spec, a release.yaml, or the folder of one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from slmrank.artifacts import Artifact
from slmrank.cli.options import (
    Decorated,
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
from slmrank.errors import DeployError
from slmrank.spec.reading import load_spec

track_option = click.option(
    "--track",
    type=click.Choice(["stable", "canary"]),
    default="stable",
    show_default=True,
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


def open_place(source: Path, track: Track) -> Place:
    """Where a spec or a release is deployed; nothing is made for that."""
    source = source / RELEASE_FILE if source.is_dir() else source
    if is_release(source):
        place = load_release(source).place
        # A release knows its own track; the option names the canary beside it.
        return place if track == "stable" else replace(place, track=track)
    spec = load_spec(source)
    return Place(namespace=spec.deploy.namespace, bundle=spec.name, track=track)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """A release and the artifacts that it is of."""

    release: Release
    repository: Artifact
    engine: Artifact


def open_release(source: Path, **options: Any) -> Release:
    """The release of a spec (its repository is made when missing), or the one in a file; `options`
    as of `open_sources`."""
    source = source / RELEASE_FILE if source.is_dir() else source
    if not is_release(source):
        return open_sources(source, **options).release
    if options["track"] != "stable" or any(
        options[one] for one in ("overrides", "target", "record")
    ):
        raise click.UsageError("--target, --set, --capacity and --track are for a spec")
    return load_release(source)


def open_sources(
    source: Path,
    *,
    artifacts: Path,
    overrides: tuple[str, ...],
    target: str | None,
    record: Path | None,
    track: Track,
) -> Sources:
    """The release of a spec; its repository is made when missing."""
    if source.is_dir() or is_release(source):
        raise click.UsageError(f"{source} is a release; its files are those of a spec: give that")
    opened = open_spec(source, overrides, target, artifacts)
    bundle = opened.bundle
    repository = opened.run(bundle.repository)
    engine = opened.store.find(bundle.engine.kind, bundle.engine.key)
    if engine is None:
        raise DeployError(
            f"the engine of {source} is no longer in {artifacts}", "run `control build` again"
        )
    release = make_release(
        bundle.spec, bundle.target, repository, engine, record=record, track=track
    )
    return Sources(release=release, repository=repository, engine=engine)

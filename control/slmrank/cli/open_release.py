"""The release that a command line names: by a spec, a release.yaml, or the folder of one."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from slmrank.artifacts import ArtifactStore
from slmrank.cli.display import StepDisplay
from slmrank.cli.options import Decorated, PathType, artifacts_option, target_option
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
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import run
from slmrank.spec.bundle import Target, load_spec


def release_options(function: Decorated) -> Decorated:
    """What decides a release beside its source."""
    capacity = click.option(
        "--capacity",
        "record",
        type=PathType,
        help="record of `control slo`: what one replica serves at the objective",
    )
    return artifacts_option(target_option(capacity(function)))


def track_option(function: Decorated) -> Decorated:
    return click.option(
        "--track",
        type=click.Choice(["stable", "canary"]),
        default="stable",
        show_default=True,
        help="of a spec: the deployment that serves, or the second one beside it",
    )(function)


def open_place(source: Path, track: Track) -> Place:
    """Where a spec or a release is deployed; nothing is made for that."""
    source = source / RELEASE_FILE if source.is_dir() else source
    if is_release(source):
        return load_release(source).place
    spec = load_spec(source)
    return Place(namespace=spec.deploy.namespace, bundle=spec.name, track=track)


def open_release(
    source: Path,
    artifacts: Path,
    target: Target | None = None,
    record: Path | None = None,
    track: Track = "stable",
) -> Release:
    """The release of a spec (its repository is made when missing), or the one in a file."""
    if source.is_dir():
        source = source / RELEASE_FILE
    if is_release(source):
        if target is not None or record is not None or track != "stable":
            raise click.UsageError("--target, --capacity and --track are for a spec")
        return load_release(source)
    bundle = Bundle(load_spec(source)).for_target(target)
    store = ArtifactStore(artifacts)
    display = StepDisplay()
    with contextlib.closing(display):
        repository = run(bundle.repository, store, display)
    engine = store.find(bundle.engine.kind, bundle.engine.key)
    if engine is None:
        raise DeployError(
            f"the engine of {source} is no longer in {artifacts}", "run `control build` again"
        )
    return make_release(bundle.spec, repository, engine, record=record, track=track)

"""Options that verbs share, and the bundle and store that they name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from slmrank.artifacts import ArtifactStore
from slmrank.pipeline.bundle import Bundle
from slmrank.spec.bundle import Target, load_spec

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
PathType = click.Path(path_type=Path)


def spec_argument(function: Decorated) -> Decorated:
    return click.argument("spec", type=PathType)(function)


def artifacts_option(function: Decorated) -> Decorated:
    return click.option(
        "--artifacts",
        type=PathType,
        default=Path("artifacts"),
        envvar="CONTROL_ARTIFACTS",
        show_default=True,
        show_envvar=True,
        help="where results are kept and found",
    )(function)


def json_option(function: Decorated) -> Decorated:
    return click.option("--json", "as_json", is_flag=True, help="print the result as JSON")(
        function
    )


def dry_run_option(function: Decorated) -> Decorated:
    return click.option("--dry-run", is_flag=True, help="print what would be done and stop")(
        function
    )


def open_bundle(spec: Path, artifacts: Path) -> tuple[Bundle, ArtifactStore]:
    """The spec's bundle and the artifact store."""
    return Bundle(load_spec(spec)), ArtifactStore(artifacts)


def target_option(function: Decorated) -> Decorated:
    return click.option(
        "--target",
        type=click.Choice(get_args(Target)),
        help="engine target  [default: engine.target of the spec]",
    )(function)

"""Options that verbs share, and the bundle and store that they name."""

from __future__ import annotations

import functools
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click

from slmrank.artifacts import Artifact, ArtifactStore
from slmrank.cli.display import StepDisplay, show_plan
from slmrank.client.replicas import Tls
from slmrank.errors import DataError, SpecError
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import Step, run
from slmrank.processes import is_first
from slmrank.repository.generate import check_repository
from slmrank.spec.reading import extending, is_overlay, load_spec, read_chain, read_overrides

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
PathType = click.Path(path_type=Path)

artifacts_option = click.option(
    "--artifacts",
    type=PathType,
    default=Path("artifacts"),
    envvar="CONTROL_ARTIFACTS",
    show_envvar=True,
    help="where results are kept and found",
)
json_option = click.option("--json", "as_json", is_flag=True, help="print the result as JSON")
dry_run_option = click.option("--dry-run", is_flag=True, help="print what would be done and stop")
force_option = click.option("--force", is_flag=True, help="make it again although nothing changed")


def standard_input() -> BinaryIO:
    """Raises DataError where this process was started without it."""
    if sys.stdin is None:
        raise DataError("standard input is closed", "give a file, or leave it open")
    return sys.stdin.buffer


def _device(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise click.BadParameter(f"{value!r} is none of auto, cpu, cuda, cuda:N")
    return value


device_option = click.option(
    "--device",
    default="auto",
    callback=_device,
    help="where torch runs: auto, cpu, cuda or cuda:N; auto takes a GPU that torch sees",
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="change a value of the spec, as engine.openvino.precision=bfloat16; repeatable",
)
target_option = click.option(
    "--target", help="engine target, short for --set engine.target=NAME  [default: the spec's]"
)


def url_option(what: str = "host:port, gRPC") -> Callable[[Decorated], Decorated]:
    """--url: the server that is asked."""
    return click.option(
        "--url", default="localhost:8001", envvar="CONTROL_URL", show_envvar=True, help=what
    )


class _Finite(click.FloatRange):
    """A finite number: `inf` and `nan` are floats, and no load, no time and no share."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number

    def _describe_range(self) -> str:
        return "" if self.min is None and self.max is None else super()._describe_range()


POSITIVE = _Finite(min=0, min_open=True)
SHARE, FINITE = _Finite(min=0, max=1), _Finite()


def sizes_from(least: int) -> Callable[[click.Context, click.Parameter, str | None], list[int]]:
    """Reads an option such as 36,56: numbers of `least` or more, each once; none if not given."""

    def read(_context: click.Context, _option: click.Parameter, value: str | None) -> list[int]:
        try:
            sizes = [int(part) for part in value.split(",")] if value is not None else []
        except ValueError as error:
            raise click.BadParameter(f"{value!r} is no list of whole numbers, as 36,56") from error
        if sizes and min(sizes) < least:
            raise click.BadParameter(f"{value!r}: at least {least} is wanted")
        return list(dict.fromkeys(sizes))

    return read


@dataclass(frozen=True)
class Opened:
    """What a command line names: the spec's file, what --set and --target change of it, its bundle,
    and the artifact store."""

    path: Path
    overrides: tuple[str, ...]
    bundle: Bundle
    store: ArtifactStore

    def refuse_own_file(self, target: Path) -> None:
        """Raises SpecError where a spec written to `target` would take the place of one that it
        extends; to be asked before what it is written for takes hours."""
        if target.resolve() in read_chain(self.path):
            raise SpecError(
                f"the result would be written to {target}, which {self.path} is or extends",
                "copy that file elsewhere, and give the copy",
            )
        if not is_overlay(self.path, self.overrides, self.bundle.spec):
            raise SpecError(
                "a section that --set empties and fills again cannot be written as one overlay",
                f"copy {self.path} and change it there",
            )

    def overlay(self, target: Path, told: Iterable[str], *changes: Mapping[str, Any]) -> str:
        """The text of a spec at `target` that extends this one, as it was asked for, by changes."""
        # Its folder, not what it links to: that is where its own paths begin.
        base = os.path.relpath(self.path.parent.resolve() / self.path.name, target.parent.resolve())
        return extending(base, told, *read_overrides(self.overrides), *changes)

    def run(self, step: Step, **options: Any) -> Artifact:
        """Make a step, with its progress on stderr. Of the processes of a launcher the first one
        shows and goes on; the others end here."""
        if not is_first():
            run(step, self.store, **options)
            raise click.exceptions.Exit(0)
        with StepDisplay() as display:
            return run(step, self.store, display, **options)


@dataclass(frozen=True, kw_only=True)
class How:
    """Where torch runs, whether it is only said what would be done, and in which form."""

    device: str
    dry_run: bool
    as_json: bool

    def plan(self, store: ArtifactStore, steps: Iterable[Step], *, force: bool = False) -> None:
        """With --dry-run: show what making these steps would do, and end."""
        if self.dry_run:
            show_plan(steps, store, as_json=self.as_json, force=force)
            raise click.exceptions.Exit(0)


def run_options(function: Decorated) -> Any:
    """--device, --dry-run and --json, given to the command as one `how`."""

    @device_option
    @dry_run_option
    @json_option
    @functools.wraps(function)
    def command(device: str, dry_run: bool, as_json: bool, **own: Any) -> Any:
        return function(how=How(device=device, dry_run=dry_run, as_json=as_json), **own)

    return command


def client_tls(prefix: str) -> Callable[[Decorated], Any]:
    """`--PREFIX-authority`, `-certificate`, `-key` and `-name`, given to the command as one `tls`:
    what a client of a server over TLS needs; None without any."""

    def decorate(function: Decorated) -> Any:
        @functools.wraps(function)
        def command(**given: Any) -> Any:
            names = ("authority", "certificate", "key", "name")
            said = {name: given.pop(f"{prefix}_{name}") for name in names}
            tls = Tls(**said) if any(said.values()) else None
            return function(tls=tls, **given)

        helps = {
            "name": (str, "name in the server's certificate  [default: the url's]"),
            "key": (PathType, f"PEM, with --{prefix}-certificate"),
            "certificate": (PathType, "PEM; shown to a server that asks who calls"),
            "authority": (PathType, "PEM; ask the server over TLS and trust these authorities"),
        }
        for name, (kind, text) in helps.items():
            command = click.option(f"--{prefix}-{name}", type=kind, help=text)(command)
        return command

    return decorate


def open_spec(
    path: Path, overrides: tuple[str, ...], target: str | None, artifacts: Path
) -> Opened:
    """A spec as a command line asks for it."""
    changes = (*overrides, *((f"engine.target={target}",) if target else ()))
    return Opened(path, changes, Bundle(load_spec(path, changes)), ArtifactStore(artifacts))


def spec_options(function: Decorated) -> Any:
    """SPEC, --set, --target and --artifacts, given to the command as one `opened`."""

    @click.argument("spec", type=PathType)
    @set_option
    @target_option
    @artifacts_option
    @functools.wraps(function)
    def command(
        spec: Path, overrides: tuple[str, ...], target: str | None, artifacts: Path, **more: Any
    ) -> Any:
        if "on" in more:
            # `control evaluate SPEC --set NAME` names a set: a change of the spec holds a `=`.
            more["on"] = [*more["on"], *(one for one in overrides if "=" not in one)]
            overrides = tuple(one for one in overrides if "=" in one)
        return function(opened=open_spec(spec, overrides, target, artifacts), **more)

    return command


def source_options(function: Decorated) -> Any:
    """SOURCE, --set, --target and --artifacts, given to the command as one `source`: what a spec
    names, or the folder of a repository of `control repo`."""

    @click.argument("source", type=PathType)
    @set_option
    @target_option
    @artifacts_option
    @functools.wraps(function)
    def command(
        source: Path, overrides: tuple[str, ...], target: str | None, artifacts: Path, **more: Any
    ) -> Any:
        if not source.is_dir():
            return function(source=open_spec(source, overrides, target, artifacts), **more)
        if target is not None or overrides:
            raise click.UsageError("--target and --set are for a spec; a repository is as it is")
        check_repository(source)
        return function(source=source, **more)

    return command

"""`control doctor`: this machine against what each engine target needs."""

from __future__ import annotations

from pathlib import Path

import click

from slmrank.cli.display import show_result
from slmrank.cli.options import PathType, artifacts_option, json_option, set_option
from slmrank.engine.targets.registry import TARGETS
from slmrank.errors import MissingDependencyError
from slmrank.html_page import Table
from slmrank.pipeline.doctor import diagnose, look
from slmrank.spec.engine import EngineSpec
from slmrank.spec.reading import load_spec


@click.command("doctor")
@click.argument("spec", type=PathType, required=False)
@set_option
@click.option(
    "--target",
    "chosen",
    multiple=True,
    help="judge this target, may be repeated  [default: the spec's, else the embedded one]",
)
@artifacts_option
@json_option
def doctor_command(
    spec: Path | None,
    overrides: tuple[str, ...],
    chosen: tuple[str, ...],
    artifacts: Path,
    as_json: bool,
) -> None:
    """Say what this machine has against what each engine target needs: ok, wrong with the fix, or
    unknown. All targets are shown; the exit code judges those asked for: 0 when nothing is wrong
    with them, 11 otherwise.

    \b
    Example:
      control doctor
      control doctor build/demo.yaml --target trtllm-engine
    """
    if overrides and spec is None:
        raise click.UsageError("--set changes a spec, and there is none")
    engine = load_spec(spec, overrides).engine if spec is not None else EngineSpec()
    judged = chosen or (engine.target,)
    for name in judged:
        TARGETS.get(name)
    findings = diagnose(look(artifacts), TARGETS.names(), engine)
    wrong = {
        name: sum(finding.state == "wrong" for finding in findings if finding.target == name)
        for name in TARGETS.names()
    }
    ready = not any(wrong[name] for name in judged)
    told: list[str | Table] = []
    for name in TARGETS.names():
        own = [finding for finding in findings if finding.target == name]
        rows = [[one.name, one.state, one.found, one.fix] for one in own]
        told.append((name, ["what", "state", "found", "fix"], rows))
    told += [f"{name}: {f'{wrong[name]} wrong' if wrong[name] else 'ready'}" for name in judged]
    value = {"judged": list(judged), "ready": ready, "wrong": wrong, "findings": findings}
    show_result(value, *told, as_json=as_json)
    if not ready:
        raise click.exceptions.Exit(MissingDependencyError.exit_code)

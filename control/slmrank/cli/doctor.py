"""`control doctor`: this machine against what each engine target needs."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from slmrank.cli.display import print_json, print_table
from slmrank.cli.options import PathType, artifacts_option, json_option
from slmrank.errors import MissingDependencyError
from slmrank.pipeline.doctor import diagnose, look
from slmrank.spec.bundle import Target, TrtllmSpec, load_spec

TARGETS: tuple[Target, ...] = get_args(Target)


@click.command("doctor")
@click.argument("spec", type=PathType, required=False)
@click.option(
    "--target",
    "chosen",
    type=click.Choice(TARGETS),
    multiple=True,
    help="judge this target, may be repeated  [default: the spec's, else openvino]",
)
@artifacts_option
@json_option
def doctor_command(
    spec: Path | None, chosen: tuple[Target, ...], artifacts: Path, as_json: bool
) -> None:
    """Say what this machine has against what each engine target needs: ok, wrong with the fix, or
    unknown. All targets are shown; the exit code judges those asked for: 0 when nothing is wrong
    with them, 11 otherwise.

    \b
    Example:
      control doctor
      control doctor build/demo.yaml --target trtllm-engine
    """
    loaded = load_spec(spec) if spec is not None else None
    trtllm = loaded.engine.trtllm if loaded is not None else TrtllmSpec()
    judged = chosen or ((loaded.engine.target,) if loaded is not None else ("openvino",))
    findings = diagnose(look(artifacts), TARGETS, trtllm)
    wrong = {
        target: sum(one.state == "wrong" for one in findings if one.target == target)
        for target in TARGETS
    }
    ready = not any(wrong[target] for target in judged)
    if as_json:
        print_json(
            {
                "judged": list(judged),
                "ready": ready,
                "wrong": wrong,
                "findings": [one.as_dict() for one in findings],
            }
        )
    else:
        for target in TARGETS:
            rows = [
                [one.name, one.state, one.found, one.fix]
                for one in findings
                if one.target == target
            ]
            print_table(target, ["what", "state", "found", "fix"], rows)
        for target in judged:
            told = f"{wrong[target]} wrong" if wrong[target] else "ready"
            click.echo(f"{target}: {told}")
    if not ready:
        raise click.exceptions.Exit(MissingDependencyError.exit_code)

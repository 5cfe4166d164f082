"""`control repo`: the Triton model repository of a spec."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from slmrank.cli.display import StepDisplay, show_artifact, show_plan
from slmrank.cli.options import (
    artifacts_option,
    dry_run_option,
    json_option,
    open_bundle,
    spec_argument,
    target_option,
)
from slmrank.pipeline.steps import run
from slmrank.spec.bundle import Target


@click.command("repo")
@spec_argument
@target_option
@click.option("--force", is_flag=True, help="make it again although nothing changed")
@artifacts_option
@dry_run_option
@json_option
def repo_command(
    spec: Path, target: Target | None, force: bool, artifacts: Path, dry_run: bool, as_json: bool
) -> None:
    """Generate the Triton model repository of SPEC: the ensemble rank = prepare -> ranker. Names,
    data types and dims of the ensemble graph are checked before anything is written.

    For trtllm-engine, ranker fans out over the model tensorrt_llm, whose engine is not copied in:
    the configuration points to engine.trtllm.engines/TAG on the serving machine.

    \b
    Example:
      control repo build/demo.yaml
      control repo build/demo.yaml --target trtllm-engine
    """
    bundle, store = open_bundle(spec, artifacts)
    step = bundle.for_target(target).repository
    if dry_run:
        show_plan([step], store, as_json=as_json)
        return
    display = StepDisplay()
    with contextlib.closing(display):
        artifact = run(step, store, display, force=force)
    show_artifact(artifact, as_json=as_json)

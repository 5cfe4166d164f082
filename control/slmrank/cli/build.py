"""`control build`: the engine of a spec, or the compilation of an engine planned elsewhere."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from slmrank.artifacts import Artifact
from slmrank.cli.display import StepDisplay, print_json, show_artifact, show_plan
from slmrank.cli.interrupt import interrupt_on_sigterm
from slmrank.cli.options import (
    PathType,
    artifacts_option,
    dry_run_option,
    json_option,
    open_bundle,
    target_option,
)
from slmrank.engine.trtllm.builder import NoBuilder, find_builder
from slmrank.engine.trtllm.compile import (
    BuiltEngine,
    PlannedEngine,
    build_engine,
    find_engine,
    read_planned,
    require_whole,
)
from slmrank.errors import EngineError
from slmrank.pipeline.make_engine import JOB_FILE
from slmrank.pipeline.steps import run
from slmrank.spec.bundle import Target


@click.command("build")
@click.argument("source", type=PathType)
@target_option
@click.option(
    "--engines",
    type=PathType,
    help="where compiled engines go, by tag  [default: ARTIFACTS/engines]",
)
@click.option("--docker", is_flag=True, help="compile in the planned container with docker run")
@click.option(
    "--require-engine", is_flag=True, help="fail when a GPU engine cannot be compiled here"
)
@click.option("--force", is_flag=True, help="make it again although nothing changed")
@artifacts_option
@dry_run_option
@json_option
def build_command(
    source: Path,
    target: Target | None,
    engines: Path | None,
    docker: bool,
    require_engine: bool,
    force: bool,
    artifacts: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build the inference engine of SOURCE and compare its scores with the float32 reference on
    held-out pairs; outside engine.parity it is refused.

    openvino: compiled here. trtllm-engine: a TensorRT-LLM checkpoint, a build plan and a Kubernetes
    Job; compiled here only where the planned GPU and TensorRT-LLM are (or with --docker), else the
    command says so. trtllm-llmapi: a model directory that TensorRT-LLM loads as it is.

    SOURCE is a spec, or the folder of an engine planned elsewhere, which is then compiled; that is
    what the Job runs.

    \b
    Example:
      control build build/demo.yaml
      control build build/demo.yaml --target trtllm-engine
    """
    where = engines or artifacts / "engines"
    if source.is_dir():
        if target is not None:
            raise click.UsageError("--target is for a spec; a planned engine has its target")
        planned = read_planned(source)
        if dry_run:
            _show_command(planned, where, as_json=as_json)
            return
        outcome = _compile(planned, where, docker=docker)
        _require(outcome, require_engine)
        _show(None, planned, outcome, as_json=as_json)
        return
    bundle, store = open_bundle(source, artifacts)
    bundle = bundle.for_target(target)
    if dry_run:
        show_plan([bundle.engine], store, as_json=as_json)
        return
    display = StepDisplay()
    with contextlib.closing(display):
        artifact = run(bundle.engine, store, display, force=force)
    if bundle.spec.engine.target != "trtllm-engine":
        show_artifact(artifact, as_json=as_json)
        if bundle.spec.engine.target == "trtllm-llmapi" and not as_json:
            click.echo("engine: nothing to compile; it was not loaded by TensorRT-LLM here")
        return
    planned = read_planned(artifact.path)
    outcome = _compile(planned, where, docker=docker)
    _require(outcome, require_engine)
    _show(artifact, planned, outcome, as_json=as_json)


Outcome = BuiltEngine | NoBuilder


def _compile(planned: PlannedEngine, engines: Path, *, docker: bool) -> Outcome:
    require_whole(planned)
    found = find_engine(engines, planned.tag)
    if found is not None:
        return found
    builder = find_builder(planned.plan, docker=docker)
    if isinstance(builder, NoBuilder):
        return builder
    # A Job is ended with SIGTERM; as an exception it also ends the build and clears its draft.
    interrupt_on_sigterm()
    return build_engine(planned, engines, builder, lambda note: click.echo(note, err=True))


def _require(outcome: Outcome, required: bool) -> None:
    if required and isinstance(outcome, NoBuilder):
        raise EngineError(f"engine: not built here ({outcome.reason})", outcome.fix)


def _show(
    artifact: Artifact | None, planned: PlannedEngine, outcome: Outcome, *, as_json: bool
) -> None:
    built = isinstance(outcome, BuiltEngine)
    if as_json:
        result: dict[str, Any] = {
            "kind": "engine",
            "target": "trtllm-engine",
            "tag": planned.tag,
            "planned": str(planned.path),
            "plan": planned.plan.as_dict(),
            "command": planned.plan.command(planned.checkpoint, f"/engines/{planned.tag}"),
            "built": built,
        }
        if artifact is not None:
            result |= {"key": artifact.key, "figures": dict(artifact.figures)}
        if isinstance(outcome, BuiltEngine):
            result |= {"path": str(outcome.path), "cached": outcome.cached}
        else:
            result |= {"reason": outcome.reason, "fix": outcome.fix}
        print_json(result)
        return
    if artifact is not None:
        show_artifact(artifact, as_json=False)
    click.echo(f"checkpoint: {planned.checkpoint} (verified against its plan and the reference)")
    click.echo(f"plan: {planned.path / 'plan.json'}")
    if (planned.path / JOB_FILE).is_file():
        click.echo(
            f"Kubernetes Job: {planned.path / JOB_FILE} (it reads {planned.path} as "
            f"/bundles/{planned.tag})"
        )
    if isinstance(outcome, BuiltEngine):
        how = "found" if outcome.cached else "built"
        click.echo(f"engine: {how}, {outcome.path}")
    else:
        click.echo(f"engine: not built here ({outcome.reason})")
        click.echo(f"to build it: {outcome.fix}")


def _show_command(planned: PlannedEngine, engines: Path, *, as_json: bool) -> None:
    command = planned.plan.command(planned.checkpoint, engines / planned.tag)
    if as_json:
        print_json({"plan": {"tag": planned.tag, "command": command}})
        return
    click.echo(f"would build {engines / planned.tag}:")
    click.echo("  " + " ".join(command))

"""`control build`: the engine of a spec, or the compilation of an engine planned elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from slmrank.artifacts import Artifact, ArtifactStore
from slmrank.cli.display import print_json, show_artifact, show_result
from slmrank.cli.options import (
    How,
    PathType,
    artifacts_option,
    force_option,
    open_spec,
    run_options,
    set_option,
    target_option,
)
from slmrank.deploy.engine_job import write_engine_job
from slmrank.engine.trtllm.builder import NoBuilder, find_builder
from slmrank.engine.trtllm.compile import (
    COMPILED,
    PlannedEngine,
    compile_engine,
    compiled_path,
    find_compiled,
    read_planned,
    require_whole,
)
from slmrank.errors import EngineError

Outcome = Artifact | NoBuilder


@click.command("build")
@click.argument("source", type=PathType)
@set_option
@target_option
@click.option(
    "--engines", type=PathType, help="where compiled engines go, by tag  [default: ARTIFACTS]"
)
@click.option("--docker", is_flag=True, help="compile in the planned container with docker run")
@click.option(
    "--require-engine", is_flag=True, help="fail when a GPU engine cannot be compiled here"
)
@force_option
@artifacts_option
@run_options
def build_command(
    source: Path,
    overrides: tuple[str, ...],
    target: str | None,
    engines: Path | None,
    docker: bool,
    require_engine: bool,
    force: bool,
    artifacts: Path,
    how: How,
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
    store = ArtifactStore(engines or artifacts)
    if source.is_dir():
        if target is not None or overrides:
            raise click.UsageError("--target and --set are for a spec; a plan is as it is")
        if force:
            raise click.UsageError(
                "--force is for a spec: a compiled engine may be in use, remove its folder instead"
            )
        planned = read_planned(source)
        if how.dry_run:
            _show_command(planned, store, as_json=how.as_json)
            return
        outcome = _compile(planned, store, docker=docker, required=require_engine)
        _show(None, planned, None, outcome, as_json=how.as_json)
        return
    opened = open_spec(source, overrides, target, artifacts)
    if (engines is not None or docker) and not opened.bundle.target.compiled_elsewhere:
        name = opened.bundle.target.name
        raise click.UsageError(f"--engines and --docker: target {name} compiles nothing elsewhere")
    how.plan(opened.store, [opened.bundle.engine], force=force)
    artifact = opened.run(opened.bundle.engine, force=force, device=how.device)
    if not opened.bundle.target.compiled_elsewhere:
        show_artifact(artifact, as_json=how.as_json)
        if opened.bundle.target.needs_gpu and not how.as_json:
            click.echo("engine: nothing to compile; it was not loaded on a GPU here")
        return
    planned = read_planned(artifact.path)
    spec = opened.bundle.spec
    job = write_engine_job(planned, spec.name, spec.deploy, spec.engine.trtllm.engines, artifacts)
    outcome = _compile(planned, store, docker=docker, required=require_engine)
    _show(artifact, planned, job, outcome, as_json=how.as_json)


def _compile(
    planned: PlannedEngine, store: ArtifactStore, *, docker: bool, required: bool
) -> Outcome:
    require_whole(planned)
    found = find_compiled(store, planned.tag)
    if found is not None:
        return found
    builder = find_builder(planned.plan, docker=docker)
    if isinstance(builder, NoBuilder):
        if required:
            raise EngineError(f"engine: not built here ({builder.reason})", builder.fix)
        return builder
    return compile_engine(planned, store, builder, lambda note: click.echo(note, err=True))


def _show(
    artifact: Artifact | None,
    planned: PlannedEngine,
    job: Path | None,
    outcome: Outcome,
    *,
    as_json: bool,
) -> None:
    if as_json:
        result: dict[str, Any] = {
            "kind": "engine",
            "tag": planned.tag,
            "planned": str(planned.path),
            "plan": planned.plan,
            "command": planned.plan.command(
                planned.checkpoint, compiled_path("/engines", planned.tag)
            ),
            "built": isinstance(outcome, Artifact),
        }
        if artifact is not None:
            result |= {"key": artifact.key, "figures": dict(artifact.figures), "job": str(job)}
        if isinstance(outcome, Artifact):
            result |= {"path": str(outcome.path)}
        else:
            result |= {"reason": outcome.reason, "fix": outcome.fix}
        print_json(result)
        return
    if artifact is not None:
        show_artifact(artifact, as_json=False)
    click.echo(f"checkpoint: {planned.checkpoint} (verified against its plan and the reference)")
    click.echo(f"plan: {planned.path / 'plan.json'}")
    if job is not None:
        click.echo(f"Kubernetes Job: {job} (it reads {planned.path} as /bundles/{planned.tag})")
    if isinstance(outcome, Artifact):
        click.echo(f"engine: {outcome.path}")
    else:
        click.echo(f"engine: not built here ({outcome.reason})")
        click.echo(f"to build it: {outcome.fix}")


def _show_command(planned: PlannedEngine, store: ArtifactStore, *, as_json: bool) -> None:
    path = store.path(COMPILED, planned.tag)
    command = planned.plan.command(planned.checkpoint, path)
    plan = {"tag": planned.tag, "command": command}
    show_result({"plan": plan}, f"would build {path}:\n  {' '.join(command)}", as_json=as_json)

"""Run the build of a TensorRT-LLM engine where that is possible: on this machine's GPU, or through
`docker run` in the planned container. Elsewhere there is no builder, only the reason.

A planned engine is a directory with `checkpoint/`, `plan.json` and `tag`; a built one is
`<engines>/<tag>/` with `rank0.engine`, `config.json` and `manifest.json`, which is written last.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control.artifacts import inventory, write_atomic
from control.engine.compatibility import load_compatibility
from control.engine.scorer import EMITTED_FOLDER
from control.engine.trtllm_checkpoint import read_trtllm_config
from control.engine.trtllm_plan import BuildPlan, check_engine_config
from control.errors import EngineError
from control.machine.facts import Gpu, docker_version, find_gpus, installed_version

PLAN_FILE = "plan.json"
ENGINE_MANIFEST = "manifest.json"
BUILD_TIMEOUT_S = 7200.0
LOG_LINES = 15
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class PlannedEngine:
    """A planned engine on disk: checkpoint, plan and the tag that both decide."""

    path: Path
    plan: BuildPlan
    tag: str

    @property
    def checkpoint(self) -> Path:
        return self.path / EMITTED_FOLDER


@dataclass(frozen=True, kw_only=True)
class NoBuilder:
    """No engine can be built here, and why."""

    reason: str
    fix: str


@dataclass(frozen=True, kw_only=True)
class Builder:
    """Something that can build here: `how` for reports, `wrap` turns a command and the two folders
    (checkpoint, output) into the argv to run; `facts` go into the manifest."""

    how: str
    wrap: Callable[[BuildPlan, Path, Path], list[str]]
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """A finished engine directory."""

    path: Path
    tag: str
    cached: bool
    manifest: dict[str, Any]


def read_planned(path: Path) -> PlannedEngine:
    """Raises EngineError when the directory holds no plan, or one that was edited."""
    try:
        loaded = json.loads((path / PLAN_FILE).read_text(encoding="utf-8"))
        plan = BuildPlan(**loaded["plan"])
        planned = PlannedEngine(path=path, plan=plan, tag=loaded["tag"])
        wanted = plan.tag(loaded["checkpoint_digest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"{path} holds no planned engine: {error}",
            "make one with `control build SPEC --target trtllm-engine`",
        ) from error
    if planned.tag != wanted:
        raise EngineError(
            f"{path / PLAN_FILE}: tag {planned.tag} does not belong to this plan ({wanted})",
            "change the spec and plan again instead of editing the file",
        )
    return planned


def write_plan(path: Path, plan: BuildPlan, checkpoint_digest: str) -> str:
    """Write `plan.json` beside the checkpoint; returns the tag."""
    tag = plan.tag(checkpoint_digest)
    content = {
        "schema": 1,
        "tag": tag,
        "checkpoint_digest": checkpoint_digest,
        "plan_hash": plan.hash,
        "plan": plan.as_dict(),
        "command": plan.command(EMITTED_FOLDER, f"/engines/{tag}"),
    }
    write_atomic(path / PLAN_FILE, json.dumps(content, indent=2) + "\n")
    return tag


def find_builder(plan: BuildPlan, *, docker: bool) -> Builder | NoBuilder:
    """What can build this plan here.

    `docker` asks for the planned container instead of this environment. Raises EngineError when a
    GPU and TensorRT-LLM are here but are not the planned ones: building would give an engine that
    the planned server cannot load.
    """
    gpus, reason = find_gpus()
    if not gpus:
        return NoBuilder(
            reason=f"no NVIDIA GPU: {reason}",
            fix="run the Kubernetes Job, or `control build` on a machine with the planned GPU",
        )
    gpu = _matching(gpus, plan)
    facts: dict[str, Any] = {"gpu": gpu.name, "capability": gpu.capability, "driver": gpu.driver}
    if docker:
        server, reason = docker_version()
        if server is None:
            return NoBuilder(reason=f"no Docker engine: {reason}", fix="install and start Docker")
        facts |= {"image": plan.image, "docker": server}
        return Builder(how=f"docker run {plan.image}", wrap=_docker_command, facts=facts)
    version = installed_version("tensorrt-llm") or installed_version("tensorrt_llm")
    if version is None or shutil.which("trtllm-build") is None:
        return NoBuilder(
            reason="tensorrt_llm is not installed here",
            fix=f"run inside {plan.image}, or add --docker",
        )
    if version != plan.trtllm:
        raise EngineError(
            f"TensorRT-LLM {version} is installed, the plan is for {plan.trtllm}",
            f"run inside {plan.image}, or add --docker",
        )
    tensorrt = installed_version("tensorrt")
    if tensorrt is not None and tensorrt != plan.tensorrt:
        raise EngineError(
            f"TensorRT {tensorrt} is installed, the plan is for {plan.tensorrt}",
            f"run inside {plan.image}, or add --docker",
        )
    facts |= {"trtllm": version, "tensorrt": tensorrt}
    return Builder(how=f"trtllm-build on {gpu.name}", wrap=_local_command, facts=facts)


def build_engine(
    planned: PlannedEngine,
    engines: Path,
    builder: Builder,
    report: Report,
    timeout_s: float = BUILD_TIMEOUT_S,
) -> BuiltEngine:
    """Build into `<engines>/<tag>`; a finished one with that tag is found instead.

    Raises EngineError with the last lines of the build's log when it fails, takes longer than
    `timeout_s`, or gives another engine than planned. Nothing half-built keeps the final name.
    """
    engines.mkdir(parents=True, exist_ok=True)
    with _lock(engines / f".{planned.tag}.lock"):
        found = find_engine(engines, planned.tag)
        if found is not None:
            return found
        draft = engines / f".{planned.tag}.{os.getpid()}.tmp"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        log = engines / f"{planned.tag}.log"
        try:
            report(f"build with {builder.how}; log: {log}")
            # trtllm-build keeps its kernel timings in the working directory; found again, they
            # shorten the next build for the same version and GPU.
            work = engines / ".timing" / f"{planned.plan.trtllm}-{planned.plan.capability}"
            work.mkdir(parents=True, exist_ok=True)
            _run(builder.wrap(planned.plan, planned.checkpoint, draft), log, work, timeout_s)
            config = _engine_config(draft)
            check_engine_config(config, planned.plan, read_trtllm_config(planned.checkpoint))
            manifest = {
                "schema": 1,
                "kind": "trtllm-engine",
                "tag": planned.tag,
                "plan": planned.plan.as_dict(),
                "plan_hash": planned.plan.hash,
                "built_with": builder.facts,
                "files": inventory(draft),
            }
            write_atomic(draft / ENGINE_MANIFEST, json.dumps(manifest, indent=2) + "\n")
            draft.rename(engines / planned.tag)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        log.unlink(missing_ok=True)
    return BuiltEngine(path=engines / planned.tag, tag=planned.tag, cached=False, manifest=manifest)


def find_engine(engines: Path, tag: str) -> BuiltEngine | None:
    """The finished engine with a tag, or None. Raises EngineError when files of it are missing or
    cut short: it may be in use, so it is not replaced."""
    path = engines / tag
    if not path.exists():
        return None
    try:
        manifest = json.loads((path / ENGINE_MANIFEST).read_text(encoding="utf-8"))
        files = {name: one["bytes"] for name, one in manifest["files"].items()}
        wrong = [name for name, size in files.items() if (path / name).stat().st_size != size]
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"{path} is not a whole engine: {error}", "remove the folder") from error
    if wrong or manifest.get("tag") != tag:
        raise EngineError(f"{path} is not a whole engine: {wrong or 'other tag'}", "remove it")
    return BuiltEngine(path=path, tag=tag, cached=True, manifest=manifest)


def _matching(gpus: Sequence[Gpu], plan: BuildPlan) -> Gpu:
    for gpu in gpus:
        if gpu.capability == plan.capability:
            return gpu
    here = ", ".join(f"{gpu.name} ({gpu.capability})" for gpu in gpus)
    names = [name for name, one in load_compatibility().gpus.items() if one == gpus[0].capability]
    raise EngineError(
        f"the plan is for {plan.gpu} (compute capability {plan.capability}), here is {here}",
        f"set engine.trtllm.gpu to this GPU's product label, such as {' or '.join(names[:3])}"
        if names
        else "build on a machine with the planned GPU",
    )


def _local_command(plan: BuildPlan, checkpoint: Path, output: Path) -> list[str]:
    return plan.command(checkpoint.resolve(), output.resolve())


def _docker_command(plan: BuildPlan, checkpoint: Path, output: Path) -> list[str]:
    # As the caller's user, so that the files belong to them.
    return [
        "docker",
        "run",
        "--rm",
        "--gpus",
        "all",
        "--network",
        "none",
        "--shm-size",
        "2g",
        "--user",
        f"{os.getuid()}:{os.getgid()}",
        "--env",
        "HOME=/tmp",
        "--volume",
        f"{checkpoint.resolve()}:/checkpoint:ro",
        "--volume",
        f"{output.resolve()}:/output",
        "--workdir",
        "/tmp",
        plan.image,
        *plan.command("/checkpoint", "/output"),
    ]


def _run(command: list[str], log: Path, work: Path, timeout_s: float) -> None:
    with log.open("wb") as stream:
        stream.write((" ".join(command) + "\n").encode())
        stream.flush()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=work,
                start_new_session=True,
            )
        except OSError as error:
            raise EngineError(f"cannot run {command[0]}: {error.strerror}", "install it") from error
        try:
            status = process.wait(timeout_s)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise EngineError(
                    f"the build took longer than {timeout_s:.0f} s; log: {log}",
                    "set multiple_profiles to false, or build on a free GPU",
                ) from error
            raise
    if status != 0:
        lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        told = "\n".join(f"  | {line}" for line in lines)
        raise EngineError(
            f"{command[0]} ended with status {status}; log: {log}\n{told}",
            "the lines above are its own; check the machine with `control doctor`",
        )


def _engine_config(folder: Path) -> dict[str, Any]:
    missing = [name for name in ("rank0.engine", "config.json") if not (folder / name).is_file()]
    if missing:
        raise EngineError(
            f"the build ended with status 0 but wrote no {' and no '.join(missing)}",
            "look at the build's log",
        )
    loaded: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return loaded


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield

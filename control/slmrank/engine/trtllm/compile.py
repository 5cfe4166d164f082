"""Compile a planned TensorRT-LLM engine, and keep it by its tag.

A planned engine is a directory with `checkpoint/` and `plan.json`; a compiled one is an artifact of
kind `compiled` under its tag, with `rank0.engine` and `config.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slmrank.artifacts import Artifact, ArtifactStore, inventory, write_atomic
from slmrank.engine.trtllm.builder import Builder
from slmrank.engine.trtllm.checkpoint import read_trtllm_config
from slmrank.engine.trtllm.plan import EMITTED_FOLDER, BuildPlan, check_engine_config
from slmrank.errors import ArtifactError, EngineError
from slmrank.hashing import hash_value
from slmrank.processes import tied

COMPILED = "compiled"
PLAN_FILE = "plan.json"
LOG_FILE = "build.log"
BUILD_TIMEOUT_S = 7200.0
LOG_LINES = 15
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class PlannedEngine:
    """A planned engine on disk: checkpoint, plan and the tag that both decide."""

    path: Path
    plan: BuildPlan
    tag: str
    checkpoint_digest: str

    @property
    def checkpoint(self) -> Path:
        return self.path / EMITTED_FOLDER


def compiled_path(engines: str, tag: str) -> str:
    """Where a compiled engine lies below a directory of engines."""
    return f"{engines.rstrip('/')}/{COMPILED}/{tag}"


def read_planned(path: Path) -> PlannedEngine:
    """Raises EngineError when the directory holds no plan, or one that was edited."""
    try:
        loaded = json.loads((path / PLAN_FILE).read_text(encoding="utf-8"))
        plan = BuildPlan(**loaded["plan"])
        digest = loaded["checkpoint_digest"]
        planned = PlannedEngine(path=path, plan=plan, tag=loaded["tag"], checkpoint_digest=digest)
        wanted = plan.tag(digest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"{path} holds no planned engine: {error}",
            "make one: `control build SPEC` with a target that plans its engine",
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
        "plan": asdict(plan),
        "command": plan.command(EMITTED_FOLDER, compiled_path("/engines", tag)),
    }
    write_atomic(path / PLAN_FILE, json.dumps(content, indent=2) + "\n")
    return tag


def require_whole(planned: PlannedEngine) -> None:
    """Compare the checkpoint's files with the plan's digest: a planned engine is copied by hand to
    where its GPU is. Raises EngineError when they differ."""
    if hash_value(inventory(planned.checkpoint)) != planned.checkpoint_digest:
        raise EngineError(
            f"{planned.checkpoint} is not the checkpoint of {PLAN_FILE}: files are missing, cut "
            "short or changed",
            "copy the whole folder again",
        )


def compile_engine(
    planned: PlannedEngine,
    store: ArtifactStore,
    builder: Builder,
    report: Report,
    timeout_s: float = BUILD_TIMEOUT_S,
) -> Artifact:
    """Build into `store`; a finished engine with that tag is found instead.

    Raises EngineError with the last lines of the build's log when it fails, takes longer than
    `timeout_s`, or gives another engine than planned. Nothing half-built keeps the final name.
    """
    with store.lock(COMPILED, planned.tag):
        found = find_compiled(store, planned.tag)
        if found is not None:
            return found
        lineage = {
            "settings": asdict(planned.plan),
            "inputs": {"checkpoint": planned.checkpoint_digest},
            "code": planned.plan.hash,
            "versions": builder.facts,
        }
        with store.create(COMPILED, planned.tag, lineage) as draft:
            draft.work.mkdir(parents=True, exist_ok=True)
            log = draft.work / LOG_FILE
            report(f"build with {builder.how}; log: {log}")
            timings = store.root / "work" / "timings"
            timings.mkdir(exist_ok=True)
            timings /= f"{planned.plan.trtllm}-{planned.plan.gpu}"
            command = builder.command(planned.checkpoint, draft.path, timings)
            _run(builder, command, log, draft.work, timeout_s)
            config = _engine_config(draft.path)
            check_engine_config(config, planned.plan, read_trtllm_config(planned.checkpoint))
    return store.read(COMPILED, planned.tag)


def find_compiled(store: ArtifactStore, tag: str) -> Artifact | None:
    """The compiled engine with a tag, or None. Raises EngineError when files of it are missing or
    cut short: it may be in use, so it is not replaced."""
    path = store.path(COMPILED, tag)
    if not path.exists():
        return None
    try:
        found = store.read(COMPILED, tag)
        files = {name: file["bytes"] for name, file in found.manifest["files"].items()}
        wrong = [name for name, size in files.items() if (path / name).stat().st_size != size]
    except (ArtifactError, OSError, KeyError) as error:
        raise EngineError(f"{path} is not a whole engine: {error}", "remove the folder") from error
    if wrong or found.key != tag:
        raise EngineError(f"{path} is not a whole engine: {wrong or 'other tag'}", "remove it")
    return found


def _run(builder: Builder, command: list[str], log: Path, work: Path, timeout_s: float) -> None:
    with log.open("wb") as stream:
        stream.write((" ".join(command) + "\n").encode())
        stream.flush()
        try:
            process = subprocess.Popen(
                tied(command),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=work,
                env={**os.environ, **builder.environment},
                start_new_session=True,
            )
        except OSError as error:
            raise EngineError(f"cannot run {command[0]}: {error.strerror}", "install it") from error
        try:
            status = process.wait(timeout_s)
        except BaseException as error:
            try:
                builder.cancel()
            finally:
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
        tail = "\n".join(f"  | {line}" for line in lines)
        raise EngineError(
            f"{command[0]} ended with status {status}; log: {log}\n{tail}",
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

"""Compile a planned TensorRT-LLM engine, and keep it by its tag.

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmrank.artifacts import inventory, write_atomic
from slmrank.engine.scorer import EMITTED_FOLDER
from slmrank.engine.trtllm.builder import Builder, Folders
from slmrank.engine.trtllm.checkpoint import read_trtllm_config
from slmrank.engine.trtllm.plan import BuildPlan, check_engine_config
from slmrank.errors import EngineError
from slmrank.hashing import hash_value

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
    checkpoint_digest: str

    @property
    def checkpoint(self) -> Path:
        return self.path / EMITTED_FOLDER


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
        digest = loaded["checkpoint_digest"]
        planned = PlannedEngine(path=path, plan=plan, tag=loaded["tag"], checkpoint_digest=digest)
        wanted = plan.tag(digest)
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


def require_whole(planned: PlannedEngine) -> None:
    """Compare the checkpoint's files with the plan's digest: a planned engine is copied by hand to
    where its GPU is. Raises EngineError when they differ."""
    if hash_value(inventory(planned.checkpoint)) != planned.checkpoint_digest:
        raise EngineError(
            f"{planned.checkpoint} is not the checkpoint of {PLAN_FILE}: files are missing, cut "
            "short or changed",
            "copy the whole folder again",
        )


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
        for abandoned in engines.glob(f".{planned.tag}.*.tmp"):
            shutil.rmtree(abandoned, ignore_errors=True)
        draft = engines / f".{planned.tag}.{os.getpid()}.tmp"
        draft.mkdir()
        log = engines / f"{planned.tag}.log"
        try:
            report(f"build with {builder.how}; log: {log}")
            timings = engines / ".timings" / f"{planned.plan.trtllm}-{planned.plan.capability}"
            timings.parent.mkdir(exist_ok=True)
            folders = Folders(checkpoint=planned.checkpoint, output=draft, timings=timings)
            _run(builder, builder.command(folders), log, draft.parent, timeout_s)
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


def _run(builder: Builder, command: list[str], log: Path, work: Path, timeout_s: float) -> None:
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
                env={**os.environ, **builder.environment},
                start_new_session=True,
            )
        except OSError as error:
            raise EngineError(f"cannot run {command[0]}: {error.strerror}", "install it") from error
        try:
            status = process.wait(timeout_s)
        except BaseException as error:
            builder.cancel()
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

"""Compare a repository, and a compiled engine, with the manifest of what was generated.

It runs before a GPU is touched: files are copied to a cluster by hand or by tools that stop half
way, and an engine of another TensorRT-LLM version fails late and in words that do not say so.
"""

from __future__ import annotations

import importlib.util
import json
import marshal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmrank.artifacts import MANIFEST, read_artifact
from slmrank.engine.trtllm.compatibility import same_release
from slmrank.errors import ArtifactError, RepositoryError
from slmrank.hashing import hash_file
from slmrank.machine.facts import installed_version

LISTED = 8
LOCK = "lock.mdb"
HEADER_BYTES = 16  # of a compiled module (PEP 552)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What must be there: files by relative path with `sha256` and `bytes`, the engine's tag and
    its build plan (None where the engine lies in the repository)."""

    files: dict[str, dict[str, Any]]
    tag: str
    plan: dict[str, Any] | None


def read_expected(path: Path) -> Expected:
    """The pod's manifest, or the `manifest.json` of a repository artifact.

    Raises RepositoryError when the file is neither.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
        if "repository" in loaded:
            engine = loaded["engine"]
            return Expected(files=loaded["repository"], tag=engine["tag"], plan=engine["plan"])
        files = loaded["files"]
        return Expected(files=files, tag=loaded.get("figures", {}).get("engine_tag", ""), plan=None)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RepositoryError(
            f"{path} is no manifest of a repository: {error}",
            "give the manifest.json that `control repo` wrote",
        ) from error


def verify_repository(repository: Path, expected: Expected) -> int:
    """Compare every file with its size and SHA-256; returns the bytes read.

    Raises RepositoryError that lists what is missing or different. Files beside them are accepted
    in the top folder only: a model, a version or a compiled module more would be loaded.
    """
    if not repository.is_dir():
        raise RepositoryError(
            f"{repository} is not there",
            f"copy the repository to the claim under the name {repository.name}, with its "
            f"{MANIFEST}",
        )
    wrong = _differences(repository, expected.files)
    if wrong:
        raise RepositoryError(
            f"{repository} is not the repository that was generated: {_listed(wrong)}",
            "copy the whole folder again, into an empty one; nothing was started",
        )
    return sum(int(file["bytes"]) for file in expected.files.values())


def _listed(wrong: list[str]) -> str:
    more = f" and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
    return "; ".join(wrong[:LISTED]) + more


def _differences(folder: Path, files: dict[str, dict[str, Any]]) -> list[str]:
    """What is missing, different, or there beside the files, with its name."""
    wrong = []
    for name, file in sorted(files.items()):
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name}: missing")
        elif path.stat().st_size != file["bytes"]:
            wrong.append(f"{name}: {path.stat().st_size} bytes instead of {file['bytes']}")
        elif hash_file(path) != file["sha256"]:
            wrong.append(f"{name}: other content")
    return wrong + [
        f"{path.relative_to(folder)}: not part of it"
        for path in sorted(folder.glob("*/**/*"))
        if (path.is_file() or path.is_symlink())
        and str(path.relative_to(folder)) not in files
        and not _left_by_a_server(path, folder, files)
    ]


def _left_by_a_server(path: Path, folder: Path, files: dict[str, dict[str, Any]]) -> bool:
    """LMDB's lock, and what Python made of a stage whose source is the generated one: the same code
    again, since a compiled module may run instead of any source. Tritonserver's Python heeds no
    variable that forbids it to write one."""
    if path.is_symlink():
        return False
    if path.name == LOCK:
        return True
    source = path.parent.parent / f"{path.name.partition('.')[0]}.py"
    if (
        path != Path(importlib.util.cache_from_source(str(source), optimization=""))
        or str(source.relative_to(folder)) not in files
    ):
        return False
    content = path.read_bytes()
    try:
        made = marshal.loads(content[HEADER_BYTES:])
        same = made == compile(source.read_bytes(), str(source), "exec", dont_inherit=True)
    except (EOFError, ValueError, TypeError, SyntaxError, OSError):
        return False
    return same and content.startswith(importlib.util.MAGIC_NUMBER)


def verify_engine(engine: Path, expected: Expected) -> None:
    """Compare a compiled engine with the plan: its files as they were compiled, of this tag, and
    for the TensorRT-LLM that is installed here. Raises RepositoryError."""
    remedy = "run the Job engine-build first (`control deploy apply` does), or copy the engine"
    try:
        found = read_artifact(engine)
        wrong = _differences(engine, found.manifest["files"])
    except (ArtifactError, KeyError) as error:
        raise RepositoryError(f"the engine {engine} is not there: {error}", remedy) from error
    if wrong:
        told = f"the engine {engine} is not as it was compiled: {_listed(wrong)}"
        raise RepositoryError(told, remedy)
    plan = expected.plan or {}
    if not plan and not expected.tag:
        raise RepositoryError(
            "the manifest names no compiled engine to compare with",
            "give --manifest of the release, or leave --engine out: it is in the repository",
        )
    wrong = [
        f"{name} is {found.manifest['settings'].get(name)}, planned {value}"
        for name, value in sorted(plan.items())
        if found.manifest["settings"].get(name) != value
    ]
    if expected.tag and found.key != expected.tag:
        wrong.append(f"tag {found.key}, planned {expected.tag}")
    here = installed_version("tensorrt_llm")
    if plan and here is not None and not same_release(here, str(plan["trtllm"])):
        wrong.append(f"built for TensorRT-LLM {plan['trtllm']}, this image has {here}")
    if wrong:
        raise RepositoryError(
            f"the engine {engine} is not the planned one: {'; '.join(wrong)}",
            "deploy image and engine of one container version; nothing was started",
        )

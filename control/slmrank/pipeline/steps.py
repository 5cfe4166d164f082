"""Steps and how they run: a step is made once, from the artifacts of the steps before it.

A step's key is known before anything runs, from its settings, its inputs' keys and the code that
makes it; that is how `--dry-run` can plan and a second run says `cached`. The versions of the tools
that made an artifact are recorded in it and do not decide where it is found.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from slmrank.artifacts import Artifact, ArtifactStore, Draft, artifact_key, write_atomic
from slmrank.code_hash import code_hash
from slmrank.errors import ArtifactError, ControlError, MissingDependencyError
from slmrank.hashing import canonical_json
from slmrank.machine.facts import installed_version
from slmrank.processes import is_first

POLL_S = 0.5
LEAST_FREE_BYTES = 1 << 20


class Watcher:
    """Hears what happens, and shows nothing; the command line's shows it."""

    def started(self, step: Step) -> None: ...

    def begin(self, title: str) -> None:
        """Work that is no step."""

    def progress(self, done: int, total: int, note: str = "") -> None: ...

    def finished(self, step: Step, artifact: Artifact, *, cached: bool) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Making:
    """What a step's `make` gets: where to write, finished inputs by name, the watcher, and the
    device (`auto`, `cpu`, `cuda:0`) for what runs on one."""

    draft: Draft
    inputs: Mapping[str, Artifact]
    watcher: Watcher
    store: ArtifactStore
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One artifact to be: its kind, what decides it, and how to make it.

    `code` names modules that make it, beside the one of `make`; `tools` are the distributions that
    making it needs, which `extra` brings. With `together`, all processes of a launcher make it, and
    the first one writes it; the others wait for what only the first one makes. `again` gives the
    settings once more, where they hold tables of the user's: these may be edited meanwhile.
    """

    kind: str
    title: str
    settings: Mapping[str, Any]
    make: Callable[[Making], None]
    code: tuple[str, ...]
    inputs: Mapping[str, Step] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    extra: str = "train"
    bundle: str = ""
    together: bool = False
    again: Callable[[], Mapping[str, Any]] | None = None

    @cached_property
    def code_key(self) -> str:
        return code_hash(*self.code)

    @cached_property
    def key(self) -> str:
        inputs = {name: step.key for name, step in self.inputs.items()}
        return artifact_key(self.kind, self.settings, inputs, self.code_key)

    def tool_versions(self) -> dict[str, str]:
        """Raises MissingDependencyError when a needed distribution is not installed."""
        found = {}
        for tool in self.tools:
            if (version := installed_version(tool)) is None:
                raise MissingDependencyError(
                    f"{self.title} needs {tool}, which is not installed",
                    f"pip install 'slmrank[{self.extra}]'",
                )
            found[tool] = version
        return found


def in_order(step: Step, asked: Callable[[Step], bool] = lambda _: True) -> list[Step]:
    """The step and everything before it, inputs first, each once; without those that are not
    `asked` for, and what stands behind these alone."""
    ordered: dict[str, Step] = {}

    def visit(current: Step) -> None:
        if asked(current):
            for before in current.inputs.values():
                visit(before)
            ordered.setdefault(f"{current.kind}/{current.key}", current)

    visit(step)
    return list(ordered.values())


def pending(step: Step, store: ArtifactStore, *, force: bool = False) -> list[Step]:
    """What a run has to make, inputs first: the step where it is missing, made of other inputs, or
    forced, and likewise what it is made from. What stands behind something current may have been
    cleaned away, and is not made again."""
    return in_order(step, lambda one: (force and one is step) or find_current(one, store) is None)


def run(
    step: Step,
    store: ArtifactStore,
    watcher: Watcher | None = None,
    *,
    force: bool = False,
    device: str = "cpu",
) -> Artifact:
    """Make a step and whatever it needs; returns its artifact. `force` remakes the step itself."""
    watching = watcher or Watcher()
    if not is_first():
        return _follow(step, store, force, device)
    missing = pending(step, store, force=force)
    to_make = {(one.kind, one.key) for one in missing}
    for before in in_order(step):
        earlier = store.find(before.kind, before.key)
        if earlier is not None and (before.kind, before.key) not in to_make:
            watching.finished(before, earlier, cached=True)
    # What was made again may have other content, and make stale what was current.
    while missing:
        if missing[0] is step:
            return _ensure(step, store, watching, force=force, device=device)
        _ensure(missing[0], store, watching, force=False, device=device)
        missing = pending(step, store, force=force)
    found = store.read(step.kind, step.key)
    if (step.kind, step.key) in to_make:  # what was made again before it is what it was
        watching.finished(step, found, cached=True)
    return found


@dataclass(frozen=True)
class Runner:
    """Makes steps: where their artifacts are kept, who hears of it, and the device."""

    store: ArtifactStore
    watcher: Watcher
    device: str

    def run(self, step: Step, *, force: bool = False) -> Artifact:
        """As `run`."""
        return run(step, self.store, self.watcher, force=force, device=self.device)


def find_current(step: Step, store: ArtifactStore) -> Artifact | None:
    """The step's artifact, unless one of its inputs was made again since with other content
    (training is not reproducible to the bit)."""
    found = store.find(step.kind, step.key)
    return None if found is None or changed_inputs(step, found, store) else found


def changed_inputs(step: Step, artifact: Artifact, store: ArtifactStore) -> list[str]:
    """Inputs whose content is not the one that the artifact was made from."""
    known = _made_of(artifact)
    return [name for name, one in step.inputs.items() if _is_changed(one, known, store)]


def _made_of(artifact: Artifact) -> dict[str, str]:
    """The digests of all that stands behind an artifact, by kind and key."""
    known = dict(artifact.manifest.get("behind", {}))
    given = artifact.manifest["inputs"].values()
    return known | {f"{one['kind']}/{one['key']}": one["digest"] for one in given}


def _is_changed(step: Step, known: Mapping[str, str], store: ArtifactStore) -> bool:
    """Whether an artifact is not what it was, or where it was cleaned away, what it was made from;
    `known` are the digests of then."""
    found = store.find(step.kind, step.key)
    if found is None:
        return any(_is_changed(one, known, store) for one in step.inputs.values())
    recorded = known.get(f"{step.kind}/{step.key}")
    return recorded is not None and (found.digest != recorded or find_current(step, store) is None)


def _ensure(
    step: Step, store: ArtifactStore, watcher: Watcher, *, force: bool, device: str
) -> Artifact:
    found = None if force else find_current(step, store)
    if found is None:

        def waits() -> None:
            watcher.started(replace(step, title=f"{step.title}, by another process"))
            watcher.progress(0, 0, "waiting for it")

        with store.lock(step.kind, step.key, waits):
            found = None if force else find_current(step, store)
            if found is None:
                return _make(step, store, watcher, device)
    watcher.finished(step, found, cached=True)
    return found


def _follow(step: Step, store: ArtifactStore, force: bool, device: str) -> Artifact:
    """What a process that is not the first does: take part in what is made together, wait for the
    rest. The launcher ends it when the first one fails."""
    while missing := pending(step, store, force=force):
        [one, *after] = missing
        if one.together:
            inputs = _inputs(one, store)
            with tempfile.TemporaryDirectory() as scratch:
                work = store.work(one.kind, one.key)
                draft = Draft(path=Path(scratch), work=work, lineage={"settings": one.settings})
                one.make(
                    Making(
                        draft=draft, inputs=inputs, watcher=Watcher(), store=store, device=device
                    )
                )
        while find_current(one, store) is None:
            time.sleep(POLL_S)
        if not after:
            break
    return store.read(step.kind, step.key)


def _inputs(step: Step, store: ArtifactStore) -> dict[str, Artifact]:
    """What a step is made from, all of which was made before it."""
    return {name: store.read(one.kind, one.key) for name, one in step.inputs.items()}


_FULL = re.compile(r"no space left|os error 28", re.IGNORECASE)


def own_work(making: Making) -> Path:
    """The folder for what an interrupted run goes on from, empty where that began with other
    inputs: keys do not tell an artifact from the one that was made again."""
    work, note = making.draft.work, making.draft.work / "inputs.json"
    inputs = canonical_json({name: one.digest for name, one in making.inputs.items()})
    if work.is_dir():
        if note.is_file() and note.read_text(encoding="utf-8", errors="replace") == inputs:
            return work
        shutil.rmtree(work)
    work.mkdir(parents=True)
    write_atomic(note, inputs)
    return work


def _require_unchanged(step: Step) -> None:
    """Raises ArtifactError when a file is not the one that the key stands for."""
    if step.again is not None and step.again() != step.settings:
        raise ArtifactError(
            f"{step.title}: a file that it reads was changed since the spec was read",
            "run it again, from the spec",
        )


def _make(step: Step, store: ArtifactStore, watcher: Watcher, device: str) -> Artifact:
    inputs = _inputs(step, store)
    lineage: dict[str, Any] = {
        "bundle": step.bundle,
        "settings": dict(step.settings),
        "inputs": {
            name: {"kind": artifact.kind, "key": artifact.key, "digest": artifact.digest}
            for name, artifact in inputs.items()
        },
        "code": step.code_key,
        "versions": step.tool_versions(),
    }
    # So that a change is seen as well when what stands between was removed to save room.
    if behind := dict(one for given in inputs.values() for one in _made_of(given).items()):
        lineage["behind"] = behind
    _require_unchanged(step)
    watcher.started(step)
    with store.create(step.kind, step.key, lineage) as draft:
        making = Making(draft=draft, inputs=inputs, watcher=watcher, store=store, device=device)
        try:
            step.make(making)
        except Exception as error:
            # LMDB and OpenVINO each have words of their own for a full disk.
            free = shutil.disk_usage(store.root).free
            # Some remove their half of a file before they say so; what is known has its own remedy.
            said = _FULL.search(str(error)) and not isinstance(error, ControlError)
            if free < LEAST_FREE_BYTES or said:
                disks = {"--artifacts": free}
                with contextlib.suppress(OSError):  # it looks for a folder by writing there
                    disks["TMPDIR"] = shutil.disk_usage(tempfile.gettempdir()).free
                left = ", ".join(f"{name} {held // 2**20} MiB" for name, held in disks.items())
                raise ArtifactError(
                    f"{step.title} failed: no space left on a disk ({left} free): {error}",
                    "make room there, or set --artifacts or TMPDIR to another folder",
                ) from error
            raise
        for name, before in inputs.items():
            now = store.find(before.kind, before.key)
            if now is not None and now.digest != before.digest:
                raise ArtifactError(
                    f"{step.title}: {name} {before.key} was made again meanwhile, by another "
                    "process: this would hold parts of both",
                    "run it again",
                )
        _require_unchanged(step)
    artifact = store.find(step.kind, step.key)
    assert artifact is not None
    watcher.finished(step, artifact, cached=False)
    return artifact

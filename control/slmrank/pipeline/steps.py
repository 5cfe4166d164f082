"""Steps and how they run: a step is made once, from the artifacts of the steps before it.

A step's key is known before anything runs, from its settings, its inputs' keys and the versions of
the tools that decide its result; that is how `--dry-run` can plan and a second run says `cached`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from slmrank.artifacts import Artifact, ArtifactStore, Draft, artifact_key
from slmrank.errors import MissingDependencyError


class Watcher(Protocol):
    """Told what happens; the command line shows it, the library does not care."""

    def started(self, step: Step) -> None: ...

    def progress(self, done: int, total: int, note: str = "") -> None: ...

    def finished(self, step: Step, artifact: Artifact, *, cached: bool) -> None: ...


class Silent:
    """A watcher that says nothing."""

    def started(self, step: Step) -> None: ...

    def progress(self, done: int, total: int, note: str = "") -> None: ...

    def finished(self, step: Step, artifact: Artifact, *, cached: bool) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Making:
    """What a step's `make` gets: where to write, finished inputs by name, and the watcher."""

    draft: Draft
    inputs: Mapping[str, Artifact]
    watcher: Watcher
    store: ArtifactStore


@dataclass(frozen=True, kw_only=True)
class Step:
    """One artifact to be: its kind, what decides it, and how to make it.

    `version` is raised when the code of the step changes its result; `tools` are distributions
    whose versions decide it too.
    """

    kind: str
    title: str
    settings: Mapping[str, Any]
    make: Callable[[Making], None]
    inputs: Mapping[str, Step] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    extra: str = "train"
    version: int = 1

    @cached_property
    def key(self) -> str:
        return artifact_key(
            self.kind,
            self.settings,
            {name: step.key for name, step in self.inputs.items()},
            self.versions,
        )

    @cached_property
    def versions(self) -> dict[str, str]:
        """Raises MissingDependencyError when a needed distribution is not installed."""
        found = {"step": str(self.version)}
        for tool in self.tools:
            try:
                found[tool] = importlib.metadata.version(tool)
            except importlib.metadata.PackageNotFoundError as error:
                raise MissingDependencyError(
                    f"{self.title} needs {tool}, which is not installed",
                    f"pip install 'slmrank[{self.extra}]'",
                ) from error
        return found


def in_order(step: Step) -> list[Step]:
    """The step and everything before it, inputs first, each once."""
    ordered: dict[str, Step] = {}

    def visit(one: Step) -> None:
        for before in one.inputs.values():
            visit(before)
        ordered.setdefault(f"{one.kind}/{one.key}", one)

    visit(step)
    return list(ordered.values())


def run(
    step: Step, store: ArtifactStore, watcher: Watcher | None = None, *, force: bool = False
) -> Artifact:
    """Make a step and whatever it needs; returns its artifact. `force` remakes the step itself."""
    told = watcher or Silent()
    found = None if force else _find(step, store)
    if found is not None:
        # What it was made from may have been cleaned away; that is no reason to make it again.
        for before in in_order(step)[:-1]:
            earlier = store.find(before.kind, before.key)
            if earlier is not None:
                told.finished(before, earlier, cached=True)
        told.finished(step, found, cached=True)
        return found
    for before in in_order(step)[:-1]:
        _ensure(before, store, told, force=False)
    return _ensure(step, store, told, force=force)


def _find(step: Step, store: ArtifactStore) -> Artifact | None:
    """The step's artifact, unless one of its inputs was made again since with other content
    (training is not reproducible to the bit)."""
    found = store.find(step.kind, step.key)
    if found is None:
        return None
    for name, before in step.inputs.items():
        recorded = found.manifest["inputs"].get(name, {}).get("digest")
        now = _find(before, store)
        if now is None:
            if store.find(before.kind, before.key) is not None:
                return None
        elif now.digest != recorded:
            return None
    return found


def _ensure(step: Step, store: ArtifactStore, watcher: Watcher, *, force: bool) -> Artifact:
    key = step.key
    found = None if force else _find(step, store)
    if found is None:
        with store.lock(step.kind, key):
            found = None if force else _find(step, store)
            if found is None:
                return _make(step, key, store, watcher)
    watcher.finished(step, found, cached=True)
    return found


def _make(step: Step, key: str, store: ArtifactStore, watcher: Watcher) -> Artifact:
    inputs: dict[str, Artifact] = {}
    for name, before in step.inputs.items():
        artifact = store.find(before.kind, before.key)
        assert artifact is not None, f"{name} was made before {step.kind}"
        inputs[name] = artifact
    lineage = {
        "settings": dict(step.settings),
        "inputs": {
            name: {"kind": one.kind, "key": one.key, "digest": one.digest}
            for name, one in inputs.items()
        },
        "versions": step.versions,
    }
    watcher.started(step)
    with store.create(step.kind, key, lineage) as draft:
        step.make(Making(draft=draft, inputs=inputs, watcher=watcher, store=store))
    made = store.find(step.kind, key)
    assert made is not None
    watcher.finished(step, made, cached=False)
    return made

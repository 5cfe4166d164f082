"""Where a bundle stands: each of its artifacts is made, stale (and why), or missing."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from slmrank.artifacts import Artifact, ArtifactStore
from slmrank.machine.facts import installed_version
from slmrank.pipeline.steps import Step, changed_inputs, in_order

SHOWN = 3
# What tells steps of one kind apart: rows, stages, and a set's data from the bundle's own.
OF_A_KIND = ("row", "left", "set")
CHOOSE_CODE = ("method", "target", "source", "store")  # with another value, other modules run


@dataclass(frozen=True, kw_only=True)
class StepStatus:
    """One step. `why` says what differs from the newest artifact of its kind and bundle, `note`
    that it was made with other versions of its tools."""

    title: str
    kind: str
    key: str
    state: Literal["made", "stale", "missing"]
    why: str = ""
    note: str = ""


def read_status(steps: Iterable[Step], store: ArtifactStore) -> list[StepStatus]:
    """The status of every step and of what it needs, inputs first, each once."""
    needed = {f"{one.kind}/{one.key}": one for step in steps for one in in_order(step)}
    return [_status(step, store, needed) for step in needed.values()]


def _status(step: Step, store: ArtifactStore, needed: Container[str]) -> StepStatus:
    found = store.find(step.kind, step.key)
    state: Literal["made", "stale", "missing"] = "missing"
    why = note = ""
    if found is not None:
        changed = changed_inputs(step, found, store)
        state = "stale" if changed else "made"
        why = f"made from another {', '.join(changed)}" if changed else ""
        note = _versions(found)
    else:
        # Two steps of one plan may be of a kind: the ranker of a summarizer, stages of recovery.
        earlier = [
            one
            for one in store.all(step.kind)
            if f"{one.kind}/{one.key}" not in needed and _related(step, one)
        ]
        if earlier:
            state, why = "stale", _difference(step, earlier[0])
    return StepStatus(
        title=step.title, kind=step.kind, key=step.key, state=state, why=why, note=note
    )


def _related(step: Step, artifact: Artifact) -> bool:
    """Whether an artifact is an earlier one of the same step: kinds like `scores` hold several."""
    theirs = artifact.manifest["settings"]
    same = all(theirs.get(name) == step.settings.get(name) for name in OF_A_KIND)
    return artifact.manifest.get("bundle") == step.bundle and same


def _difference(step: Step, earlier: Artifact) -> str:
    """Settings, inputs and code that are not those of an earlier artifact."""
    before, after = _flat(earlier.manifest["settings"]), _flat(step.settings)
    told = [
        f"{name} {before.get(name)} -> {after.get(name)}"
        for name in sorted({*before, *after}, key=lambda name: (name != "source", name))
        if before.get(name) != after.get(name)
    ]
    more = [f"and {len(told) - SHOWN} more settings"] if len(told) > SHOWN else []
    told = [*told[:SHOWN], *more]
    inputs = earlier.manifest["inputs"]
    others = [
        name for name, one in step.inputs.items() if inputs.get(name, {}).get("key") != one.key
    ]
    if others:
        told.append(f"another {', '.join(others)}")
    other = any(before.get(name) != after.get(name) for name in CHOOSE_CODE)
    if earlier.manifest.get("code") != step.code_key and not other:
        told.append("the code that makes it changed")
    return "; ".join(told)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _versions(artifact: Artifact) -> str:
    """Tools that are installed here in another version than the one that made the artifact."""
    made = artifact.manifest.get("versions", {}).items()
    found = [(tool, version, installed_version(tool)) for tool, version in made]
    other = [f"{one} {was}, here {now}" for one, was, now in found if now not in (None, was)]
    return f"made with {'; '.join(other)}" if other else ""

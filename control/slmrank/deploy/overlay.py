"""The smallest kustomize overlay from one set of objects to another.

Objects of the same kind and name get a strategic merge patch with what differs; others are added or
deleted. Lists that Kubernetes merges by a key are patched element by element, all others whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slmrank.deploy.naming import Object
from slmrank.deploy.render import identity

# The patchMergeKey of the lists that our objects have (Kubernetes API types).
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "env": "name",
    "imagePullSecrets": "name",
}
_SAME = object()


def overlay_between(
    base: Sequence[Object], wanted: Sequence[Object]
) -> tuple[list[Object], list[Object]]:
    """(patches, added objects)"""
    before = {identity(one): one for one in base}
    after = {identity(one): one for one in wanted}
    patches = []
    for key, one in before.items():
        head = _head(one)
        if key not in after:
            patches.append({**head, "$patch": "delete"})
            continue
        change = _change(one, after[key], "")
        if change is not _SAME:
            change["metadata"] = {**change.get("metadata", {}), **head["metadata"]}
            patches.append({**head, **change})
    return patches, [one for key, one in after.items() if key not in before]


def _head(given: Object) -> Object:
    metadata = {
        name: given["metadata"][name] for name in ("name", "namespace") if name in given["metadata"]
    }
    return {"apiVersion": given["apiVersion"], "kind": given["kind"], "metadata": metadata}


def _change(old: Any, new: Any, field: str) -> Any:
    """What must be patched to make `old` into `new`."""
    if old == new:
        return _SAME
    if isinstance(old, dict) and isinstance(new, dict):
        return _map_change(old, new)
    if isinstance(old, list) and isinstance(new, list) and field in MERGE_KEYS:
        return _list_change(old, new, MERGE_KEYS[field])
    return new


def _map_change(old: Object, new: Object) -> Object:
    change: Object = {name: None for name in old if name not in new}
    for name, value in new.items():
        inner = _change(old[name], value, name) if name in old else value
        if inner is not _SAME:
            change[name] = inner
    return change


def _list_change(old: list[Object], new: list[Object], key: str) -> list[Object]:
    before = {one[key]: one for one in old}
    change: list[Object] = []
    for one in new:
        if one[key] not in before:
            change.append(one)
            continue
        inner = _change(before[one[key]], one, "")
        if inner is not _SAME:
            change.append({key: one[key], **inner})
    kept = {one[key] for one in new}
    change += [{key: name, "$patch": "delete"} for name in before if name not in kept]
    return change

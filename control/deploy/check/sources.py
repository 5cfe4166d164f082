"""Read manifests: files, folders, several documents in one file, lists of objects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from control.deploy.check.finding import Finding, Located, mapping, sequence
from control.errors import DeployError

_KUSTOMIZE_GROUP = "kustomize.config.k8s.io/"


@dataclass(kw_only=True)
class Read:
    """What was read; `skipped` are documents in a folder that are no objects of a cluster."""

    objects: list[Located] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


class _Strict(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping; YAML readers silently keep one of them."""


def _mapping(loader: _Strict, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    seen: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        try:
            twice = key in seen
        except TypeError as error:
            raise yaml.constructor.ConstructorError(
                None, None, "a key is not a plain value", key_node.start_mark
            ) from error
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice", key_node.start_mark
            )
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
# `=` is a plain text; PyYAML has no value for it (an argument of some containers).
_Strict.add_constructor("tag:yaml.org,2002:value", lambda loader, node: str(node.value))


def read_manifests(paths: Iterable[Path]) -> Read:
    """Every object of the files and folders. Raises DeployError when a path does not exist or
    holds no manifest."""
    read = Read()
    for path in paths:
        if path.is_dir():
            files = sorted([*path.rglob("*.yaml"), *path.rglob("*.yml")])
            if not files:
                raise DeployError(f"{path} holds no .yaml file", "give a file or another folder")
            patches = {patch for file in files for patch in _patches(file)}
            for file in files:
                if file.resolve() in patches:
                    read.skipped.append(f"{file} (a patch)")
                else:
                    _read_file(file, read, asked=False, group=str(file.parent))
        else:
            _read_file(path, read, asked=True, group="")
    return read


def _read_file(path: Path, read: Read, *, asked: bool, group: str) -> None:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DeployError(f"cannot read {path}: {error}", "check the path") from error
    read_text(text, str(path), read, asked=asked, group=group)


def read_text(text: str, name: str, read: Read, *, asked: bool = True, group: str = "") -> None:
    """Objects of one text. What is no object is a finding where the file itself was `asked` for,
    and skipped in a folder."""
    try:
        documents = list(yaml.load_all(text, Loader=_Strict))
    except yaml.YAMLError as error:
        told = " ".join(str(error).split())
        read.findings.append(
            Finding(
                rule="yaml",
                where=name,
                message=f"is not valid YAML: {told}",
                fix="correct the file at that place",
            )
        )
        return
    several = len([one for one in documents if one is not None]) > 1
    for number, document in enumerate(documents, start=1):
        if document is None:
            continue
        where = f"{name}#{number}" if several else name
        _add(document, where, read, asked=asked, group=group)


def _add(document: Any, where: str, read: Read, *, asked: bool, group: str) -> None:
    content = mapping(document)
    if str(content.get("apiVersion", "")).startswith(_KUSTOMIZE_GROUP):
        read.skipped.append(f"{where} (kustomize)")
        return
    if content.get("kind") == "List" and "items" in content:
        for index, item in enumerate(sequence(content["items"])):
            _add(item, f"{where}[{index}]", read, asked=asked, group=group)
        return
    if isinstance(content.get("apiVersion"), str) and isinstance(content.get("kind"), str):
        read.objects.append(Located(source=where, content=content, group=group))
        return
    if not asked and not ({"apiVersion", "kind"} & set(content)):
        read.skipped.append(f"{where} (no Kubernetes object)")
        return
    fields = ("apiVersion", "kind")
    missing = " and ".join(name for name in fields if not isinstance(content.get(name), str))
    read.findings.append(
        Finding(
            rule="not-an-object",
            where=where,
            message=f"has no {missing}",
            fix="add it, or leave the file out",
        )
    )


def _patches(file: Path) -> list[Path]:
    """Files that a kustomization names as patches: they are parts of objects."""
    if file.name not in ("kustomization.yaml", "kustomization.yml"):
        return []
    try:
        loaded = mapping(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    named = [mapping(one).get("path") for one in sequence(loaded.get("patches"))]
    named += list(sequence(loaded.get("patchesStrategicMerge")))
    return [(file.parent / one).resolve() for one in named if isinstance(one, str)]

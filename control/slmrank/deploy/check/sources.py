"""Read manifests: files, folders, several documents in one file, lists of objects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from slmrank.deploy.check.finding import Finding, Located, mapping, sequence
from slmrank.deploy.yaml_text import read_as_kubectl
from slmrank.errors import DeployError
from slmrank.spec.reading import OnceEachLoader

_ENDS = (".yaml", ".yml", ".json")
_KUSTOMIZE_GROUP = "kustomize.config.k8s.io/"


@dataclass(kw_only=True)
class Read:
    """What was read; `skipped` are documents in a folder that are no objects of a cluster."""

    objects: list[Located] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


class Loader(OnceEachLoader):
    """YAML as kubectl reads it where PyYAML differs and it matters: a key that stands twice is an
    error, dates and `12:30` are texts."""


Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":int"))
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(0x[0-9a-fA-F]+|0o?[0-7]+|0|[1-9][0-9]*)$"),
    list("-+0123456789"),
)
read_as_kubectl(Loader)
Loader.bool_values = {**yaml.SafeLoader.bool_values, "y": True, "n": False}


def read_manifests(paths: Iterable[Path]) -> Read:
    """Every object of the files and folders. Raises DeployError when a path does not exist or
    holds no manifest."""
    read = Read()
    for path in paths:
        if path.is_dir():
            files = sorted(one for end in _ENDS for one in path.rglob(f"*{end}"))
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
        if name.endswith(".json"):
            documents: list[Any] = [json.loads(text)]
        else:
            documents = list(yaml.load_all(text, Loader=Loader))
        json.dumps(documents, skipkeys=True, default=str)  # an alias may stand in what it names
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        told = " ".join(str(error).split())
        message, fix = f"is not valid YAML: {told}", "correct the file at that place"
        read.findings.append(Finding(rule="yaml", where=name, message=message, fix=fix))
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
    if str(content.get("kind", "")).endswith("List") and isinstance(content.get("items"), list):
        for index, item in enumerate(sequence(content["items"])):
            # Items of a RoleList are Roles without saying so.
            kind = str(content["kind"]).removesuffix("List")
            named = {"apiVersion": content.get("apiVersion"), "kind": kind} if kind else {}
            item = {**named, **mapping(item)} if isinstance(item, dict) else item
            _add(item, f"{where}[{index}]", read, asked=asked, group=group)
        return
    if isinstance(content.get("apiVersion"), str) and isinstance(content.get("kind"), str):
        read.objects.append(Located(source=where, content=without_nulls(content), group=group))
        return
    if not asked and not {"apiVersion", "kind"} <= set(content):
        read.skipped.append(f"{where} (no Kubernetes object)")
        return
    fields = ("apiVersion", "kind")
    missing = " and ".join(name for name in fields if not isinstance(content.get(name), str))
    message, fix = f"has no {missing}", "add it, or leave the file out"
    read.findings.append(Finding(rule="not-an-object", where=where, message=message, fix=fix))


def without_nulls(value: Any) -> Any:
    """An explicit null is the same as nothing; templates leave many."""
    if isinstance(value, dict):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


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

"""Field names and types, by the schemas of a Kubernetes version, and of CRDs by their own.

kubernetes-validate lets a kind or an API version pass that it does not know; here that is a fault.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from slmrank.deploy.check.finding import Finding, Located, mapping, sequence
from slmrank.deploy.check.sources import Loader
from slmrank.errors import DeployError, MissingDependencyError
from slmrank.shipped import shipped

OLDEST = "1.29"
# Marks the schema of a CRD file: it lists every field, the shipped ones do not.
WHOLE = "x-slmrank-whole"
NEAR = 0.8
# (apiVersion, kind) -> (the version without it, what to use)
REMOVED: dict[tuple[str, str], tuple[str, str]] = {
    ("autoscaling/v2beta1", "HorizontalPodAutoscaler"): ("1.25", "autoscaling/v2"),
    ("autoscaling/v2beta2", "HorizontalPodAutoscaler"): ("1.26", "autoscaling/v2"),
    ("batch/v1beta1", "CronJob"): ("1.25", "batch/v1"),
    ("discovery.k8s.io/v1beta1", "EndpointSlice"): ("1.25", "discovery.k8s.io/v1"),
    ("events.k8s.io/v1beta1", "Event"): ("1.25", "events.k8s.io/v1"),
    ("policy/v1beta1", "PodDisruptionBudget"): ("1.25", "policy/v1"),
    ("policy/v1beta1", "PodSecurityPolicy"): ("1.25", "Pod Security labels on the namespace"),
    ("node.k8s.io/v1beta1", "RuntimeClass"): ("1.25", "node.k8s.io/v1"),
    ("extensions/v1beta1", "Deployment"): ("1.16", "apps/v1"),
    ("extensions/v1beta1", "DaemonSet"): ("1.16", "apps/v1"),
    ("extensions/v1beta1", "ReplicaSet"): ("1.16", "apps/v1"),
    ("extensions/v1beta1", "NetworkPolicy"): ("1.16", "networking.k8s.io/v1"),
    ("extensions/v1beta1", "Ingress"): ("1.22", "networking.k8s.io/v1"),
    ("networking.k8s.io/v1beta1", "Ingress"): ("1.22", "networking.k8s.io/v1"),
    ("apps/v1beta1", "Deployment"): ("1.16", "apps/v1"),
    ("apps/v1beta1", "StatefulSet"): ("1.16", "apps/v1"),
    ("apps/v1beta2", "Deployment"): ("1.16", "apps/v1"),
    ("apps/v1beta2", "StatefulSet"): ("1.16", "apps/v1"),
    ("apps/v1beta2", "DaemonSet"): ("1.16", "apps/v1"),
    ("rbac.authorization.k8s.io/v1beta1", "Role"): ("1.22", "rbac.authorization.k8s.io/v1"),
    ("rbac.authorization.k8s.io/v1beta1", "RoleBinding"): ("1.22", "rbac.authorization.k8s.io/v1"),
    ("rbac.authorization.k8s.io/v1beta1", "ClusterRole"): ("1.22", "rbac.authorization.k8s.io/v1"),
    ("apiextensions.k8s.io/v1beta1", "CustomResourceDefinition"): (
        "1.22",
        "apiextensions.k8s.io/v1",
    ),
    ("admissionregistration.k8s.io/v1beta1", "ValidatingWebhookConfiguration"): (
        "1.22",
        "admissionregistration.k8s.io/v1",
    ),
    ("storage.k8s.io/v1beta1", "StorageClass"): ("1.22", "storage.k8s.io/v1"),
    ("scheduling.k8s.io/v1beta1", "PriorityClass"): ("1.22", "scheduling.k8s.io/v1"),
    ("flowcontrol.apiserver.k8s.io/v1beta3", "FlowSchema"): (
        "1.32",
        "flowcontrol.apiserver.k8s.io/v1",
    ),
}
Crds = dict[tuple[str, str], dict[str, Any]]


def known_versions() -> list[str]:
    """Kubernetes versions that can be checked, oldest first, such as 1.29.

    Raises MissingDependencyError without kubernetes-validate.
    """
    found = {_minor(one) for one in _validator().utils.all_versions()}
    return sorted((one for one in found if as_version(one) >= as_version(OLDEST)), key=as_version)


def check_schema(given: Located, version: str, crds: Crds) -> list[Finding]:
    """Faults of one object against the schemas of a Kubernetes `version`."""
    key = (given.api_version, given.kind)
    if key in REMOVED and as_version(version) >= as_version(REMOVED[key][0]):
        since, instead = REMOVED[key]
        return [
            Finding(
                rule="removed-api",
                where=given.at("apiVersion"),
                message=f"{given.api_version} {given.kind} was removed in Kubernetes {since}",
                fix=f"use {instead}",
            )
        ]
    if key in crds:
        return list(_crd_faults(given, crds[key]))
    validator = _validator()
    try:
        validator.validate(given.content, version, strict=True)
    except validator.SchemaNotFoundError:
        return [_unknown(given, version)]
    except validator.ValidationError as error:
        return [_fault(given, error)]
    return []


def load_crds(paths: Sequence[Path] = ()) -> Crds:
    """The schemas of the shipped custom kinds and of CustomResourceDefinition files.

    Raises DeployError when a file holds no CRD.
    """
    crds: Crds = {}
    for kind in yaml.safe_load(shipped("build/crds.yaml").read_text(encoding="utf-8"))["kinds"]:
        crds[kind["apiVersion"], kind["kind"]] = kind["schema"]
    for path in paths:
        crds |= _read_crds(path)
    return crds


def as_version(text: str) -> tuple[int, ...]:
    """`1.29` or `v1.29.3` -> (1, 29)"""
    numbers = re.findall(r"\d+", text)
    return tuple(int(one) for one in numbers[:2])


@cache
def _validator() -> Any:
    try:
        import kubernetes_validate
    except ImportError as error:
        raise MissingDependencyError(
            "checking manifests needs kubernetes-validate", "pip install 'slmrank[k8s]'"
        ) from error
    return kubernetes_validate


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _unknown(given: Located, version: str) -> Finding:
    return Finding(
        rule="unknown-kind",
        where=given.at("kind"),
        message=f"{given.api_version} {given.kind} is no kind of Kubernetes {version}",
        fix="correct apiVersion and kind; for a custom kind give its CRD with --crd",
    )


def _fault(given: Located, error: Any) -> Finding:
    path = _path(error.path)
    if error.validator == "additionalProperties":
        names = re.findall(r"'([^']*)'", error.message)
        names = [name for name in names if name in mapping(error.instance)]
        known = list(mapping(error.schema.get("properties")))
        near = [(name, difflib.get_close_matches(name, known, n=1, cutoff=0.6)) for name in names]
        told = ", ".join(
            name + (f" (did you mean {close[0]}?)" if close else "") for name, close in near
        )
        return Finding(
            rule="unknown-field",
            where=given.at(path),
            message=f"has no field {told}",
            fix="correct its name or place; the API server drops or refuses it",
        )
    return Finding(
        rule="schema",
        where=given.at(path),
        message=error.message if len(error.message) < 300 else error.message[:297] + "...",
        fix="give the type and the fields that the API asks for",
    )


def _path(parts: Any) -> str:
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _crd_faults(given: Located, schema: Mapping[str, Any]) -> Iterator[Finding]:
    """Types and required fields by JSON Schema; of unknown fields only those that look like a known
    one are faults, because the shipped schemas need not know the newest fields."""
    import jsonschema

    for error in jsonschema.Draft202012Validator(dict(schema)).iter_errors(given.content):
        yield _fault(given, error)
    whole = bool(schema.get(WHOLE))
    yield from _near_names(given, given.content, schema, "", whole=whole)


def _near_names(
    given: Located, value: Any, schema: Mapping[str, Any], path: str, *, whole: bool = False
) -> Iterator[Finding]:
    if isinstance(value, list):
        for number, one in enumerate(value):
            inner = mapping(schema.get("items"))
            yield from _near_names(given, one, inner, f"{path}[{number}]", whole=whole)
        return
    known = mapping(schema.get("properties"))
    open_ended = "additionalProperties" in schema or schema.get(
        "x-kubernetes-preserve-unknown-fields"
    )
    if not isinstance(value, dict) or not known or open_ended:
        return
    for name, inner in value.items():
        below = f"{path}.{name}" if path else str(name)
        if name in known:
            yield from _near_names(given, inner, mapping(known[name]), below, whole=whole)
            continue
        if not path and name in ("apiVersion", "kind", "metadata"):
            continue
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=NEAR)
        if near or (whole and path):
            meant = f" (did you mean {near[0]}?)" if near else ""
            yield Finding(
                rule="unknown-field",
                where=given.at(below),
                message=f"has no field {name}{meant}",
                fix="correct its name or place",
            )


def _as_json_schema(schema: Any) -> Any:
    """OpenAPI v3 as JSON Schema: nullable, boolean exclusive bounds, and patterns that only Go can
    read left out."""
    if isinstance(schema, list):
        return [_as_json_schema(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _as_json_schema(one) for key, one in schema.items()}
    if made.pop("nullable", False) is True and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    for bound in ("Minimum", "Maximum"):
        strict = made.get(f"exclusive{bound}")
        if isinstance(strict, bool):
            del made[f"exclusive{bound}"]
            if strict and bound.lower() in made:
                made[f"exclusive{bound}"] = made.pop(bound.lower())
    if isinstance(made.get("pattern"), str):
        try:
            re.compile(made["pattern"])
        except re.error:
            del made["pattern"]
    return made


def _read_crds(path: Path) -> Crds:
    found: Crds = {}
    try:
        documents = list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=Loader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DeployError(f"cannot read {path}: {error}", "give a CRD as YAML") from error
    for document in documents:
        spec = mapping(mapping(document).get("spec"))
        if mapping(document).get("kind") != "CustomResourceDefinition":
            continue
        for version in sequence(spec.get("versions")):
            schema = mapping(mapping(version).get("schema")).get("openAPIV3Schema")
            key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
            found[key] = {**_as_json_schema(mapping(schema)), WHOLE: True}
    if not found:
        raise DeployError(f"{path} holds no CustomResourceDefinition", "give the CRD of the kind")
    return found

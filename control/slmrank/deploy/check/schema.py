"""Field names and types, by the schemas of a Kubernetes version, and of CRDs by their own.

kubernetes-validate lets a kind or an API version pass that it does not know; here that is a fault.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from slmrank.deploy.check.finding import Finding, Located, mapping, sequence
from slmrank.deploy.check.sources import Loader
from slmrank.errors import DeployError, needs
from slmrank.shipped import shipped

OLDEST = "1.29"
_KIND_FIX = (
    "correct apiVersion and kind, or use the API version that replaced a removed one "
    "(autoscaling/v2, policy/v1); for a custom kind give its CRD with --crd"
)
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
    if key in crds:
        import jsonschema

        validator = jsonschema.Draft202012Validator(crds[key])
        return [_fault(given, error) for error in validator.iter_errors(given.content)]
    strict = _validator()
    try:
        strict.validate(given.content, version, strict=True)
    except strict.SchemaNotFoundError:
        message = f"{given.api_version} {given.kind} is no kind of Kubernetes {version}"
        return [given.fault("kind", "unknown-kind", message, _KIND_FIX)]
    except strict.ValidationError as error:
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
    with needs("checking manifests needs kubernetes-validate", "k8s"):
        import kubernetes_validate
    return kubernetes_validate


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


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
        fix = "correct its name or place; the API server drops or refuses it"
        return given.fault(path, "unknown-field", f"has no field {told}", fix)
    message = error.message if len(error.message) < 300 else error.message[:297] + "..."
    return given.fault(
        path, "schema", message, "give the type and the fields that the API asks for"
    )


def _path(parts: Any) -> str:
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _as_json_schema(schema: Any) -> Any:
    """OpenAPI v3 as JSON Schema: nullable, boolean exclusive bounds, and patterns that only Go can
    read left out."""
    if isinstance(schema, list):
        return [_as_json_schema(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    converted = {key: _as_json_schema(value) for key, value in schema.items()}
    if converted.pop("nullable", False) is True and isinstance(converted.get("type"), str):
        converted["type"] = [converted["type"], "null"]
    for bound in ("Minimum", "Maximum"):
        strict = converted.get(f"exclusive{bound}")
        if isinstance(strict, bool):
            del converted[f"exclusive{bound}"]
            if strict and bound.lower() in converted:
                converted[f"exclusive{bound}"] = converted.pop(bound.lower())
    if isinstance(converted.get("pattern"), str):
        try:
            re.compile(converted["pattern"])
        except re.error:
            del converted["pattern"]
    # A CRD lists every field that it has; the server drops the others.
    closed = not converted.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and closed:
        converted.setdefault("additionalProperties", False)
    return converted


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
            found[key] = {**_as_json_schema(mapping(schema)), "additionalProperties": True}
    if not found:
        raise DeployError(f"{path} holds no CustomResourceDefinition", "give the CRD of the kind")
    return found

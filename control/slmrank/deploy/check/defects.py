"""The defects that a real API server refused when they were planted, found without a server.

Everything else that a server validates is the business of the strict schemas and of its own dry run
(`control deploy plan`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from slmrank.deploy.check.finding import Finding, Located, PodSpec, mapping, matches, sequence

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SERVICE = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUANTITY = re.compile(r"\+?(\d+(\.\d*)?|\.\d+)(([KMGTPE]i)|[numkMGTPE]|[eE][+-]?\d+)?")
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
_UNITS = "Ki, Mi, Gi, Ti or k, M, G, T, or m for thousandths"
_NAME_FIX = "use lower-case letters, digits and '-', no '-' at the ends, at most 63 characters"
_SELECTING = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet")
_AMOUNTS = ("averageValue", "sizeLimit")


def object_defects(given: Located) -> Iterator[Finding]:
    """Defects outside the pod template."""
    name = given.name
    form = _SERVICE if given.native == "Service" else _SUBDOMAIN
    if name and not given.api_group.startswith("rbac.") and not form.fullmatch(name):
        yield _finding(given, "metadata.name", "name", f"{name!r} is not a valid name", _NAME_FIX)
    namespace = given.metadata.get("namespace")
    if isinstance(namespace, str) and not _LABEL.fullmatch(namespace):
        message = f"{namespace!r} is no DNS label"
        yield _finding(given, "metadata.namespace", "name", message, _NAME_FIX)
    yield from _quantities(given, given.content, "")
    if given.native == "Service":
        yield from _ports(given, "spec.ports", sequence(given.spec.get("ports")), limit=63)
    if given.native == "PodDisruptionBudget" and {"minAvailable", "maxUnavailable"} <= set(
        given.spec
    ):
        message = "minAvailable and maxUnavailable are both set"
        yield _finding(given, "spec", "pdb-both", message, "keep maxUnavailable")
    if given.native == "Deployment":
        rolling = mapping(mapping(given.spec.get("strategy")).get("rollingUpdate"))
        if _zero(rolling.get("maxSurge", "25%")) and _zero(rolling.get("maxUnavailable", "25%")):
            yield _finding(
                given,
                "spec.strategy.rollingUpdate",
                "rollout-stuck",
                "maxSurge and maxUnavailable are both 0: no pod can ever be replaced",
                "set one of them to 1",
            )


def pod_defects(pod: PodSpec) -> Iterator[Finding]:
    """Defects of a pod template."""
    selector = pod.owner.spec.get("selector")
    if pod.owner.native in _SELECTING and not (
        isinstance(selector, dict) and selector and matches(selector, pod.labels)
    ):
        yield _finding(
            pod.owner,
            "spec.selector",
            "selector",
            f"{selector} does not match the labels of the template, {pod.labels}",
            "give both the same labels",
        )
    volumes = {str(mapping(one).get("name")) for one in sequence(pod.spec.get("volumes"))}
    claims = sequence(pod.owner.spec.get("volumeClaimTemplates"))
    volumes |= {str(mapping(mapping(one).get("metadata")).get("name")) for one in claims}
    for path, container in pod.containers():
        ports = sequence(container.get("ports"))
        yield from _ports(pod.owner, f"{path}.ports", ports, limit=15)
        for number, mount in enumerate(map(mapping, sequence(container.get("volumeMounts")))):
            if mount.get("name") is not None and str(mount["name"]) not in volumes:
                yield _finding(
                    pod.owner,
                    f"{path}.volumeMounts[{number}]",
                    "missing-volume",
                    f"the pod has no volume {mount['name']!r}",
                    f"declare it, or mount one of {', '.join(sorted(volumes)) or 'none'}",
                )
        yield from _devices(pod, f"{path}.resources", mapping(container.get("resources")))
        for field in ("livenessProbe", "startupProbe"):
            successes = mapping(container.get(field)).get("successThreshold", 1)
            if successes != 1:
                yield _finding(
                    pod.owner,
                    f"{path}.{field}.successThreshold",
                    "probe-successes",
                    f"{successes} is not possible for a {field}",
                    "leave it out; it must be 1",
                )


def _ports(given: Located, path: str, ports: Any, *, limit: int) -> Iterator[Finding]:
    names = Counter(str(mapping(port)["name"]) for port in ports if mapping(port).get("name"))
    for name, count in names.items():
        if count > 1:
            message = f"{count} ports are named {name!r}"
            fix = "give each port its own name"
            yield _finding(given, path, "duplicate-port-name", message, fix)
        if not _PORT_NAME.fullmatch(name) or len(name) > limit:
            fix = f"at most {limit} lower-case letters, digits and single '-', with a letter"
            yield _finding(given, path, "port-name", f"{name!r} is no valid port name", fix)


def _devices(pod: PodSpec, path: str, resources: dict[str, Any]) -> Iterator[Finding]:
    """GPUs and other devices: named with a domain that is not Kubernetes' own."""
    requests, limits = mapping(resources.get("requests")), mapping(resources.get("limits"))
    for name in sorted({*map(str, requests), *map(str, limits)}):
        if "/" not in name or "kubernetes.io/" in name:
            continue
        asked, limit = requests.get(name), limits.get(name)
        if limit is None or (asked is not None and str(asked) != str(limit)):
            message = f"{name}: request {asked}, limit {limit}; they must be equal"
            fix = "set the limit; the request follows it"
            yield _finding(pod.owner, path, "gpu-request", message, fix)
        elif not str(limit).isdigit():
            message = f"{name}: {limit} is no whole number"
            yield _finding(pod.owner, path, "gpu-request", message, "whole devices only")


def _quantities(given: Located, value: Any, path: str) -> Iterator[Finding]:
    """Amounts wherever the API has them, by the names of their fields."""
    if isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _quantities(given, inner, f"{path}[{number}]")
    if not isinstance(value, dict) or given.kind in ("ConfigMap", "Secret"):
        return
    for name, inner in value.items():
        below = f"{path}.{name}".lstrip(".")
        if name == "resources" and isinstance(inner, dict):
            for kind in ("requests", "limits"):
                for resource, amount in mapping(inner.get(kind)).items():
                    yield from _quantity(given, f"{below}.{kind}.{resource}", amount)
        elif name in _AMOUNTS:
            yield from _quantity(given, below, inner)
        yield from _quantities(given, inner, below)


def _quantity(given: Located, path: str, amount: Any) -> Iterator[Finding]:
    if amount is None or isinstance(amount, bool | dict | list):
        return  # the schema's business
    text = str(amount)
    if not _QUANTITY.fullmatch(text):
        near = re.fullmatch(r"([\d.]+)\s*([KMGTPE])i?[Bb]", text)
        fix = f"write {near[1]}{near[2]}i" if near else f"a number, 0 or more, with {_UNITS}"
        yield _finding(given, path, "quantity", f"{text!r} is not a quantity", fix)


def _zero(value: Any) -> bool:
    return re.fullmatch(r"0+%?", str(value)) is not None


def _finding(given: Located, path: str, rule: str, message: str, fix: str) -> Finding:
    return Finding(rule=rule, where=given.at(path), message=message, fix=fix)

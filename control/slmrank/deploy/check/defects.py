"""The defects that a real API server refused when they were planted, found without a server.

Everything else that a server validates is the business of the strict schemas and of its own dry run
(`control deploy plan`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
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
SCALERS = ("HorizontalPodAutoscaler", "ScaledObject")


def object_defects(given: Located) -> Iterator[Finding]:
    """Defects outside the pod template."""
    name = given.name
    form = _SERVICE if given.native == "Service" else _SUBDOMAIN
    if name and not given.api_group.startswith("rbac.") and not form.fullmatch(name):
        yield given.fault("metadata.name", "name", f"{name!r} is not a valid name", _NAME_FIX)
    namespace = given.metadata.get("namespace")
    if isinstance(namespace, str) and not _LABEL.fullmatch(namespace):
        message = f"{namespace!r} is no DNS label"
        yield given.fault("metadata.namespace", "name", message, _NAME_FIX)
    yield from _quantities(given, given.content, "")
    if given.native == "Service":
        yield from _ports(given, "spec.ports", sequence(given.spec.get("ports")), limit=63)
    if given.native == "PodDisruptionBudget" and {"minAvailable", "maxUnavailable"} <= set(
        given.spec
    ):
        message = "minAvailable and maxUnavailable are both set"
        yield given.fault("spec", "pdb-both", message, "keep maxUnavailable")
    if given.native == "Deployment":
        rolling = mapping(mapping(given.spec.get("strategy")).get("rollingUpdate"))
        if _zero(rolling.get("maxSurge", "25%")) and _zero(rolling.get("maxUnavailable", "25%")):
            message = "maxSurge and maxUnavailable are both 0: no pod can ever be replaced"
            where, fix = "spec.strategy.rollingUpdate", "set one of them to 1"
            yield given.fault(where, "rollout-stuck", message, fix)


def pod_defects(pod: PodSpec) -> Iterator[Finding]:
    """Defects of a pod template."""
    given, selector = pod.owner, pod.owner.spec.get("selector")
    if given.native in _SELECTING and not (
        isinstance(selector, dict) and selector and matches(selector, pod.labels)
    ):
        message = f"{selector} does not match the labels of the template, {pod.labels}"
        yield given.fault("spec.selector", "selector", message, "give both the same labels")
    volumes = {str(mapping(one).get("name")) for one in sequence(pod.spec.get("volumes"))}
    claims = sequence(given.spec.get("volumeClaimTemplates"))
    volumes |= {str(mapping(mapping(one).get("metadata")).get("name")) for one in claims}
    for path, container in pod.containers():
        ports = sequence(container.get("ports"))
        yield from _ports(given, f"{path}.ports", ports, limit=15)
        for number, mount in enumerate(map(mapping, sequence(container.get("volumeMounts")))):
            if mount.get("name") is not None and str(mount["name"]) not in volumes:
                where, name = f"{path}.volumeMounts[{number}]", mount["name"]
                fix = f"declare it, or mount one of {', '.join(sorted(volumes)) or 'none'}"
                message = f"the pod has no volume {name!r}"
                yield given.fault(where, "missing-volume", message, fix)
        yield from _devices(given, f"{path}.resources", mapping(container.get("resources")))
        for field in ("livenessProbe", "startupProbe"):
            successes = mapping(container.get(field)).get("successThreshold", 1)
            if successes != 1:
                where = f"{path}.{field}.successThreshold"
                message = f"{successes} is not possible for a {field}"
                yield given.fault(where, "probe-successes", message, "leave it out; it must be 1")


def set_defects(objects: Sequence[Located], pods: Sequence[PodSpec]) -> Iterator[Finding]:
    """Defects between objects of one set: what each accepts and both together cannot do."""
    for one in objects:
        if one.native == "Service":
            yield from _target_ports(one, pods)
        elif one.native == "HorizontalPodAutoscaler":
            yield from _two_owners(one, objects)


def target_of(scaler: Located) -> tuple[str, str]:
    """(kind, name) of what an autoscaler scales."""
    reference = mapping(scaler.spec.get("scaleTargetRef"))
    return str(reference.get("kind", "Deployment")), str(reference.get("name"))


def _target_ports(service: Located, pods: Sequence[PodSpec]) -> Iterator[Finding]:
    """A named target port that no selected pod has leads nowhere, without any message."""
    selector = mapping(service.spec.get("selector"))
    selected = [
        pod
        for pod in pods
        if selector
        and pod.owner.namespace == service.namespace
        and matches({"matchLabels": selector}, pod.labels)
    ]
    if not selected:
        return
    declared = {
        str(mapping(port).get("name"))
        for pod in selected
        for _, container in pod.containers()
        for port in sequence(container.get("ports"))
    }
    for number, port in enumerate(sequence(service.spec.get("ports"))):
        target = mapping(port).get("targetPort")
        if isinstance(target, str) and not target.isdigit() and target not in declared:
            where = f"spec.ports[{number}].targetPort"
            fix = f"use one of {', '.join(sorted(declared - {'None'})) or 'the port numbers'}"
            message = f"no selected pod has a port named {target!r}"
            yield service.fault(where, "target-port", message, fix)


def _two_owners(autoscaler: Located, objects: Sequence[Located]) -> Iterator[Finding]:
    """Two autoscalers of one workload undo each other's number."""
    target = target_of(autoscaler)
    others = [
        one
        for one in objects
        if one.kind in SCALERS
        and one.namespace == autoscaler.namespace
        and target_of(one) == target
        and (one.kind == "ScaledObject" or one.name != autoscaler.name)
    ]
    for other in sorted(others, key=lambda one: one.name == autoscaler.name):
        message = f"{other.kind} {other.name} scales {target[0]} {target[1]} as well"
        fix = "keep one owner of `replicas`"
        yield autoscaler.fault("spec.scaleTargetRef", "two-autoscalers", message, fix)


def _ports(given: Located, path: str, ports: Any, *, limit: int) -> Iterator[Finding]:
    names = Counter(str(mapping(port)["name"]) for port in ports if mapping(port).get("name"))
    for name, count in names.items():
        if count > 1:
            message, fix = f"{count} ports are named {name!r}", "give each port its own name"
            yield given.fault(path, "duplicate-port-name", message, fix)
        if not _PORT_NAME.fullmatch(name) or len(name) > limit:
            fix = f"at most {limit} lower-case letters, digits and single '-', with a letter"
            yield given.fault(path, "port-name", f"{name!r} is no valid port name", fix)


def _devices(given: Located, path: str, resources: dict[str, Any]) -> Iterator[Finding]:
    """GPUs and other devices: named with a domain that is not Kubernetes' own."""
    requests, limits = mapping(resources.get("requests")), mapping(resources.get("limits"))
    for name in sorted({*map(str, requests), *map(str, limits)}):
        if "/" not in name or "kubernetes.io/" in name:
            continue
        asked, limit = requests.get(name), limits.get(name)
        if limit is None or (asked is not None and str(asked) != str(limit)):
            message = f"{name}: request {asked}, limit {limit}; they must be equal"
            fix = "set the limit; the request follows it"
            yield given.fault(path, "gpu-request", message, fix)
        elif not str(limit).isdigit():
            message = f"{name}: {limit} is no whole number"
            yield given.fault(path, "gpu-request", message, "whole devices only")


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
        yield given.fault(path, "quantity", f"{text!r} is not a quantity", fix)


def _zero(value: Any) -> bool:
    return re.fullmatch(r"0+%?", str(value)) is not None

"""Defects between objects of one set: what each accepts and both together cannot do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from slmrank.deploy.check.finding import Finding, Located, PodSpec, mapping, matches, sequence

SCALERS = ("HorizontalPodAutoscaler", "ScaledObject")


def set_defects(objects: Sequence[Located], pods: Sequence[PodSpec]) -> Iterator[Finding]:
    """Defects of the set as a whole."""
    for one in objects:
        if one.native == "Service":
            yield from _target_ports(one, pods)
        elif one.native == "HorizontalPodAutoscaler":
            yield from _two_owners(one, objects)


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
            yield Finding(
                rule="target-port",
                where=service.at(f"spec.ports[{number}].targetPort"),
                message=f"no selected pod has a port named {target!r}",
                fix=f"use one of {', '.join(sorted(declared - {'None'})) or 'the port numbers'}",
            )


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
        yield Finding(
            rule="two-autoscalers",
            where=autoscaler.at("spec.scaleTargetRef"),
            message=f"{other.kind} {other.name} scales {target[0]} {target[1]} as well",
            fix="keep one owner of `replicas`",
        )


def target_of(one: Located) -> tuple[str, str]:
    reference = mapping(one.spec.get("scaleTargetRef"))
    return str(reference.get("kind", "Deployment")), str(reference.get("name"))

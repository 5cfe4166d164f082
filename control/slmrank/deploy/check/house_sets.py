"""House rules on objects that belong together: how pods of a workload are replaced and counted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from slmrank.deploy.check.finding import (
    Finding,
    Located,
    PodSpec,
    advice,
    mapping,
    matches,
    sequence,
)
from slmrank.deploy.check.relations import SCALERS, target_of
from slmrank.deploy.workload import SPARE_GPUS


def set_advice(pod: PodSpec, objects: Sequence[Located]) -> Iterator[Finding]:
    """Advice on a pod template among the objects that it belongs with."""
    scaler = _scaler_of(pod.owner, objects)
    if scaler is not None and "replicas" in pod.owner.spec:
        yield advice(
            pod.owner,
            "spec.replicas",
            "replicas-under-autoscaler",
            f"every apply resets what {scaler.kind} {scaler.name} decided",
            "leave replicas out",
        )
    if pod.owner.ours and pod.owner.kind == "Deployment" and len(objects) > 1:
        yield from _companions(pod, objects)
    yield from _rollout(pod)


def _rollout(pod: PodSpec) -> Iterator[Finding]:
    if pod.owner.kind != "Deployment":
        return
    strategy = mapping(pod.owner.spec.get("strategy"))
    surge = mapping(strategy.get("rollingUpdate")).get("maxSurge", "25%")
    rolling = strategy.get("type", "RollingUpdate") == "RollingUpdate"
    spare = mapping(pod.owner.metadata.get("annotations")).get(SPARE_GPUS, "0")
    if pod.gpus and rolling and str(surge) not in ("0", "0%") and str(spare) == "0":
        yield advice(
            pod.owner,
            "spec.strategy.rollingUpdate.maxSurge",
            "gpu-surge",
            f"maxSurge {surge} needs a GPU more than the replicas hold; without one the new pod "
            "stays Pending and the rollout never ends",
            f"set maxSurge: 0 and maxUnavailable: 1, or declare spare GPUs ({SPARE_GPUS})",
        )
    for path, container in pod.mains():
        words = " ".join(
            str(word) for field in ("command", "args") for word in sequence(container.get(field))
        )
        if "trtllm-build" in words or re.search(r"\bcontrol build\b", words):
            yield advice(
                pod.owner,
                path,
                "engine-in-pod",
                "the serving pod builds its engine: every start takes the build's minutes",
                "build once in a Job and mount the result read-only",
            )


def _companions(pod: PodSpec, objects: Sequence[Located]) -> Iterator[Finding]:
    """A Deployment of ours comes with a network policy, and with a disruption budget where clients
    call it."""
    for kind, field in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        chosen = [
            one
            for one in objects
            if one.kind == kind
            and one.namespace == pod.owner.namespace
            and matches(mapping(one.spec.get(field)), pod.labels)
        ]
        if not chosen and (pod.called or kind == "NetworkPolicy"):
            yield advice(
                pod.owner,
                "",
                "companion",
                f"no {kind} of this set selects its pods",
                "render it with `control deploy render`",
            )


def _scaler_of(workload: Located, objects: Sequence[Located]) -> Located | None:
    for one in objects:
        here = one.kind in SCALERS and one.namespace == workload.namespace
        if here and target_of(one) == (workload.kind, workload.name):
            return one
    return None

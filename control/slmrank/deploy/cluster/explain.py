"""Why a pod does not serve, in words and with what to do: Pending, image, verification, crash,
probe, and why an autoscaler does not act."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slmrank.deploy.cluster.rollout import conditions, holding
from slmrank.deploy.naming import Object

UNSCHEDULABLE = "Pending, no node"
UNCREATED = "no pod can be created"
_LAST_LINES = 6
_BAD_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_BAD_CONFIG = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
# What the scheduler says -> what to do.
_UNSCHEDULABLE = (
    (
        r"Insufficient nvidia\.com/gpu",
        "all GPUs are taken: lower maxReplicas, add nodes, or use the in-place rollout",
    ),
    (r"Insufficient (cpu|memory)", "the nodes are full: add nodes or lower deploy.placement"),
    (
        r"didn't match Pod's node affinity/selector",
        "no node has the labels of nodeSelector: is the engine built for a GPU of this cluster? "
        "(kubectl get nodes -L nvidia.com/gpu.product)",
    ),
    (r"untolerated taint", "the nodes are tainted: add a toleration or use other nodes"),
    (
        r"persistentvolumeclaim \"?([\w-]+)\"? not found",
        "the claim does not exist: create it, or name yours in deploy.storage",
    ),
    (
        r"unbound immediate PersistentVolumeClaims|didn't find available persistent volumes",
        "no volume for the claim: does the storage class exist and offer its access mode?",
    ),
    (r"node\(s\) had volume node affinity conflict", "the claim lives in another zone"),
    (r"didn't have free ports", "host ports are taken: our pods use none"),
)
# What admission says when the controller asks for a pod -> what to do.
_UNCREATABLE = (
    (
        r"exceeded quota",
        "the namespace's quota is used up: raise it, or lower deploy.placement and deploy.scaling",
    ),
    (
        r"violates PodSecurity",
        "the namespace enforces a stricter Pod Security level: see its labels "
        "pod-security.kubernetes.io/enforce",
    ),
    (r"(maximum|minimum) .*(usage|limit|request)", "a LimitRange refuses deploy.placement"),
    (r"admission webhook", "a webhook of the cluster refuses the pod: its message says why"),
    (r"[Ss]ervice ?[Aa]ccount", "the ServiceAccount is missing: apply the release again"),
)


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """One pod (or autoscaler) that does not do its work."""

    name: str
    state: str
    message: str
    fix: str

    def line(self) -> str:
        fix = f" Fix: {self.fix}" if self.fix else ""
        return f"{self.name}: {self.state}: {self.message}{fix}"


def explain_pods(pods: Sequence[Object], events: Sequence[Object] = ()) -> list[Trouble]:
    """What is wrong with each pod that is not ready; `events` add what probes said."""
    found = (_pod_trouble(pod, events) for pod in pods)
    return [trouble for trouble in found if trouble is not None]


def explain_deployment(deployment: Object) -> list[Trouble]:
    """Why the controller cannot create pods: quota, Pod Security, a webhook, a LimitRange."""
    if "ReplicaFailure" not in holding(deployment):
        return []
    message = str(conditions(deployment)["ReplicaFailure"].get("message", "no message"))
    return [_uncreated(f"Deployment {deployment['metadata']['name']}", message)]


def explain_job(job: str, pods: Sequence[Object], events: Sequence[Object]) -> list[Trouble]:
    """What is wrong with a Job's pods, or why it has none."""
    if pods:
        return explain_pods(pods, events)
    told = _told(events, "FailedCreate", job, "Job")
    return [_uncreated(f"Job {job}", told[-1])] if told else []


def explain_autoscaler(autoscaler: Object) -> list[Trouble]:
    """What keeps an HPA from acting."""
    name = f"HorizontalPodAutoscaler {autoscaler['metadata']['name']}"
    found = []
    for kind, condition in conditions(autoscaler).items():
        reason = str(condition.get("reason"))
        message = str(condition.get("message", ""))
        if kind == "ScalingActive" and condition.get("status") == "False":
            fix = "is the metrics adapter running, with monitoring/adapter-values.yaml?"
            if reason == "ScalingDisabled":
                fix = "the Deployment was scaled to 0 by hand: scale it to 1"
            found.append(Trouble(name=name, state=reason, message=message, fix=fix))
        if kind == "AbleToScale" and condition.get("status") == "False":
            found.append(Trouble(name=name, state=reason, message=message, fix=""))
        if kind == "ScalingLimited" and reason == "TooManyReplicas":
            message = "it would add replicas and is at its maximum"
            fix = "raise deploy.scaling.max_replicas, if there are GPUs for it"
            found.append(Trouble(name=name, state=reason, message=message, fix=fix))
    return found


def _pod_trouble(pod: Object, events: Sequence[Object]) -> Trouble | None:
    status: Mapping[str, Any] = pod.get("status") or {}
    name = f"pod {pod['metadata']['name']}"
    leaves = pod["metadata"].get("deletionTimestamp")
    if "Ready" in holding(pod) or status.get("phase") == "Succeeded" or leaves:
        return None
    scheduled = conditions(pod).get("PodScheduled", {})
    if scheduled.get("status") == "False":
        message = str(scheduled.get("message", "no message"))
        fix = unschedulable_fix(message)
        return Trouble(name=name, state=UNSCHEDULABLE, message=message, fix=fix)
    fields = ("initContainerStatuses", "containerStatuses")
    for container in [one for field in fields for one in status.get(field) or []]:
        trouble = _container_trouble(name, container)
        if trouble is not None:
            return trouble
    told = _told(events, "Unhealthy", pod["metadata"]["name"])
    probe = _last_lines(told[-1]) if told else ""
    if probe:
        return Trouble(name=name, state="not ready", message=probe, fix=_probe_fix(probe))
    if status.get("reason") == "Evicted" or status.get("phase") == "Failed":
        message = str(status.get("message", "no message"))
        state = str(status.get("reason", "Failed"))
        return Trouble(name=name, state=state, message=message, fix="")
    phase = str(status.get("phase", "Pending"))
    return Trouble(name=name, state=phase, message="it is still starting", fix="")


def unschedulable_fix(message: str) -> str:
    """What to do about a message of the scheduler; the first cause that is known."""
    return _known_fix(_UNSCHEDULABLE, message) or "see kubectl describe pod"


def _uncreated(name: str, message: str) -> Trouble:
    fix = _known_fix(_UNCREATABLE, message) or "see kubectl get events"
    return Trouble(name=name, state=UNCREATED, message=_last_lines(message), fix=fix)


def _known_fix(known: Sequence[tuple[str, str]], message: str) -> str:
    return next((fix for pattern, fix in known if re.search(pattern, message)), "")


def _container_trouble(name: str, container: Mapping[str, Any]) -> Trouble | None:
    which = str(container.get("name"))
    state: Mapping[str, Any] = container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason = str(waiting.get("reason", ""))
    if reason in _BAD_IMAGE:
        message = f"{container.get('image', which)}: {waiting.get('message', 'not pulled')}"
        fix = "is the digest right, the registry reachable, deploy.image_pull_secret set?"
        return Trouble(name=name, state=reason, message=message, fix=fix)
    if reason in _BAD_CONFIG:
        message = str(waiting.get("message", "no message"))
        return Trouble(name=name, state=reason, message=message, fix="see kubectl describe pod")
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    if not ended or ended.get("exitCode") == 0:
        return None
    code = ended.get("exitCode")
    if ended.get("reason") == "OOMKilled":
        message = f"{which} needed more memory than its limit"
        fix = "raise deploy.placement.memory_gib"
        return Trouble(name=name, state="OOMKilled", message=message, fix=fix)
    said = _last_lines(str(ended.get("message") or ""))
    fix = "see kubectl logs"
    if which == "verify":
        fix = "copy repository and engine to the claims again; the pod tries again by itself"
    message = f"{which} ended with exit code {code}" + (f": {said}" if said else "")
    return Trouble(name=name, state=reason or "Error", message=message, fix=fix)


def _told(events: Sequence[Object], reason: str, name: str, kind: str = "") -> list[str]:
    """What events of a reason say of one object."""
    return [
        str(one.get("message", ""))
        for one in events
        if one.get("reason") == reason
        and (about := one.get("involvedObject") or {}).get("name") == name
        and kind in ("", about.get("kind"))
    ]


def _probe_fix(message: str) -> str:
    if "known answers are off" in message:
        return "the pod serves another engine, tokenizer or store than the release: see its message"
    if message.startswith("Startup"):
        return "it may still be loading; see kubectl logs"
    return "see kubectl logs"


def _last_lines(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-_LAST_LINES:])

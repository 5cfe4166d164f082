"""Where a rollout stands, judged from what the API server says of one Deployment.

"Available" of a Deployment counts old pods as well. A rollout has arrived only when the server has
seen our change, every pod is of the new ReplicaSet, and those pods are available.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from slmrank.deploy.naming import Object

REVISION = "deployment.kubernetes.io/revision"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """`arrived`, `failed` (with the reason) or `waiting` for what."""

    state: Literal["arrived", "failed", "waiting"]
    text: str


def conditions(given: Object) -> dict[str, Object]:
    """The conditions of an object by their type."""
    listed = (given.get("status") or {}).get("conditions") or []
    return {str(one.get("type")): one for one in listed}


def holding(given: Object) -> set[str]:
    """The types of the conditions that hold, such as Ready of a pod, or Complete of a Job."""
    return {name for name, one in conditions(given).items() if one.get("status") == "True"}


def timed_out(deployment: Object) -> str | None:
    """When the controller gave the rollout up, None when it did not."""
    progress = conditions(deployment).get("Progressing", {})
    if progress.get("reason") != "ProgressDeadlineExceeded":
        return None
    return str(progress.get("lastUpdateTime") or progress.get("lastTransitionTime"))


def judge(
    deployment: Object, replica_sets: Sequence[Object], *, stale: str | None = None
) -> Standing:
    """Judge a rollout. `replica_sets` are those of the Deployment; `stale` is a `timed_out` from
    before the change, which the controller leaves there until there is progress."""
    metadata, spec = deployment["metadata"], deployment["spec"]
    status: Mapping[str, Any] = deployment.get("status") or {}
    if status.get("observedGeneration", 0) < metadata.get("generation", 0):
        return Standing(state="waiting", text="the controller has not seen the change yet")
    new = newest_set(deployment, replica_sets)
    if timed_out(deployment) not in (None, stale):
        progress = conditions(deployment)["Progressing"]
        return Standing(state="failed", text=progress.get("message") or progress["reason"])
    if new is None:
        return Standing(state="waiting", text="there is no ReplicaSet of this template yet")
    wanted = spec.get("replicas", 1)
    updated, all_pods = status.get("updatedReplicas", 0), status.get("replicas", 0)
    available = (new.get("status") or {}).get("availableReplicas", 0)
    if wanted == 0:
        text = "the Deployment is scaled to 0, and the autoscaler leaves that alone"
        return Standing(state="failed", text=text)
    if updated < wanted:
        text = f"{updated} of {wanted} pods are of the new release"
    elif all_pods > updated:
        text = f"{all_pods - updated} old pods are still there"
    elif available < wanted:
        text = f"{available} of {wanted} new pods are available"
    else:
        return Standing(state="arrived", text=f"{available} new pods are available")
    return Standing(state="waiting", text=text)


def newest_set(deployment: Object, replica_sets: Sequence[Object]) -> Object | None:
    """The ReplicaSet of the current template: the one with the Deployment's revision."""
    owner = deployment["metadata"].get("uid")
    revision = (deployment["metadata"].get("annotations") or {}).get(REVISION)
    for one in replica_sets:
        owners = one["metadata"].get("ownerReferences") or []
        if not any(reference.get("uid") == owner for reference in owners):
            continue
        if (one["metadata"].get("annotations") or {}).get(REVISION) == revision:
            return one
    return None


def pods_of(replica_set: Object, pods: Sequence[Object]) -> list[Object]:
    """The pods that a ReplicaSet owns."""
    uid = replica_set["metadata"].get("uid")
    return [
        pod
        for pod in pods
        if any(one.get("uid") == uid for one in pod["metadata"].get("ownerReferences") or [])
    ]

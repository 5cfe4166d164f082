"""What is deployed and how it is: release, rollout, pods with reasons, autoscaler, history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from slmrank.deploy.cluster.api import ApiError, Cluster
from slmrank.deploy.cluster.canary import read_share
from slmrank.deploy.cluster.explain import (
    Trouble,
    explain_autoscaler,
    explain_deployment,
    explain_job,
    explain_pods,
)
from slmrank.deploy.cluster.records import list_records
from slmrank.deploy.cluster.rollout import holding, judge
from slmrank.deploy.naming import (
    ENGINE,
    INSTANCE,
    MANAGED_BY,
    MANAGER,
    TRACK,
    WATCH,
    Object,
    follower_name,
    placed,
)
from slmrank.deploy.release import Place


@dataclass(frozen=True, kw_only=True)
class Status:
    """A snapshot. `healthy`: the rollout has arrived and no pod is in trouble. `advice` is what
    keeps the autoscaler from acting: a release serves without it. `canary_percent`: of the calls
    through the Gateway."""

    records: list[dict[str, Any]]
    troubles: list[Trouble]
    found: bool = False
    healthy: bool = False
    engine: str = ""
    rollout: str = "not deployed"
    replicas: dict[str, int] = field(default_factory=dict)
    canary_percent: int = 0
    pods: list[dict[str, Any]] = field(default_factory=list)
    autoscaler: dict[str, Any] | None = None
    advice: list[Trouble] = field(default_factory=list)


def read_status(cluster: Cluster, place: Place) -> Status:
    """Read everything about one bundle."""
    history = [
        {
            "revision": one.revision,
            "state": one.state,
            "engine": one.engine,
            "release": one.release,
            "when": one.when.isoformat(timespec="seconds"),
        }
        for one in list_records(cluster, place)
    ]
    namespace, object_name = place.namespace, place.object_name
    deployment = cluster.get("apps/v1", "Deployment", namespace, object_name)
    if deployment is None:
        return Status(records=history, troubles=_job_troubles(cluster, place))
    sets = cluster.list("apps/v1", "ReplicaSet", namespace, placed(place, "serve"))
    standing = judge(deployment, sets)
    pods = _pods(cluster, place, "serve")
    events = cluster.list("v1", "Event", namespace)
    scaler = cluster.get("autoscaling/v2", "HorizontalPodAutoscaler", namespace, object_name)
    troubles = explain_deployment(deployment) + explain_pods(pods, events)
    troubles += _follower_troubles(cluster, place, events) + _job_troubles(cluster, place)
    counts = deployment.get("status") or {}
    return Status(
        found=True,
        healthy=standing.state == "arrived" and not troubles,
        engine=(deployment["metadata"].get("labels") or {}).get(ENGINE, "?"),
        rollout=f"{standing.state}: {standing.text}",
        replicas={
            "wanted": deployment["spec"].get("replicas", 1),
            "updated": counts.get("updatedReplicas", 0),
            "available": counts.get("availableReplicas", 0),
        },
        canary_percent=_share(cluster, place),
        pods=[
            {
                "name": one["metadata"]["name"],
                "ready": "Ready" in holding(one),
                "engine": (one["metadata"].get("labels") or {}).get(ENGINE, "?"),
                "node": (one.get("spec") or {}).get("nodeName", ""),
                "restarts": sum(
                    container.get("restartCount", 0)
                    for container in (one.get("status") or {}).get("containerStatuses") or []
                ),
            }
            for one in pods
        ],
        autoscaler=_autoscaler(scaler) if scaler is not None else None,
        troubles=troubles,
        advice=explain_autoscaler(scaler) if scaler is not None else [],
        records=history,
    )


def _share(cluster: Cluster, place: Place) -> int:
    try:
        return read_share(cluster, place)
    except ApiError as error:
        if error.status != 403:
            raise
        return 0  # a reader who may not see routes sees the rest


def _pods(cluster: Cluster, place: Place, component: str) -> list[Object]:
    """The pods of a component. Evicted ones stay until they are collected; others have taken their
    place."""
    return [
        pod
        for pod in cluster.list("v1", "Pod", place.namespace, placed(place, component))
        if (pod.get("status") or {}).get("phase") != "Failed"
    ]


def _follower_troubles(cluster: Cluster, place: Place, events: Sequence[Object]) -> list[Trouble]:
    """What keeps the followers of changed jobs: the servers go on, with jobs as they were."""
    name = follower_name(place)
    deployment = cluster.get("apps/v1", "Deployment", place.namespace, name)
    if deployment is None:
        return []
    return explain_deployment(deployment) + explain_pods(_pods(cluster, place, WATCH), events)


def _job_troubles(cluster: Cluster, place: Place) -> list[Trouble]:
    """What keeps Jobs of the bundle that have not ended, such as the engine's build, which belongs
    to all tracks."""
    labels = {MANAGED_BY: MANAGER, INSTANCE: place.bundle}
    found: list[Trouble] = []
    for job in cluster.list("batch/v1", "Job", place.namespace, labels):
        track = (job["metadata"].get("labels") or {}).get(TRACK, place.track)
        if track == place.track and not holding(job) & {"Complete", "Failed"}:
            name = job["metadata"]["name"]
            pods = cluster.list("v1", "Pod", place.namespace, {"job-name": name})
            found += explain_job(name, pods, cluster.list("v1", "Event", place.namespace))
    return found


def _autoscaler(scaler: dict[str, Any]) -> dict[str, Any]:
    spec, status = scaler["spec"], scaler.get("status") or {}

    def followed(metrics: Sequence[Object]) -> list[Object]:
        """What replicas follow: pod metrics of ours, external ones of KEDA."""
        kinds = {"Pods": "pods", "External": "external"}
        return [one[kinds[one["type"]]] for one in metrics if one.get("type") in kinds]

    current = {
        one["metric"]["name"]: one["current"].get("averageValue")
        for one in followed(status.get("currentMetrics") or [])
    }
    return {
        "min": spec.get("minReplicas", 1),
        "max": spec.get("maxReplicas"),
        "desired": status.get("desiredReplicas"),
        "metrics": [
            {
                "name": one["metric"]["name"],
                "target": one["target"].get("averageValue"),
                "current": current.get(one["metric"]["name"], "<unknown>"),
            }
            for one in followed(spec.get("metrics") or [])
        ],
    }

"""The autoscaler."""

from __future__ import annotations

from slmrank.deploy.naming import Object, labelled, pods_matching
from slmrank.deploy.release import Release
from slmrank.deploy.sizing import target_items_per_s

ITEMS_METRIC = "slmrank_items_per_second"
PENDING_METRIC = "slmrank_pending_requests"
# Double at once, or four more where that is more: a burst is over before a slower policy is done.
UP_PERCENT, UP_PODS, UP_PERIOD_S = 100, 4, 15
DOWN_PODS, DOWN_PERIOD_S = 1, 60


def behavior(release: Release) -> Object:
    """Up fast and at once, down slowly."""
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "selectPolicy": "Max",
            "policies": [
                {"type": "Percent", "value": UP_PERCENT, "periodSeconds": UP_PERIOD_S},
                {"type": "Pods", "value": UP_PODS, "periodSeconds": UP_PERIOD_S},
            ],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": release.deploy.scaling.down_stabilization_s,
            "selectPolicy": "Max",
            "policies": [{"type": "Pods", "value": DOWN_PODS, "periodSeconds": DOWN_PERIOD_S}],
        },
    }


def autoscaler(release: Release) -> Object:
    """Offered work per replica against the capacity at the objective, and the requests that wait.
    The larger answer counts: what is answered flattens at saturation, what waits does not."""
    scaling = release.deploy.scaling
    spec = {
        "scaleTargetRef": _target(release),
        "minReplicas": scaling.min_replicas,
        "maxReplicas": scaling.max_replicas,
        "metrics": [
            _pods_metric(ITEMS_METRIC, _quantity(target_items_per_s(release))),
            _pods_metric(PENDING_METRIC, str(scaling.pending)),
        ],
        "behavior": behavior(release),
    }
    kind = ("autoscaling/v2", "HorizontalPodAutoscaler")
    return labelled(release, *kind, release.object_name, component="autoscaler", spec=spec)


def scaled_object(release: Release, server: str) -> Object:
    """KEDA in place of the autoscaler above; deploy.scaling.autoscaler says who owns `replicas`."""
    scaling, name = release.deploy.scaling, release.object_name
    pods = pods_matching(release)
    triggers = [
        {
            "type": "prometheus",
            "metricType": "AverageValue",
            "metadata": {
                "serverAddress": server,
                "query": f"sum({metric}{{{pods}}})",
                "threshold": threshold,
                # No data is a fault, not an empty queue.
                "ignoreNullValues": "false",
            },
        }
        for metric, threshold in (
            (ITEMS_METRIC, f"{target_items_per_s(release):g}"),
            (PENDING_METRIC, str(scaling.pending)),
        )
    ]
    spec = {
        "scaleTargetRef": _target(release),
        "pollingInterval": 15,
        "minReplicaCount": scaling.min_replicas,
        "maxReplicaCount": scaling.max_replicas,
        "fallback": {"failureThreshold": 4, "replicas": scaling.max_replicas},
        # By the name of our own autoscaler, which `control deploy status` reads.
        "advanced": {
            "horizontalPodAutoscalerConfig": {"name": name, "behavior": behavior(release)}
        },
        "triggers": triggers,
    }
    kind = ("keda.sh/v1alpha1", "ScaledObject")
    return labelled(release, *kind, name, component="autoscaler", spec=spec)


def _target(release: Release) -> Object:
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": release.object_name}


def _pods_metric(name: str, value: str) -> Object:
    target = {"type": "AverageValue", "averageValue": value}
    return {"type": "Pods", "pods": {"metric": {"name": name}, "target": target}}


def _quantity(value: float) -> str:
    """A Kubernetes quantity: whole numbers as they are, others in thousandths."""
    thousandths = max(1, round(value * 1000))
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"

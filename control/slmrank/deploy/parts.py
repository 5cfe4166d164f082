"""Objects that every workload of ours has, of the same form: Deployment, NetworkPolicy, disruption
budget, and what a Prometheus reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slmrank.deploy.naming import METRICS, Object, labelled, labels
from slmrank.deploy.release import Release

NAMESPACE = "kubernetes.io/metadata.name"
DNS: Object = {"ports": [{"port": 53, "protocol": one} for one in ("UDP", "TCP")]}
Labels = Mapping[str, str]


def workers(
    release: Release, name: str, component: str, chosen: Labels, replicas: int, pod: Object
) -> Object:
    """A Deployment of like pods beside those that serve."""
    template = {"metadata": {"labels": labels(release, component)}, "spec": pod}
    spec = {"replicas": replicas, "selector": {"matchLabels": chosen}, "template": template}
    return labelled(release, "apps/v1", "Deployment", name, component=component, spec=spec)


def policy(
    release: Release,
    name: str,
    component: str,
    chosen: Labels,
    ingress: Sequence[Object],
    egress: Sequence[Object] | None,
) -> Object:
    """Who may reach the chosen pods, and whom they may reach; `egress` None: everybody."""
    kinds = ["Ingress"] if egress is None else ["Ingress", "Egress"]
    spec: Object = {"podSelector": {"matchLabels": chosen}, "policyTypes": kinds}
    spec["ingress"] = list(ingress)
    if egress is not None:
        spec["egress"] = list(egress)
    kind = ("networking.k8s.io/v1", "NetworkPolicy")
    return labelled(release, *kind, name, component=component, spec=spec)


def budget(release: Release, name: str, component: str, chosen: Labels) -> Object:
    """By `maxUnavailable`: `minAvailable: 1` blocks the drain of a node for ever once one pod is
    left."""
    spec = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": chosen},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    kind = ("policy/v1", "PodDisruptionBudget")
    return labelled(release, *kind, name, component=component, spec=spec)


def scraping(release: Release) -> Object:
    """Ingress for the Prometheus that reads the metrics."""
    source = {
        "namespaceSelector": {"matchLabels": {NAMESPACE: release.deploy.monitoring_namespace}}
    }
    return {"from": [source], "ports": [{"port": METRICS, "protocol": "TCP"}]}


def monitored(release: Release, kind: str, name: str, component: str, spec: Object) -> Object:
    """An object of the Prometheus operator, with the labels by which a Prometheus selects it."""
    version = "monitoring.coreos.com/v1"
    made = labelled(release, version, kind, name, component=component, spec=spec)
    made["metadata"]["labels"] |= release.deploy.monitoring_labels
    return made

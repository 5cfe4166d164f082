"""Objects that every workload of ours has, of the same form: Deployment, NetworkPolicy, disruption
budget, and what a Prometheus reads."""

from __future__ import annotations

from collections.abc import Sequence

from slmrank.deploy.naming import METRICS, Object, labelled, labels, selector
from slmrank.deploy.release import Release

NAMESPACE = "kubernetes.io/metadata.name"
DNS: Object = {"ports": [{"port": 53, "protocol": one} for one in ("UDP", "TCP")]}


def tcp(*ports: int) -> list[Object]:
    """Ports of a rule."""
    return [{"port": one, "protocol": "TCP"} for one in ports]


def workers(release: Release, name: str, component: str, replicas: int, pod: Object) -> Object:
    """A Deployment of like pods beside those that serve."""
    template = {"metadata": {"labels": labels(release, component)}, "spec": pod}
    chosen = {"matchLabels": selector(release, component)}
    spec = {"replicas": replicas, "selector": chosen, "template": template}
    return labelled(release, "apps/v1", "Deployment", name, component=component, spec=spec)


def policy(
    release: Release,
    name: str,
    component: str,
    ingress: Sequence[Object],
    egress: Sequence[Object] | None,
) -> Object:
    """Who may reach the pods of a component, and whom they may reach; `egress` None: everybody."""
    spec: Object = {
        "podSelector": {"matchLabels": selector(release, component)},
        "policyTypes": ["Ingress"],
        "ingress": list(ingress),
    }
    if egress is not None:
        spec |= {"policyTypes": ["Ingress", "Egress"], "egress": list(egress)}
    kind = ("networking.k8s.io/v1", "NetworkPolicy")
    return labelled(release, *kind, name, component=component, spec=spec)


def budget(release: Release, name: str, component: str, of: str | None = None) -> Object:
    """Of the pods of a component, `of` where the budget itself has another. By `maxUnavailable`:
    `minAvailable: 1` blocks the drain of a node for ever once one pod is left."""
    spec = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": selector(release, of or component)},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    kind = ("policy/v1", "PodDisruptionBudget")
    return labelled(release, *kind, name, component=component, spec=spec)


def scraping(release: Release) -> Object:
    """Ingress for the Prometheus that reads the metrics."""
    return {"from": [namespaced(release.deploy.monitoring_namespace)], "ports": tcp(METRICS)}


def namespaced(name: str) -> Object:
    """Every pod of a namespace, as a rule names it."""
    return {"namespaceSelector": {"matchLabels": {NAMESPACE: name}}}


def monitored(release: Release, kind: str, name: str, component: str, spec: Object) -> Object:
    """An object of the Prometheus operator, with the labels by which a Prometheus selects it."""
    version = "monitoring.coreos.com/v1"
    made = labelled(release, version, kind, name, component=component, spec=spec)
    made["metadata"]["labels"] |= release.deploy.monitoring_labels
    return made

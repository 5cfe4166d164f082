"""Which objects of a cluster belong to a bundle, and which of them nothing needs any more."""

from __future__ import annotations

from collections.abc import Sequence

from slmrank.deploy.cluster.api import Cluster
from slmrank.deploy.cluster.records import KEPT, Record
from slmrank.deploy.exposure import GRPC_ROUTE
from slmrank.deploy.naming import COMPONENT, INSTANCE, MANAGED_BY, MANAGER, ROUTE, TRACK, Object
from slmrank.deploy.release import Place
from slmrank.deploy.render import identity

# What is looked through; claims and namespaces hold other people's data. The autoscaler comes
# first: it would start pods again.
OWN_KINDS = (
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("apps/v1", "Deployment"),
    ("policy/v1", "PodDisruptionBudget"),
    ("v1", "Service"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("batch/v1", "Job"),
    ("v1", "ConfigMap"),
    ("v1", "ServiceAccount"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
    GRPC_ROUTE,
)


def owned_objects(cluster: Cluster, place: Place) -> list[Object]:
    """Objects of a bundle and track, in the order of their removal."""
    labels = {MANAGED_BY: MANAGER, INSTANCE: place.bundle}
    return [
        given
        for api_version, kind in OWN_KINDS
        for given in cluster.list(api_version, kind, place.namespace, labels)
        if (given["metadata"].get("labels") or {}).get(TRACK, "stable") == place.track
    ]


def prune(
    cluster: Cluster, place: Place, contents: Sequence[Object], records: Sequence[Record]
) -> list[str]:
    """Remove objects of earlier releases that neither the new contents nor a kept record needs;
    returns what was removed."""
    needed = {identity(given)[1:] for given in contents}
    named = set()
    newest: dict[str, Record] = {}  # of each release: history counts releases, not applies
    for record in records:
        if record.state != "failed":
            newest.setdefault(record.release, record)
    for record in list(newest.values())[:KEPT]:
        named.add(record.name)
        needed |= {identity(one)[1:] for one in record.objects if one["kind"] == "ConfigMap"}
    removed = []
    for given in owned_objects(cluster, place):
        component = given["metadata"]["labels"].get(COMPONENT)
        name = given["metadata"]["name"]
        # What is applied beside the release, or made by a controller such as KEDA's, is not of it.
        apart = component in ("smoke", "engine-build", "rerank", ROUTE)
        if apart or given["metadata"].get("ownerReferences") or identity(given)[1:] in needed:
            continue
        if component == "release" and name in named:
            continue
        cluster.delete(given)
        removed.append(f"{given['kind']} {name}")
    return removed

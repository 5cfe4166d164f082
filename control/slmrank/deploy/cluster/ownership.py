"""Which objects of a cluster belong to a bundle, and which of them nothing needs any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from slmrank.deploy.cluster.api import ApiError, Cluster
from slmrank.deploy.cluster.records import KEPT, Record
from slmrank.deploy.exposure import GRPC_ROUTE
from slmrank.deploy.naming import (
    CATALOGUE,
    COMPONENT,
    INSTANCE,
    KSERVE,
    MANAGED_BY,
    MANAGER,
    RERANK,
    ROUTE,
    TRACK,
    Object,
)
from slmrank.deploy.release import Place
from slmrank.deploy.render import identity
from slmrank.errors import ControlError, DeployFailed

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
# What people apply from `optional/`: whose pods would go on without the accounts and policies that
# are removed with the rest, or come again.
BESIDE_KINDS = (
    ("keda.sh/v1alpha1", "ScaledObject"),
    ("serving.kserve.io/v1beta1", "InferenceService"),
    ("serving.kserve.io/v1alpha1", "ServingRuntime"),
    ("ray.io/v1", "RayJob"),
)


def owned_objects(
    cluster: Cluster, place: Place, kinds: Sequence[tuple[str, str]] = OWN_KINDS
) -> list[Object]:
    """Objects of a bundle and track, in the order of their removal."""
    labels = {MANAGED_BY: MANAGER, INSTANCE: place.bundle}
    return [
        given
        for api_version, kind in kinds
        for given in cluster.list(api_version, kind, place.namespace, labels)
        if (given["metadata"].get("labels") or {}).get(TRACK, "stable") == place.track
    ]


def is_empty(cluster: Cluster, namespace: str) -> bool:
    """Whether a namespace holds nothing of ours, and nothing that runs or is kept of others."""
    theirs = ("PersistentVolumeClaim", "Pod", "Secret")
    others = (*(("v1", kind) for kind in theirs), ("apps/v1", "Deployment"))
    ours = {MANAGED_BY: MANAGER}
    held = any(cluster.list(*kind, namespace, ours) for kind in OWN_KINDS)
    return not held and not any(cluster.list(*kind, namespace) for kind in others)


def delete_owned(
    cluster: Cluster, place: Place, report: Callable[[str], None], *, dry_run: bool
) -> list[str]:
    """Delete the objects of a place; returns them. Raises DeployFailed that names what is gone
    where it ends half-way."""
    owned: list[Object] = []
    for kind in (*BESIDE_KINDS, *OWN_KINDS):
        try:
            owned += owned_objects(cluster, place, [kind])
        except ApiError as error:
            if error.status != 403 or kind not in BESIDE_KINDS:
                raise
            report(f"not allowed to look for a {kind[1]}: delete it yourself, where there is one")
    removed: list[str] = []
    at = ""
    try:
        for given in owned:
            at = f"{given['kind']} {given['metadata']['name']}"
            cluster.delete(given, dry_run=dry_run)
            removed.append(at)
    except (ControlError, KeyboardInterrupt) as error:
        stopped = isinstance(error, KeyboardInterrupt)
        if dry_run or not (removed or (at and stopped)):
            raise
        why = "interrupted" if isinstance(error, KeyboardInterrupt) else error.message
        perhaps = [f"perhaps {at}"] if stopped and at not in removed else []
        raise DeployFailed(
            f"{why}; deleted so far: {', '.join([*removed, *perhaps])}", "repeat the command"
        ) from error
    return removed


def prune(
    cluster: Cluster, place: Place, contents: Sequence[Object], records: Sequence[Record]
) -> list[str]:
    """Remove objects of earlier releases that neither the new contents nor a kept record needs;
    returns what was removed."""
    needed = {identity(given)[1:] for given in contents}
    named = set()
    newest: dict[str, Record] = {}  # of each release: history counts releases, not applies
    for record in records:
        if record.state not in ("failed", "interrupted"):
            newest.setdefault(record.release, record)
    for record in list(newest.values())[:KEPT]:
        named.add(record.name)
        needed |= {identity(one)[1:] for one in record.objects if one["kind"] == "ConfigMap"}

    def is_needless(given: Object) -> bool:
        recorded = _component(given) == "release" and given["metadata"]["name"] in named
        return identity(given)[1:] not in needed and not recorded

    return _remove(cluster, place, is_needless)


def remove_additions(cluster: Cluster, place: Place, contents: Sequence[Object]) -> list[str]:
    """Remove what runs and is not in the contents, which are those of a release that was put back;
    returns what. Records and ConfigMaps of the other one stay for a look at it."""
    needed = {identity(given)[1:] for given in contents}

    def is_needless(given: Object) -> bool:
        return given["kind"] != "ConfigMap" and identity(given)[1:] not in needed

    return _remove(cluster, place, is_needless)


def _component(given: Object) -> str | None:
    found: str | None = given["metadata"]["labels"].get(COMPONENT)
    return found


def _remove(cluster: Cluster, place: Place, is_needless: Callable[[Object], bool]) -> list[str]:
    """Remove needless objects that releases brought: not what is applied beside them, or made by a
    controller such as KEDA's."""
    needless = [
        given
        for given in owned_objects(cluster, place)
        if _component(given) not in ("smoke", "engine-build", KSERVE, RERANK, CATALOGUE, ROUTE)
        and not given["metadata"].get("ownerReferences")
        and is_needless(given)
    ]
    for given in needless:
        cluster.delete(given)
    return [f"{given['kind']} {given['metadata']['name']}" for given in needless]

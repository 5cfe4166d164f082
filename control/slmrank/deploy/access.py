"""Namespace, identity and storage: what must be there before anything runs."""

from __future__ import annotations

from slmrank.deploy.naming import INSTANCE, Object, labelled, labels
from slmrank.deploy.release import Release


def namespace(release: Release) -> Object:
    """Enforces the restricted Pod Security profile."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": release.deploy.namespace,
            "labels": {
                **labels(release, None),
                "pod-security.kubernetes.io/enforce": "restricted",
                "pod-security.kubernetes.io/warn": "restricted",
            },
        },
    }


def service_account(release: Release) -> Object:
    """An identity without a token: the pods never call the API server."""
    return labelled(
        release, "v1", "ServiceAccount", release.object_name, automountServiceAccountToken=False
    )


def claim(release: Release, name: str) -> Object:
    """A claim that several bundles share; made when it is missing, never changed or removed."""
    storage = release.deploy.storage
    spec: Object = {
        "accessModes": [storage.access_mode],
        "resources": {"requests": {"storage": f"{storage.size_gib}Gi"}},
    }
    if storage.storage_class is not None:
        spec["storageClassName"] = storage.storage_class
    return labelled(release, "v1", "PersistentVolumeClaim", name, component=None, spec=spec)


def deployer_role(release: Release) -> Object:
    """What `control deploy` needs in the namespace. Bind it to whoever deploys."""
    write = ["get", "list", "watch", "create", "patch", "delete"]
    rules = [
        ("", ["configmaps", "services", "serviceaccounts"], write),
        ("", ["persistentvolumeclaims"], write[:-1]),  # they hold other people's data
        ("apps", ["deployments"], write),
        ("autoscaling", ["horizontalpodautoscalers"], write),
        ("batch", ["jobs"], write),
        ("networking.k8s.io", ["networkpolicies"], write),
        ("policy", ["poddisruptionbudgets"], write),
        ("monitoring.coreos.com", ["podmonitors", "prometheusrules"], write),
        ("gateway.networking.k8s.io", ["grpcroutes"], write),
        ("keda.sh", ["scaledobjects"], ["get", "list", "delete"]),
        ("serving.kserve.io", ["inferenceservices", "servingruntimes"], ["get", "list", "delete"]),
        ("ray.io", ["rayjobs"], ["get", "list", "delete"]),
        ("apps", ["replicasets"], ["get", "list", "watch"]),
        ("", ["pods"], write),
        ("", ["pods/exec"], ["create", "get"]),  # `deploy push`, through a pod of its own
        ("", ["namespaces"], ["get"]),  # its own: is it there?
        ("", ["events"], ["get", "list", "watch"]),
        ("", ["pods/log"], ["get"]),
    ]
    kind = ("rbac.authorization.k8s.io/v1", "Role")
    named = [
        {"apiGroups": [group], "resources": resources, "verbs": verbs}
        for group, resources, verbs in rules
    ]
    return labelled(release, *kind, "slmrank-deployer", component=None, rules=named)


def is_shared(given: Object) -> bool:
    """Whether an object belongs to every bundle of the namespace, as that itself and the claims do:
    made when it is missing and never touched again."""
    return INSTANCE not in given["metadata"].get("labels", {})

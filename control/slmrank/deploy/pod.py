"""What every pod of ours has: the restricted security profile and the bundle volume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from slmrank.deploy.naming import (
    BUNDLES,
    MANIFEST,
    STORE,
    TLS,
    TMP,
    repository_path,
    repository_url,
    service_host,
)
from slmrank.deploy.release import Release
from slmrank.spec.deploy import DeploySpec
from slmrank.store.job_store import STORE_AUTHORITY, STORE_PASSWORD, STORE_USER

USER = 1000
MIB = 2**20
PRODUCT_LABEL = "nvidia.com/gpu.product"


def pod_of(
    deploy: DeploySpec,
    containers: list[dict[str, Any]],
    volumes: list[dict[str, Any]],
    account: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The spec of a pod: no token of the API, no variables of Services, nobody's root."""
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        "containers": containers,
        "volumes": volumes,
        **more,
    }
    if account is not None:
        pod["serviceAccountName"] = account
    if deploy.image_pull_secret is not None:
        pod["imagePullSecrets"] = [{"name": deploy.image_pull_secret}]
    return pod


def container_of(
    name: str,
    image: str,
    resources: dict[str, str],
    *,
    read_only_root: bool = True,
    env: Sequence[dict[str, Any]] = (),
    **more: Any,
) -> dict[str, Any]:
    """A container. Requests equal limits: one that borrows cores measures faster than it later
    serves, and a build that shares its GPU times its kernels wrongly."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": "HOME", "value": TMP}, *env],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": restricted(read_only_root=read_only_root),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **more,
    }


def pod_security() -> dict[str, Any]:
    """Pod level; `fsGroup` belongs here and nowhere else."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def restricted(*, read_only_root: bool) -> dict[str, Any]:
    """Container level. The NVIDIA runtime's hook writes into the root of a GPU container."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": read_only_root,
    }


def claim_volume(claim: str) -> dict[str, Any]:
    """The claim with repositories and planned engines."""
    return {"name": "bundles", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}


def bundle_volume(release: Release) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The volume with the repository, and the init containers that fill it: none for the claim, or
    an image that is mounted as a volume."""
    storage, url = release.deploy.storage, repository_url(release)
    if storage.bundle_image is not None:
        image = {"reference": storage.bundle_image, "pullPolicy": "IfNotPresent"}
        return {"name": "bundles", "image": image}, []
    if url is None:
        return claim_volume(storage.bundles_claim), []
    command = ["control", "receive", repository_path(release)]
    command += ["--digest", release.repository.digest, "--from", url]
    fetch = container_of(
        "fetch",
        release.image,
        {"cpu": "1", "memory": "512Mi"},
        command=command,
        volumeMounts=[
            {"name": "bundles", "mountPath": BUNDLES},
            {"name": "tmp", "mountPath": TMP},
        ],
    )
    if storage.url_secret is not None:
        fetch["envFrom"] = [{"secretRef": {"name": storage.url_secret}}]
    size_mib = math.ceil(release.repository.bytes / MIB) + 64
    return {"name": "bundles", "emptyDir": {"sizeLimit": f"{size_mib}Mi"}}, [fetch]


def tls_volumes(release: Release) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes and mounts of the certificates; none without TLS."""
    tls = release.deploy.tls
    if tls is None:
        return [], []
    volume = {"name": "tls", "secret": {"secretName": tls.secret, "defaultMode": 0o440}}
    return [volume], [{"name": "tls", "mountPath": TLS, "readOnly": True}]


def store_environment(release: Release) -> list[dict[str, Any]]:
    """What a pod shows to the shared summary store; nothing without one, or without a Secret."""
    secret = release.deploy.store.secret
    if not release.store_ports or secret is None:
        return []

    def from_secret(key: str, *, optional: bool) -> dict[str, Any]:
        return {"secretKeyRef": {"name": secret, "key": key, "optional": optional}}

    authority = {"name": STORE_AUTHORITY, "value": f"{STORE}/ca.crt"}
    return [
        {"name": STORE_PASSWORD, "valueFrom": from_secret("password", optional=False)},
        {"name": STORE_USER, "valueFrom": from_secret("user", optional=True)},
        *([authority] if release.deploy.store.authority else []),
    ]


def store_volumes(release: Release) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes and mounts of the authority that the shared store's certificate is checked by."""
    if not release.store_ports or not release.deploy.store.authority:
        return [], []
    items = [{"key": "ca.crt", "path": "ca.crt"}]
    secret = {"secretName": release.deploy.store.secret, "items": items, "defaultMode": 0o440}
    mount = {"name": "store-authority", "mountPath": STORE, "readOnly": True}
    return [{"name": "store-authority", "secret": secret}], [mount]


def smoke_command(release: Release, url: str, timeout_s: int) -> list[str]:
    """`control smoke` on the mounted known answers."""
    command = ["control", "smoke", "--url", url, "--known", f"{MANIFEST}/known_answers.json"]
    command += ["--tolerance", f"{release.deploy.smoke_tolerance:g}", "--timeout", str(timeout_s)]
    if release.deploy.tls is not None:
        command += ["--tls-authority", f"{TLS}/ca.crt", "--tls-name", service_host(release)]
        if release.deploy.tls.clients:
            command += ["--tls-certificate", f"{TLS}/tls.crt", "--tls-key", f"{TLS}/tls.key"]
    return command


def placement(release: Release) -> dict[str, Any]:
    """Which nodes: those with the engine's GPU. On another the pod cannot be scheduled, instead of
    crashing there."""
    nodes = dict(release.deploy.placement.node_selector)
    chosen: dict[str, Any] = {}
    if release.engine.gpu_product is not None:
        nodes[PRODUCT_LABEL] = release.engine.gpu_product
    if nodes:
        chosen["nodeSelector"] = nodes
    if release.on_gpu:
        chosen["tolerations"] = [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        ]
    return chosen

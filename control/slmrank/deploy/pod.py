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
    manifest_name,
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
Mounted = tuple[dict[str, Any], dict[str, Any]]  # a volume, and its mount


def mounted(name: str, path: str, source: dict[str, Any], *, read_only: bool = True) -> Mounted:
    """What `source` is, under a path of a container."""
    mount = {"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})}
    return {"name": name, **source}, mount


def claimed(name: str, path: str, claim: str, *, read_only: bool = True) -> Mounted:
    source = {"claimName": claim, **({"readOnly": True} if read_only else {})}
    return mounted(name, path, {"persistentVolumeClaim": source}, read_only=read_only)


def from_secret(name: str, path: str, secret: str | None, **more: Any) -> Mounted:
    source = {"secretName": secret, "defaultMode": 0o440, **more}
    return mounted(name, path, {"secret": source})


def tmp(size: str = "64Mi") -> Mounted:
    return mounted("tmp", TMP, {"emptyDir": {"sizeLimit": size}}, read_only=False)


def shm(size: str) -> Mounted:
    """It counts as memory of the pod."""
    source = {"emptyDir": {"medium": "Memory", "sizeLimit": size}}
    return mounted("shm", "/dev/shm", source, read_only=False)


def pod_of(
    deploy: DeploySpec,
    containers: list[dict[str, Any]],
    volumes: Sequence[Mounted],
    account: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The spec of a pod: no token of the API, no variables of Services, nobody's root."""
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # `fsGroup` belongs here and nowhere else.
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": containers,
        "volumes": [volume for volume, _ in volumes],
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
    volumes: Sequence[Mounted],
    *,
    read_only_root: bool = True,
    env: Sequence[dict[str, Any]] = (),
    **more: Any,
) -> dict[str, Any]:
    """A container. Requests equal limits: one that borrows cores measures faster than it later
    serves, and a build that shares its GPU times its kernels wrongly. `read_only_root`: the NVIDIA
    runtime's hook writes into the root of a GPU container."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": "HOME", "value": TMP}, *env],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": read_only_root,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [mount for _, mount in volumes],
        **more,
    }


def http_probe(
    path: str, port: str | int = "http", *, every_s: int = 5, within_s: int = 3, failures: int = 3
) -> dict[str, Any]:
    """A probe over HTTP."""
    times = {"periodSeconds": every_s, "timeoutSeconds": within_s, "failureThreshold": failures}
    return {"httpGet": {"path": path, "port": port}, **times}


def bundle_volume(release: Release) -> tuple[Mounted, list[dict[str, Any]]]:
    """The volume with the repository, and the init containers that fill it: none for the claim, or
    an image that is mounted as a volume."""
    storage, url = release.deploy.storage, repository_url(release)
    if storage.bundle_image is not None:
        image = {"reference": storage.bundle_image, "pullPolicy": "IfNotPresent"}
        return mounted("bundles", BUNDLES, {"image": image}), []
    if url is None:
        return claimed("bundles", BUNDLES, storage.bundles_claim), []
    size_mib = math.ceil(release.repository.bytes / MIB) + 64
    empty = {"emptyDir": {"sizeLimit": f"{size_mib}Mi"}}
    command = ["control", "receive", repository_path(release)]
    command += ["--digest", release.repository.digest, "--from", url]
    resources = {"cpu": "1", "memory": "512Mi"}
    volumes = [mounted("bundles", BUNDLES, empty, read_only=False), tmp()]
    fetch = container_of("fetch", release.image, resources, volumes, command=command)
    if storage.url_secret is not None:
        fetch["envFrom"] = [{"secretRef": {"name": storage.url_secret}}]
    return mounted("bundles", BUNDLES, empty), [fetch]


def tls_volumes(release: Release) -> list[Mounted]:
    """The certificates; none without TLS."""
    tls = release.deploy.tls
    return [] if tls is None else [from_secret("tls", TLS, tls.secret)]


def store_environment(release: Release) -> list[dict[str, Any]]:
    """What a pod shows to the shared summary store; nothing without one, or without a Secret."""
    secret = release.deploy.store.secret
    if not release.store_ports or secret is None:
        return []

    def value_of(key: str, *, optional: bool) -> dict[str, Any]:
        return {"secretKeyRef": {"name": secret, "key": key, "optional": optional}}

    authority = {"name": STORE_AUTHORITY, "value": f"{STORE}/ca.crt"}
    return [
        {"name": STORE_PASSWORD, "valueFrom": value_of("password", optional=False)},
        {"name": STORE_USER, "valueFrom": value_of("user", optional=True)},
        *([authority] if release.deploy.store.authority else []),
    ]


def store_volumes(release: Release) -> list[Mounted]:
    """The authority that the shared store's certificate is checked by."""
    store = release.deploy.store
    if not release.store_ports or not store.authority:
        return []
    items = [{"key": "ca.crt", "path": "ca.crt"}]
    return [from_secret("store-authority", STORE, store.secret, items=items)]


def manifest_volume(release: Release) -> Mounted:
    """What pods compare the claim's files and their own answers with."""
    return mounted("manifest", MANIFEST, {"configMap": {"name": manifest_name(release)}})


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

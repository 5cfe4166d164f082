"""The rerank endpoint (`control gateway`) before the serving pods, for clients that speak HTTP."""

from __future__ import annotations

from slmrank.deploy.exposure import DNS, clients_of
from slmrank.deploy.naming import (
    COMPONENT,
    GRPC,
    INSTANCE,
    NAME,
    TLS,
    TMP,
    Object,
    labelled,
    labels,
    selector,
    service_host,
)
from slmrank.deploy.pod import pod_security, restricted, tls_volumes
from slmrank.deploy.release import Release

PORT = 8080
TOKENS = "/tokens"


def rerank_objects(release: Release) -> list[Object]:
    """Deployment, Service, disruption budget and NetworkPolicy."""
    chosen = {NAME: selector(release)[NAME], INSTANCE: release.name, COMPONENT: "rerank"}
    name = f"{release.object_name}-rerank"

    def made(api_version: str, kind: str, spec: Object) -> Object:
        return labelled(release, api_version, kind, name, component="rerank", spec=spec)

    return [
        made(
            "apps/v1",
            "Deployment",
            {
                "replicas": release.deploy.rerank.replicas,
                "selector": {"matchLabels": chosen},
                "template": {
                    "metadata": {"labels": labels(release, "rerank")},
                    "spec": _pod(release),
                },
            },
        ),
        made(
            "v1",
            "Service",
            {
                "selector": chosen,
                "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
            },
        ),
        made(
            "policy/v1",
            "PodDisruptionBudget",
            {
                "maxUnavailable": 1,
                "selector": {"matchLabels": chosen},
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        ),
        made(
            "networking.k8s.io/v1",
            "NetworkPolicy",
            {
                "podSelector": {"matchLabels": chosen},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [
                    {"from": clients_of(release), "ports": [{"port": PORT, "protocol": "TCP"}]}
                ],
                # To the ranker, and to whoever resolves its name.
                "egress": [
                    {
                        "to": [{"podSelector": {"matchLabels": selector(release)}}],
                        "ports": [{"port": GRPC, "protocol": "TCP"}],
                    },
                    DNS,
                ],
            },
        ),
    ]


def _pod(release: Release) -> Object:
    own, tls = release.deploy.rerank, release.deploy.tls
    volumes, mounts = tls_volumes(release)
    command = ["control", "gateway", "--url", f"{service_host(release)}:{GRPC}"]
    command += ["--address", "0.0.0.0", "--port", str(PORT)]
    if tls is not None:
        command += ["--ranker-authority", f"{TLS}/ca.crt"]
        if tls.clients:
            command += ["--ranker-certificate", f"{TLS}/tls.crt", "--ranker-key", f"{TLS}/tls.key"]
    if own.tokens_secret is not None:
        command += ["--tokens", f"{TOKENS}/tokens"]
        secret = {"secretName": own.tokens_secret, "defaultMode": 0o440}
        volumes = [*volumes, {"name": "tokens", "secret": secret}]
        mounts = [*mounts, {"name": "tokens", "mountPath": TOKENS, "readOnly": True}]
    resources = {"cpu": "1", "memory": "512Mi"}

    def probe(path: str, failures: int = 3) -> Object:
        return {
            "httpGet": {"path": path, "port": "http"},
            "periodSeconds": 5,
            "timeoutSeconds": 3,
            "failureThreshold": failures,
        }

    pod: Object = {
        "serviceAccountName": release.object_name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        "containers": [
            {
                "name": "gateway",
                "image": own.image or release.image,
                "imagePullPolicy": "IfNotPresent",
                "command": command,
                "env": [{"name": "HOME", "value": TMP}],
                "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
                "resources": {"requests": resources, "limits": resources},
                "securityContext": restricted(read_only_root=True),
                "startupProbe": probe("/health/live", 12),
                # Ready while a server behind it answers, alive while it answers itself.
                "readinessProbe": probe("/health"),
                "livenessProbe": probe("/health/live"),
                "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": [{"name": "tmp", "mountPath": TMP}, *mounts],
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}, *volumes],
    }
    if release.deploy.image_pull_secret is not None:
        pod["imagePullSecrets"] = [{"name": release.deploy.image_pull_secret}]
    return pod

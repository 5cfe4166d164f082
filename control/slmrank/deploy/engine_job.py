"""The Kubernetes Job that builds one engine on a node with the planned GPU.

The Job runs `control build` over the planned engine in the serving image, so that a cluster and a
workstation build in the same way: into `<engines>/<tag>`, checked against the plan, manifest last.
A second run finds the engine and ends at once.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from slmrank.deploy.pod import bundle_volume, pod_security, restricted
from slmrank.engine.trtllm.plan import BuildPlan

BUNDLES = "/bundles"
DEADLINE_S = 7200


def engine_job(
    plan: BuildPlan,
    *,
    tag: str,
    bundle: str,
    planned: str,
    image: str,
    engines: str,
    namespace: str | None = None,
    bundles_claim: str = "bundles",
    engines_claim: str = "engines",
    pull_secret: str | None = None,
) -> dict[str, Any]:
    """A `batch/v1` Job. `planned` is the planned engine's directory name below the claim of
    bundles, `engines` where the claim of engines is mounted."""
    labels = {
        "app.kubernetes.io/name": "slmrank",
        "app.kubernetes.io/instance": bundle,
        "app.kubernetes.io/component": "engine-build",
        "app.kubernetes.io/managed-by": "slmrank",
        "slmrank.io/bundle": bundle,
        "slmrank.io/engine": tag,
    }
    source = str(PurePosixPath(BUNDLES) / planned)
    # Requests equal limits: a build that shares its GPU times its kernels wrongly.
    resources = {"cpu": "4", "memory": "32Gi", "nvidia.com/gpu": "1"}
    container = {
        "name": "build",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["control", "build", source, "--engines", engines, "--require-engine"],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "workingDir": "/tmp",
        "resources": {"requests": resources, "limits": resources},
        "securityContext": restricted(read_only_root=False),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "bundles", "mountPath": BUNDLES, "readOnly": True},
            {"name": "engines", "mountPath": engines},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "nodeSelector": {"nvidia.com/gpu.product": plan.gpu},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "securityContext": pod_security(),
        "containers": [container],
        "volumes": [
            bundle_volume(bundles_claim),
            {"name": "engines", "persistentVolumeClaim": {"claimName": engines_claim}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "16Gi"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
        ],
    }
    if pull_secret is not None:
        pod["imagePullSecrets"] = [{"name": pull_secret}]
    annotations = {
        "slmrank.io/plan-hash": plan.hash,
        "slmrank.io/tensorrt-llm": plan.trtllm,
        "slmrank.io/container": plan.container,
    }
    metadata: dict[str, Any] = {"name": f"engine-build-{tag}"}
    if namespace is not None:
        metadata["namespace"] = namespace
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {**metadata, "labels": labels, "annotations": annotations},
        "spec": {
            "backoffLimit": 1,
            "activeDeadlineSeconds": DEADLINE_S,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }

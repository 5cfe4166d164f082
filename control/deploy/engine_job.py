"""The Kubernetes Job that builds one engine on a node with the planned GPU.

The Job runs `control build` over the planned engine in the serving image, so that a cluster and a
workstation build in the same way: into `<engines>/<tag>`, checked against the plan, manifest last.
A second run finds the engine and ends at once.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import yaml

from control.engine.trtllm_plan import BuildPlan

BUNDLES = "/bundles"
USER = 1000
DEADLINE_S = 7200


def engine_job(
    plan: BuildPlan, *, tag: str, bundle: str, planned: str, image: str, engines: str
) -> dict[str, Any]:
    """A `batch/v1` Job. `planned` is the planned engine's directory name below the claim `bundles`,
    `engines` where the claim `engines` is mounted."""
    labels = {
        "app.kubernetes.io/name": "slmrank",
        "app.kubernetes.io/component": "engine-build",
        "app.kubernetes.io/managed-by": "slmrank",
        "slmrank.io/bundle": bundle,
        "slmrank.io/engine": tag,
    }
    source = str(PurePosixPath(BUNDLES) / planned)
    container = {
        "name": "build",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["control", "build", source, "--engines", engines, "--require-engine"],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "workingDir": "/tmp",
        # Requests equal limits: a build that shares its GPU times its kernels wrongly.
        "resources": {
            "requests": {"cpu": "4", "memory": "32Gi", "nvidia.com/gpu": "1"},
            "limits": {"cpu": "4", "memory": "32Gi", "nvidia.com/gpu": "1"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
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
        "nodeSelector": {"nvidia.com/gpu.product": plan.gpu},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {
                "name": "bundles",
                "persistentVolumeClaim": {"claimName": "bundles", "readOnly": True},
            },
            {"name": "engines", "persistentVolumeClaim": {"claimName": "engines"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "16Gi"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
        ],
    }
    annotations = {
        "slmrank.io/plan-hash": plan.hash,
        "slmrank.io/tensorrt-llm": plan.trtllm,
        "slmrank.io/container": plan.container,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"engine-build-{tag}", "labels": labels, "annotations": annotations},
        "spec": {
            "backoffLimit": 1,
            "activeDeadlineSeconds": DEADLINE_S,
            "ttlSecondsAfterFinished": 86400,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


class _Plain(yaml.SafeDumper):
    """Writes repeated values out instead of naming them: people read these files."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(manifest: dict[str, Any]) -> str:
    """One deterministic document."""
    return yaml.dump(manifest, Dumper=_Plain, sort_keys=True, default_flow_style=False, width=100)

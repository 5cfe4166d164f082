"""The Kubernetes Job that builds one engine on a node with the planned GPU.

The Job runs `control build` over the planned engine in the serving image, so that a cluster and a
workstation build in the same way: into `<engines>/compiled/<tag>`, checked against the plan,
manifest last. A second run finds the engine and ends at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slmrank.artifacts import write_atomic
from slmrank.deploy.naming import (
    BUNDLE,
    BUNDLES,
    COMPONENT,
    ENGINE,
    INSTANCE,
    MANAGED_BY,
    MANAGER,
    NAME,
    TMP,
)
from slmrank.deploy.pod import claimed, container_of, pod_of, shm, tmp
from slmrank.deploy.release import unset_image
from slmrank.deploy.yaml_text import to_yaml
from slmrank.engine.trtllm.compile import PlannedEngine
from slmrank.engine.trtllm.plan import BuildPlan
from slmrank.hashing import hash_value
from slmrank.spec.deploy import DeploySpec

DEADLINE_S = 7200
KEPT_S = 7 * 24 * 3600  # its log; nothing else removes it
FOLDER = "jobs"


def write_engine_job(
    planned: PlannedEngine, bundle: str, deploy: DeploySpec, engines: str, artifacts: Path
) -> Path:
    """Write the Job of a planned engine into the folder of artifacts; returns the file."""
    job = engine_job(planned.plan, planned.tag, bundle, deploy, engines)
    path = artifacts / FOLDER / f"{job['metadata']['name']}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, to_yaml(job))
    return path


def engine_job(
    plan: BuildPlan, tag: str, bundle: str, deploy: DeploySpec, engines: str
) -> dict[str, Any]:
    """A `batch/v1` Job. The planned engine lies under its tag on the claim of bundles; `engines` is
    where the claim of engines is mounted.

    A Job cannot be changed: its name holds a hash of its pod, so that another image, or another
    claim for the engines, is another Job.
    """
    labels = {NAME: MANAGER, INSTANCE: bundle, COMPONENT: "engine-build"}
    labels |= {MANAGED_BY: MANAGER, BUNDLE: bundle, ENGINE: tag}
    storage, build, placement = deploy.storage, deploy.engine_build, deploy.placement
    priority = placement.priority_class
    volumes = [
        claimed("bundles", BUNDLES, storage.bundles_claim),
        claimed("engines", engines, storage.engines_claim, read_only=False),
        tmp("16Gi"),
        shm("2Gi"),
    ]
    container = container_of(
        "build",
        deploy.image or unset_image(needs_gpu=True),
        {"cpu": str(build.cores), "memory": f"{build.memory_gib}Gi", "nvidia.com/gpu": "1"},
        volumes,
        read_only_root=False,
        command=["control", "build", f"{BUNDLES}/{tag}", "--engines", engines, "--require-engine"],
        workingDir=TMP,
    )
    pod = pod_of(
        deploy,
        [container],
        volumes,
        restartPolicy="Never",
        nodeSelector={**placement.node_selector, "nvidia.com/gpu.product": plan.gpu},
        **({"priorityClassName": priority} if priority is not None else {}),
        tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    )
    annotations = {
        "slmrank.io/plan-hash": plan.hash,
        "slmrank.io/tensorrt-llm": plan.trtllm,
        "slmrank.io/container": plan.container,
    }
    name = f"engine-build-{tag}-{hash_value(pod)[:6]}"
    metadata = {"name": name, "namespace": deploy.namespace}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {**metadata, "labels": labels, "annotations": annotations},
        "spec": {
            "backoffLimit": 1,
            "activeDeadlineSeconds": DEADLINE_S,
            "ttlSecondsAfterFinished": KEPT_S,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }

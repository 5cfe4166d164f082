"""Summaries of a whole catalogue on a Ray cluster that lives as long as the work: KubeRay's
`RayJob`."""

from __future__ import annotations

import shlex

from slmrank.deploy.naming import (
    CATALOGUE,
    NAME,
    Object,
    labelled,
    labels,
    repository_path,
    selector,
)
from slmrank.deploy.parts import policy, tcp
from slmrank.deploy.pod import Mounted, bundle_volume, container_of, http_probe, pod_of, shm, tmp
from slmrank.deploy.release import Release

GIB_PER_WORKER = 2
DASHBOARD, AGENT = 8265, 52365


def ray_job(release: Release) -> Object:
    """One head, which holds the repository and runs `control summarize`, and one pod of one core
    per worker; whoever is killed is started again, and finished parts are not done twice."""
    own = release.deploy.catalogue
    summarize = ["control", "summarize", repository_path(release)]
    summarize += ["--jobs", own.jobs, "--out", own.out, "--on", "ray"]
    summarize += ["--workers", str(own.workers)]
    bundles, fetching = bundle_volume(release)
    spec = {
        "entrypoint": shlex.join(summarize),
        "submissionMode": "HTTPMode",
        "backoffLimit": 2,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "rayClusterSpec": {
            "rayVersion": own.ray_version,
            "headGroupSpec": {
                # Work is the workers': the head keeps the objects and runs the verb.
                "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
                "template": _template(release, [bundles], fetching),
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": own.workers,
                    "minReplicas": own.workers,
                    "maxReplicas": own.workers,
                    "rayStartParams": {"num-cpus": "1"},
                    "template": _template(release, [], []),
                }
            ],
        },
    }
    name = release.object_name  # KubeRay takes 47 characters
    return labelled(release, "ray.io/v1", "RayJob", name, component=CATALOGUE, spec=spec)


def ray_policy(release: Release) -> Object:
    """Ray runs code for whoever reaches its ports: its own pods, and KubeRay's operator."""
    operator = {"podSelector": {"matchLabels": {NAME: "kuberay-operator"}}, "namespaceSelector": {}}
    asking = {"from": [operator], "ports": tcp(DASHBOARD)}
    own = {"from": [{"podSelector": {"matchLabels": selector(release, CATALOGUE)}}]}
    name = f"{release.object_name}-{CATALOGUE}"
    return policy(release, name, CATALOGUE, [own, asking], None)


def _template(release: Release, bundles: list[Mounted], fetching: list[Object]) -> Object:
    own, volumes = release.deploy.catalogue, [tmp("8Gi"), shm("512Mi"), *bundles]
    resources = {"cpu": "1", "memory": f"{GIB_PER_WORKER}Gi"}
    container = container_of("ray", own.image or release.image, resources, volumes)
    # KubeRay's own ask with wget, which the image has no need of otherwise.
    alive = http_probe("/api/local_raylet_healthz", AGENT, within_s=5, failures=120)
    container["livenessProbe"] = alive
    container["readinessProbe"] = {**alive, "failureThreshold": 12}
    if own.secret is not None:
        container["envFrom"] = [{"secretRef": {"name": own.secret}}]
    more = {"initContainers": fetching} if fetching else {}
    spec = pod_of(release.deploy, [container], volumes, release.object_name, **more)
    return {"metadata": {"labels": labels(release, CATALOGUE)}, "spec": spec}

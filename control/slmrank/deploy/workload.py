"""The Deployment and what its pods mount: the manifest and, for a compiled engine, the Job that
builds it."""

from __future__ import annotations

from typing import Any

from slmrank.deploy.engine_job import engine_job
from slmrank.deploy.naming import (
    BUNDLES,
    GRPC,
    HTTP,
    MANIFEST,
    METRICS,
    RELEASE,
    TLS,
    TMP,
    Object,
    engine_path,
    labelled,
    labels,
    manifest_name,
    pod_manifest,
    repository_path,
    selector,
)
from slmrank.deploy.pod import (
    bundle_volume,
    container_of,
    placement,
    pod_of,
    smoke_command,
    store_environment,
    store_volumes,
    tls_volumes,
)
from slmrank.deploy.release import Release
from slmrank.deploy.sizing import (
    PROBE_PERIOD_S,
    drain_s,
    grace_period_s,
    memory_mib,
    progress_deadline_s,
    shm_mib,
    startup_budget_s,
)
from slmrank.engine.trtllm.plan import BuildPlan
from slmrank.triton.config import ENSEMBLE

SPARE_GPUS = "slmrank.io/spare-gpus"


def manifest_config(release: Release) -> Object:
    """What the pods compare the claim's files and their own answers with. Immutable, named by its
    content."""
    return labelled(
        release,
        "v1",
        "ConfigMap",
        manifest_name(release),
        component="manifest",
        immutable=True,
        data=pod_manifest(release),
    )


def engine_build_job(release: Release) -> Object:
    """The Job that compiles the engine where its GPU is; it ends at once when it finds it."""
    assert release.engine.plan is not None
    plan = BuildPlan(**release.engine.plan)  # type: ignore[arg-type]
    engine = release.engine
    return engine_job(plan, engine.tag, release.name, release.deploy, engine.engines)


def deployment(release: Release) -> Object:
    """The serving pods. `replicas` is left out: the autoscaler owns that field, and an apply that
    sets it would silently undo the autoscaler's number."""
    scaling, surge = release.deploy.scaling, release.strategy == "surge"
    strategy: Object = {"type": "Recreate"}
    if release.strategy != "recreate":
        strategy = {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": int(surge), "maxUnavailable": int(not surge)},
        }
    annotations = {
        RELEASE: release.hash,
        "slmrank.io/capacity": f"{release.capacity.items_per_s:g} items/s per replica",
        "slmrank.io/capacity-source": release.capacity.source,
        "slmrank.io/objective": f"p{release.percentile} <= {release.latency_ms:g} ms",
        "slmrank.io/floor": f"{scaling.min_replicas} to {scaling.max_replicas} replicas",
    }
    if release.on_gpu:
        annotations[SPARE_GPUS] = str(release.deploy.rollout.spare_gpus)
    return labelled(
        release,
        "apps/v1",
        "Deployment",
        release.object_name,
        annotations=annotations,
        spec={
            "selector": {"matchLabels": selector(release)},
            "strategy": strategy,
            "minReadySeconds": 5,
            "revisionHistoryLimit": 5,
            "progressDeadlineSeconds": progress_deadline_s(release),
            "template": {
                "metadata": {
                    "labels": labels(release),
                    "annotations": {
                        "kubectl.kubernetes.io/default-container": "serve",
                        "slmrank.io/repository": release.repository.digest,
                    },
                },
                "spec": _pod(release),
            },
        },
    )


def _pod(release: Release) -> Object:
    more = placement(release)
    if release.deploy.placement.priority_class is not None:
        more["priorityClassName"] = release.deploy.placement.priority_class
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector(release)},
    }
    return pod_of(
        release.deploy,
        [_serve(release)],
        _volumes(release),
        release.object_name,
        terminationGracePeriodSeconds=grace_period_s(release),
        initContainers=[*bundle_volume(release)[1], _verify(release)],
        topologySpreadConstraints=[spread],
        **more,
    )


def _verify(release: Release) -> Object:
    """Files are checked before a GPU is touched: a wrong or half-copied one ends here."""
    command = ["control", "verify", repository_path(release)]
    command += ["--manifest", f"{MANIFEST}/manifest.json"]
    engine = engine_path(release)
    if engine is not None:
        command += ["--engine", engine]
    resources = {"cpu": "1", "memory": "512Mi"}
    return container_of(
        "verify", release.image, resources, command=command, volumeMounts=_mounts(release)
    )


def _serve(release: Release) -> Object:
    resources = {
        "cpu": str(release.deploy.placement.cores),
        "memory": f"{memory_mib(release)}Mi",
    }
    if release.on_gpu:
        resources["nvidia.com/gpu"] = "1"
    command = ["control", "serve", repository_path(release), "--address", "0.0.0.0"]
    command += ["--start-timeout", str(startup_budget_s(release))]
    command += ["--drain", str(drain_s(release))]
    command += ["--http", "health"]  # the kubelet's probes: gRPC's own know no TLS
    tls = release.deploy.tls
    if tls is not None:
        command += ["--tls-certificate", f"{TLS}/tls.crt", "--tls-key", f"{TLS}/tls.key"]
        command += ["--tls-clients", f"{TLS}/ca.crt"] if tls.clients else []
    smoke = smoke_command(release, f"127.0.0.1:{GRPC}", 20)
    return container_of(
        "serve",
        release.image,
        resources,
        read_only_root=not release.on_gpu,
        command=command,
        env=store_environment(release),
        ports=[
            {"name": "grpc", "containerPort": GRPC, "protocol": "TCP"},
            {"name": "http", "containerPort": HTTP, "protocol": "TCP"},
            {"name": "metrics", "containerPort": METRICS, "protocol": "TCP"},
        ],
        # Readiness waits for this one, so a pod whose known answers are wrong never gets a request.
        startupProbe={
            "exec": {"command": smoke},
            "periodSeconds": PROBE_PERIOD_S,
            "timeoutSeconds": 25,
            "failureThreshold": startup_budget_s(release) // PROBE_PERIOD_S,
        },
        readinessProbe={
            "httpGet": {"path": f"/v2/models/{ENSEMBLE}/ready", "port": "http"},
            "periodSeconds": 5,
            "timeoutSeconds": 3,
            "failureThreshold": 3,
        },
        livenessProbe={
            "httpGet": {"path": "/v2/health/live", "port": "http"},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        # Clients go on sending until they hear that the pod leaves; `sleep` runs everywhere, the
        # native action only from Kubernetes 1.30 on.
        lifecycle={
            "preStop": {"exec": {"command": ["sleep", str(release.deploy.rollout.pre_stop_s)]}}
        },
        volumeMounts=[
            *_mounts(release),
            *tls_volumes(release)[1],
            *store_volumes(release)[1],
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    )


def _volumes(release: Release) -> list[Object]:
    storage = release.deploy.storage
    volumes: list[Object] = [bundle_volume(release)[0]]
    if release.engine.plan is not None:
        claim = {"claimName": storage.engines_claim, "readOnly": True}
        volumes.append({"name": "engines", "persistentVolumeClaim": claim})
    return [
        *volumes,
        {"name": "manifest", "configMap": {"name": manifest_name(release)}},
        *tls_volumes(release)[0],
        *store_volumes(release)[0],
        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_mib(release)}Mi"}},
    ]


def _mounts(release: Release) -> list[dict[str, Any]]:
    mounts: list[Object] = [{"name": "bundles", "mountPath": BUNDLES, "readOnly": True}]
    if release.engine.plan is not None:
        mounts.append({"name": "engines", "mountPath": release.engine.engines, "readOnly": True})
    return [
        *mounts,
        {"name": "manifest", "mountPath": MANIFEST, "readOnly": True},
        {"name": "tmp", "mountPath": TMP},
    ]

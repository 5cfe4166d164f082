"""The Deployment and what its pods mount: the manifest and, for a compiled engine, the Job that
builds it."""

from __future__ import annotations

from slmrank.deploy.engine_job import engine_job
from slmrank.deploy.naming import (
    GRPC,
    HTTP,
    MANIFEST,
    METRICS,
    RELEASE,
    TLS,
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
    Mounted,
    bundle_volume,
    claimed,
    container_of,
    http_probe,
    manifest_volume,
    placement,
    pod_of,
    shm,
    smoke_command,
    store_environment,
    store_volumes,
    tls_volumes,
    tmp,
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
    more: Object = {"immutable": True, "data": pod_manifest(release)}
    name = manifest_name(release)
    return labelled(release, "v1", "ConfigMap", name, component="manifest", **more)


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
    spec = {
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
    }
    kind, name = ("apps/v1", "Deployment"), release.object_name
    return labelled(release, *kind, name, annotations=annotations, spec=spec)


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
        [*_files(release), *_secrets(release), tmp("1Gi"), shm(f"{shm_mib(release)}Mi")],
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
    resources, volumes = {"cpu": "1", "memory": "512Mi"}, [*_files(release), tmp("1Gi")]
    return container_of("verify", release.image, resources, volumes, command=command)


def _serve(release: Release) -> Object:
    resources = {"cpu": str(release.deploy.placement.cores), "memory": f"{memory_mib(release)}Mi"}
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
        [*_files(release), tmp("1Gi"), *_secrets(release), shm(f"{shm_mib(release)}Mi")],
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
        readinessProbe=http_probe(f"/v2/models/{ENSEMBLE}/ready"),
        livenessProbe=http_probe("/v2/health/live", every_s=10, within_s=5, failures=6),
        # Clients go on sending until they hear that the pod leaves; `sleep` runs everywhere, the
        # native action only from Kubernetes 1.30 on.
        lifecycle={
            "preStop": {"exec": {"command": ["sleep", str(release.deploy.rollout.pre_stop_s)]}}
        },
    )


def _files(release: Release) -> list[Mounted]:
    """What a pod reads: the repository, a compiled engine, and what both are compared with."""
    files, storage = [bundle_volume(release)[0]], release.deploy.storage
    if release.engine.plan is not None:
        files.append(claimed("engines", release.engine.engines, storage.engines_claim))
    return [*files, manifest_volume(release)]


def _secrets(release: Release) -> list[Mounted]:
    return [*tls_volumes(release), *store_volumes(release)]

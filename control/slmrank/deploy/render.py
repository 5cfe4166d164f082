"""From a release to Kubernetes objects: pure, in the order in which they are applied."""

from __future__ import annotations

from slmrank.deploy.access import claim, namespace, service_account
from slmrank.deploy.exposure import grpc_service, scoring_policy
from slmrank.deploy.monitoring import pod_monitor, prometheus_rule
from slmrank.deploy.naming import Object
from slmrank.deploy.parts import budget
from slmrank.deploy.release import Release
from slmrank.deploy.scaling import autoscaler
from slmrank.deploy.watch import watch_monitor, watch_objects
from slmrank.deploy.workload import deployment, engine_build_job, manifest_config


def render_base(release: Release) -> list[Object]:
    """What every cluster knows the kinds of."""
    storage = release.deploy.storage
    objects = [namespace(release), service_account(release)]
    # The Job that builds an engine reads its plan from the claim, wherever the repository is.
    elsewhere = storage.bundle_image is not None or storage.bundles_url is not None
    if not elsewhere or release.engine.plan is not None:
        objects.append(claim(release, storage.bundles_claim))
    if release.engine.plan is not None:
        objects.append(claim(release, storage.engines_claim))
        objects.append(engine_build_job(release))
    followers = watch_objects(release) if release.deploy.watch is not None else []
    return [
        *objects,
        manifest_config(release),
        scoring_policy(release, release.object_name, "serve"),
        grpc_service(release),
        budget(release, release.object_name, "availability", of="serve"),
        deployment(release),
        *([autoscaler(release)] if release.deploy.scaling.autoscaler == "hpa" else []),
        *followers,
    ]


def render_monitoring(release: Release) -> list[Object]:
    """What needs the Prometheus operator."""
    followers = [watch_monitor(release)] if release.deploy.watch is not None else []
    return [pod_monitor(release), *followers, prometheus_rule(release)]


def render(release: Release) -> list[Object]:
    """Everything that `apply` brings into a cluster."""
    return [*render_base(release), *render_monitoring(release)]


def identity(given: Object) -> tuple[str, str, str, str]:
    """(apiVersion, kind, namespace, name)"""
    metadata = given["metadata"]
    return given["apiVersion"], given["kind"], metadata.get("namespace", ""), metadata["name"]

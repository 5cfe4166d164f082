"""Followers of changed jobs (`control watch`): they keep the shared summary store as the servers of
their release read it."""

from __future__ import annotations

from slmrank.deploy.exposure import pod_egress
from slmrank.deploy.naming import (
    BUNDLES,
    COMPONENT,
    INSTANCE,
    METRICS,
    TMP,
    TRACK,
    WATCH,
    Object,
    follower_name,
    repository_path,
    selector,
)
from slmrank.deploy.parts import monitored, policy, scraping, workers
from slmrank.deploy.pod import bundle_volume, container_of, pod_of, store_environment, store_volumes
from slmrank.deploy.release import Release
from slmrank.spec.deploy import WatchSpec
from slmrank.store.kafka_topic import PROPERTIES, parse_topic

KAFKA = "/kafka"
KAFKA_KIND = "kafka:"


def watch_objects(release: Release) -> list[Object]:
    """Deployment and NetworkPolicy of `deploy.watch`, which must be set."""
    own = release.deploy.watch
    assert own is not None
    egress = pod_egress(release)
    if own.source.startswith(KAFKA_KIND):
        ports = parse_topic(own.source.removeprefix(KAFKA_KIND), WATCH).ports
        egress = [{"ports": [{"port": one, "protocol": "TCP"} for one in ports]}, *egress]
    name, chosen = follower_name(release.place), selector(release, WATCH)
    return [
        workers(release, name, WATCH, chosen, own.replicas, _pod(release, own)),
        policy(release, name, WATCH, chosen, [scraping(release)], egress),
    ]


def watch_monitor(release: Release) -> Object:
    """Scrapes the followers. Their series lack the name by which those of servers are counted."""
    spec = {
        "selector": {"matchLabels": selector(release, WATCH)},
        "podTargetLabels": [INSTANCE, COMPONENT, TRACK],
        "podMetricsEndpoints": [{"port": "changes", "path": "/metrics"}],
    }
    return monitored(release, "PodMonitor", follower_name(release.place), WATCH, spec)


def _pod(release: Release, own: WatchSpec) -> Object:
    command = ["control", "watch", repository_path(release), "--from", own.source]
    command += ["--metrics-port", str(METRICS), "--metrics-address", "0.0.0.0"]
    volumes, mounts = store_volumes(release)
    environment = store_environment(release)
    if own.kafka_secret is not None:
        secret = {"secretName": own.kafka_secret, "defaultMode": 0o440}
        volumes = [*volumes, {"name": "kafka", "secret": secret}]
        mounts = [*mounts, {"name": "kafka", "mountPath": KAFKA, "readOnly": True}]
        environment = [*environment, {"name": PROPERTIES, "value": f"{KAFKA}/client.properties"}]
    probe = {"httpGet": {"path": "/metrics", "port": "changes"}, "timeoutSeconds": 5}
    container = container_of(
        WATCH,
        release.image,
        {"cpu": "1", "memory": "1Gi"},
        command=command,
        env=environment,
        ports=[{"name": "changes", "containerPort": METRICS, "protocol": "TCP"}],
        startupProbe={**probe, "periodSeconds": 5, "failureThreshold": 24},
        livenessProbe={**probe, "periodSeconds": 20, "failureThreshold": 6},
        volumeMounts=[
            {"name": "bundles", "mountPath": BUNDLES, "readOnly": True},
            {"name": "tmp", "mountPath": TMP},
            *mounts,
        ],
    )
    bundles, fetching = bundle_volume(release)
    own_volumes = [bundles, {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}]
    more = {"initContainers": fetching} if fetching else {}
    return pod_of(
        release.deploy, [container], [*own_volumes, *volumes], release.object_name, **more
    )

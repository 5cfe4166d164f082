"""Followers of changed jobs (`control watch`): they keep the shared summary store as the servers of
their release read it."""

from __future__ import annotations

from slmrank.deploy.exposure import pod_egress
from slmrank.deploy.naming import (
    COMPONENT,
    INSTANCE,
    METRICS,
    TRACK,
    WATCH,
    Object,
    follower_name,
    repository_path,
    selector,
)
from slmrank.deploy.parts import monitored, policy, scraping, tcp, workers
from slmrank.deploy.pod import (
    bundle_volume,
    container_of,
    from_secret,
    http_probe,
    pod_of,
    store_environment,
    store_volumes,
    tmp,
)
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
        egress = [{"ports": tcp(*ports)}, *egress]
    name = follower_name(release.place)
    return [
        workers(release, name, WATCH, own.replicas, _pod(release, own)),
        policy(release, name, WATCH, [scraping(release)], egress),
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
    bundles, fetching = bundle_volume(release)
    volumes, environment = [bundles, tmp(), *store_volumes(release)], store_environment(release)
    if own.kafka_secret is not None:
        volumes.append(from_secret("kafka", KAFKA, own.kafka_secret))
        environment.append({"name": PROPERTIES, "value": f"{KAFKA}/client.properties"})
    container = container_of(
        WATCH,
        release.image,
        {"cpu": "1", "memory": "1Gi"},
        volumes,
        command=command,
        env=environment,
        ports=[{"name": "changes", "containerPort": METRICS, "protocol": "TCP"}],
        startupProbe=http_probe("/metrics", "changes", within_s=5, failures=24),
        livenessProbe=http_probe("/metrics", "changes", every_s=20, within_s=5, failures=6),
    )
    more = {"initContainers": fetching} if fetching else {}
    return pod_of(release.deploy, [container], volumes, release.object_name, **more)

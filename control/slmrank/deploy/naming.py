"""Names, labels and paths that several objects must agree on."""

from __future__ import annotations

import json
from typing import Any

from slmrank.data.parts import url_below
from slmrank.deploy.release import Place, Release
from slmrank.engine.trtllm.compile import compiled_path
from slmrank.hashing import hash_value

Object = dict[str, Any]

MANAGER = "slmrank"
BUNDLES = "/bundles"
MANIFEST = "/manifest"
TMP = "/tmp"
TLS = "/tls"
STORE = "/store"
GRPC, HTTP, METRICS = 8001, 8000, 8002
NAME = "app.kubernetes.io/name"
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
MANAGED_BY = "app.kubernetes.io/managed-by"
BUNDLE = "slmrank.io/bundle"
ENGINE = "slmrank.io/engine"
TRACK = "slmrank.io/track"
WATCH = "watch"  # component of the followers of changed jobs
RERANK, CATALOGUE, KSERVE = "rerank", "catalogue", "kserve"  # of what is applied beside a release
ROUTE = "route"  # component of the route, which outlives releases
RELEASE = "slmrank.io/release"


def placed(place: Place, component: str) -> dict[str, str]:
    """Labels of what belongs to a component of one deployment, whatever release it is of."""
    return {NAME: MANAGER, INSTANCE: place.bundle, COMPONENT: component, TRACK: place.track}


def selector(release: Release, component: str = "serve") -> dict[str, str]:
    """What Services and the Deployment select by: it never changes, because a Deployment's selector
    cannot."""
    return placed(release.place, component)


def labels(release: Release, component: str | None = "serve") -> dict[str, str]:
    """Labels of an object; `component` None: of one that bundles share, which carries the label of
    none."""
    if component is None:
        return {NAME: MANAGER, MANAGED_BY: MANAGER}
    own = {MANAGED_BY: MANAGER, BUNDLE: release.name, ENGINE: release.engine.tag}
    return {**selector(release, component), **own}


def labelled(
    release: Release,
    api_version: str,
    kind: str,
    name: str,
    *,
    component: str | None = "serve",
    annotations: dict[str, str] | None = None,
    **content: Any,
) -> Object:
    """An object with our metadata; `content` is everything beside it."""
    metadata: Object = {
        "name": name,
        "labels": labels(release, component),
        "namespace": release.deploy.namespace,
    }
    if annotations:
        metadata["annotations"] = annotations
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}


def pods_matching(release: Release) -> str:
    """The pods of a release in PromQL: those of its Deployment, or of KServe's."""
    name = release.object_name
    return f'namespace="{release.deploy.namespace}",pod=~"{name}(-predictor)?-[a-z0-9]+-[a-z0-9]+"'


def series_of(release: Release) -> str:
    """The series of a release's pods in PromQL, by the labels that are copied when scraped: one
    Prometheus may read the same bundle in several namespaces."""
    return (
        f'namespace="{release.deploy.namespace}",app_kubernetes_io_instance="{release.name}",'
        f'slmrank_io_track="{release.track}"'
    )


def service_host(release: Release) -> str:
    """The name that clients in the cluster call, and that a certificate must have."""
    return f"{release.object_name}.{release.deploy.namespace}.svc"


def follower_name(place: Place) -> str:
    """Deployment and NetworkPolicy of the followers of changed jobs."""
    return f"{place.object_name}-{WATCH}"


def repository_url(release: Release) -> str | None:
    """Where pods fetch the repository from; None where it lies on a claim or in an image."""
    url = release.deploy.storage.bundles_url
    if url is None:
        return None
    return url_below(url, f"repository-{release.repository.digest}")


def repository_path(release: Release) -> str:
    """Where the pod finds the model repository."""
    if release.deploy.storage.bundle_image is not None:
        return BUNDLES
    return f"{BUNDLES}/repository-{release.repository.digest}"


def engine_path(release: Release) -> str | None:
    """Where the pod finds a compiled engine, None for targets without one."""
    if release.engine.plan is None:
        return None
    return compiled_path(release.engine.engines, release.engine.tag)


def pod_manifest(release: Release) -> dict[str, str]:
    """The files that the pod checks itself against: what was generated, and its known answers."""
    manifest = {
        "schema": 1,
        "repository": {name: one.settings() for name, one in release.repository.files.items()},
        "engine": {
            "target": release.engine.target,
            "tag": release.engine.tag,
            "plan": release.engine.plan,
        },
    }
    answers = [answer.values() for answer in release.known_answers]
    return {
        "manifest.json": json.dumps(manifest, sort_keys=True, indent=1) + "\n",
        "known_answers.json": json.dumps(
            {"schema": 1, "answers": answers}, sort_keys=True, indent=1
        )
        + "\n",
    }


def manifest_name(release: Release) -> str:
    """By content: an old ReplicaSet that is put back still finds the one that it was made with."""
    return f"{release.object_name}-{hash_value(pod_manifest(release))[:12]}"

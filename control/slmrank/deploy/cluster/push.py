"""Bring a repository, and a planned or compiled engine, to where a release's pods read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slmrank.artifacts import Artifact
from slmrank.deploy.access import is_shared
from slmrank.deploy.cluster.api import Cluster
from slmrank.deploy.cluster.execute import execute
from slmrank.deploy.cluster.waiting import Waiter
from slmrank.deploy.naming import (
    BUNDLES,
    COMPONENT,
    INSTANCE,
    engine_path,
    repository_path,
    repository_url,
)
from slmrank.deploy.push_pod import COMPONENT_NAME, push_pod
from slmrank.deploy.release import Release
from slmrank.deploy.render import identity, render_base
from slmrank.errors import DeployFailed, Refused
from slmrank.repository.receive import send_url, tar_bytes, write_tar

START_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """An artifact and where it belongs: a path in pods, or a url."""

    artifact: Artifact
    target: str

    @property
    def bytes(self) -> int:
        return sum(int(one["bytes"]) for one in self.artifact.manifest["files"].values())


def plan_parcels(
    release: Release, repository: Artifact, planned: Artifact, compiled: Artifact | None
) -> tuple[list[Parcel], list[Parcel]]:
    """(what goes to a url, what goes onto claims) for a release: the repository unless it is in an
    image, the planned engine for the Job that builds it, the compiled one where there is one."""
    storage, url = release.deploy.storage, repository_url(release)
    to_url = [] if url is None else [Parcel(artifact=repository, target=url)]
    on_claims = []
    if url is None and storage.bundle_image is None:
        on_claims.append(Parcel(artifact=repository, target=repository_path(release)))
    if release.engine.plan is not None:
        on_claims.append(Parcel(artifact=planned, target=f"{BUNDLES}/{release.engine.tag}"))
    target = engine_path(release)
    if compiled is not None and target is not None:
        on_claims.append(Parcel(artifact=compiled, target=target))
    return to_url, on_claims


def push_to_urls(parcels: Sequence[Parcel], report: Callable[[str], None]) -> list[Parcel]:
    """Upload what is not there; returns that. Raises DataError for a place that is not reached."""
    sent = []
    for parcel in parcels:
        report(f"{parcel.target}: {parcel.bytes / 1e6:.1f} MB")
        if send_url(parcel.artifact, parcel.target):
            sent.append(parcel)
    return sent


def push_to_claims(
    cluster: Cluster, waiter: Waiter, release: Release, parcels: Sequence[Parcel]
) -> list[Parcel]:
    """Copy what is not there, through a pod that is removed again; returns what was copied. The
    namespace and the claims are made where they are missing.

    Raises Refused without an image, DeployFailed when the pod does not start or does not take it.
    """
    if release.deploy.image is None:
        raise Refused("the pod that copies needs an image", "set deploy.image to NAME@sha256:...")
    space = release.deploy.namespace
    for given in render_base(release):
        if is_shared(given) and cluster.get(*identity(given)) is None:
            cluster.apply(given)
    pod = push_pod(release)
    name = pod["metadata"]["name"]
    _remove_ended(cluster, release)
    try:
        cluster.apply(pod)
        waiter.pod(space, name, START_S)
        return [one for one in parcels if _copied(cluster, waiter, space, name, one)]
    finally:
        cluster.delete(pod)


def _remove_ended(cluster: Cluster, release: Release) -> None:
    """The pods of pushes that were cut off, once they have ended."""
    labels = {INSTANCE: release.name, COMPONENT: COMPONENT_NAME}
    for one in cluster.list("v1", "Pod", release.deploy.namespace, labels):
        if (one.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            cluster.delete(one)


def _copied(cluster: Cluster, waiter: Waiter, space: str, pod: str, parcel: Parcel) -> bool:
    command = ["control", "receive", parcel.target, "--digest", parcel.artifact.digest]
    status, _ = execute(cluster, space, pod, [*command, "--check"])
    if status == 0:
        waiter.report(f"{parcel.target}: there already, whole")
        return False
    waiter.report(f"{parcel.target}: {parcel.bytes / 1e6:.1f} MB")
    command += ["--bytes", str(tar_bytes(parcel.artifact))]
    status, said = execute(
        cluster, space, pod, command, lambda stdin: write_tar(parcel.artifact, stdin)
    )
    if status != 0:
        raise DeployFailed(
            f"{parcel.target} was not taken (exit {status}): {said.strip()}",
            "is the claim full, or read-only? Then push again: nothing half-copied has the name",
        )
    return True

"""What an apply would change: the server's own dry run of every object, beside what is there."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from slmrank.deploy.access import is_shared
from slmrank.deploy.check.run import check_rendered
from slmrank.deploy.check.schema import as_version, known_versions, load_crds
from slmrank.deploy.cluster.api import ApiError, Cluster, Conflict
from slmrank.deploy.cluster.records import GOOD, Record, list_records
from slmrank.deploy.cluster.rollout import holding
from slmrank.deploy.naming import Object
from slmrank.deploy.release import UNSET_DIGEST, Release
from slmrank.deploy.render import identity
from slmrank.deploy.yaml_text import to_yaml
from slmrank.errors import Refused

OLDEST = (1, 29)
IMAGE_VOLUMES = (1, 35)
# Kinds that a cluster may lack: what is lost without them is said.
OPTIONAL = {
    "PodMonitor": "metrics are not scraped by the Prometheus operator",
    "PrometheusRule": "the autoscaler's metrics must come from rules of your own",
}
_NOISE = ("managedFields", "resourceVersion", "uid", "creationTimestamp", "generation", "selfLink")
Change = Literal["create", "change", "same", "skip"]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One object: what would happen, the difference as text, and why it is skipped."""

    content: Object
    change: Change
    diff: str = ""
    note: str = ""

    @property
    def title(self) -> str:
        _, kind, namespace, name = identity(self.content)
        return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"


def check_release(release: Release, objects: Sequence[Object], version: str) -> None:
    """Refuse before the cluster is asked for anything: an image that nobody named, a version that
    the manifests are not made for, and whatever our own rules find.

    Raises Refused.
    """
    if UNSET_DIGEST in release.image:
        kind = "gpu" if release.on_gpu else "cpu"
        raise Refused(
            f"deploy.image is not set: {release.image} stands for an image that nobody built yet",
            f"build build/{kind}.Dockerfile (k8s/README.md: with what for which target), push it, "
            "and set deploy.image to NAME@sha256:...",
        )
    found = as_version(version)
    if found < OLDEST:
        raise Refused(
            f"the cluster runs Kubernetes {version}, the manifests are made for 1.29 and newer",
            "upgrade the cluster",
        )
    if release.deploy.storage.bundle_image is not None and found < IMAGE_VOLUMES:
        raise Refused(
            f"deploy.storage.bundle_image needs Kubernetes 1.35, the cluster runs {version} and "
            "would drop the field without a word",
            "use a claim: deploy.storage.bundles_claim",
        )
    known = known_versions()
    nearest = version if version in known else known[-1]
    faults = check_rendered(objects, nearest, load_crds()).errors
    if faults:
        told = "; ".join(f"{one.where}: {one.message}" for one in faults[:5])
        raise Refused(f"the manifests have {len(faults)} defects: {told}", faults[0].fix)


def plan_objects(
    cluster: Cluster, objects: Sequence[Object], *, force: bool = False
) -> list[Planned]:
    """Ask the server about every object without changing anything.

    Raises Refused that lists every object that the server refuses and, for conflicts, who owns the
    field.
    """
    planned, refused = [], []
    hint = ""
    for given in objects:
        try:
            planned.append(_plan_one(cluster, given, force=force))
        except ApiError as error:
            kind, name = given["kind"], given["metadata"]["name"]
            refused.append(f"{kind} {name}: {error.message}")
            if not hint or isinstance(error, Conflict):
                hint = error.hint
    if refused:
        raise Refused("the API server refuses " + "; ".join(refused), hint)
    return planned


def namespace_is_missing(cluster: Cluster, release: Release) -> bool:
    """Not where one may not look."""
    try:
        return cluster.get("v1", "Namespace", "", release.deploy.namespace) is None
    except ApiError as error:
        if error.status == 403:
            return False
        raise


def plan_new(cluster: Cluster, given: Object) -> Planned:
    """What becomes of an object of a namespace that is not there, where nothing can be dry-run."""
    api_version, kind = given["apiVersion"], given["kind"]
    if kind in OPTIONAL and cluster.find_kind(api_version, kind) is None:
        note = f"the cluster has no {api_version} {kind}: {OPTIONAL[kind]}"
        return Planned(content=given, change="skip", note=note)
    return Planned(content=given, change="create", diff=to_yaml(given))


def _plan_one(cluster: Cluster, given: Object, *, force: bool) -> Planned:
    api_version, kind, namespace, name = identity(given)
    new = plan_new(cluster, given)
    if new.change == "skip":
        return new
    try:
        live = cluster.get(api_version, kind, namespace, name)
    except ApiError as error:
        if error.status == 403 and kind == "Namespace":
            return Planned(content=given, change="skip", note="not allowed to see namespaces")
        raise
    if live is not None and is_shared(given):
        return Planned(content=given, change="skip", note="exists and is kept as it is")
    if live is not None and kind == "Job":
        failed = "Failed" in holding(live)
        note = "failed before, runs again" if failed else "runs or is done"
        return Planned(content=given, change="change" if failed else "same", note=note)
    would = cluster.apply(given, dry_run=True, force=force)
    if live is None:
        return new
    before, after = _comparable(live), _comparable(would)
    if before == after:
        return Planned(content=given, change="same")
    lines = difflib.unified_diff(
        to_yaml(before).splitlines(), to_yaml(after).splitlines(), "there", "planned", lineterm=""
    )
    return Planned(content=given, change="change", diff="\n".join(lines))


def _comparable(given: Object) -> Any:
    """Without what the server adds to every object."""
    content = {key: value for key, value in given.items() if key != "status"}
    metadata = {key: one for key, one in given["metadata"].items() if key not in _NOISE}
    notes = {
        key: value
        for key, value in (metadata.get("annotations") or {}).items()
        if not key.startswith("deployment.kubernetes.io/")
    }
    metadata["annotations"] = notes
    return {**content, "metadata": metadata}


def serves(records: Sequence[Record], release: Release) -> bool:
    """Whether the newest record is of this release, and says that it was deployed."""
    return bool(records) and (records[0].release, records[0].state) == (release.hash, "deployed")


def keeps_serving(
    planned: Sequence[Planned], records: Sequence[Record], release: Release, running: str | None
) -> bool:
    """Whether an apply leaves a release alone that runs and was good: what fails then stands beside
    it."""
    deployments = (one for one in planned if one.content["kind"] == "Deployment")
    same = running == release.hash and all(one.change == "same" for one in deployments)
    # Attempts that did not come to their end changed nothing of what it was.
    newest = next((one.release for one in records if one.state == "deployed"), None)
    return same and newest == release.hash


def without_built(cluster: Cluster, planned: Sequence[Planned], release: Release) -> list[Planned]:
    """Without the Jobs of an engine that served before, from the same claim: they need a GPU only
    to find that there is nothing to do."""
    # Both tracks share the claim of engines.
    claim = release.deploy.storage.engines_claim
    served = any(
        one.state in GOOD
        and one.engine == release.engine.tag
        and (one.release_values or release).deploy.storage.engines_claim == claim
        for track in ("stable", "canary")
        for one in list_records(cluster, replace(release.place, track=track))
    )
    return [one for one in planned if not (served and one.content["kind"] == "Job")]

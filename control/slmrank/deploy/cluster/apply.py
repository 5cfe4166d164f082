"""Bring a release into a cluster, and back: dry run of everything, apply in order, wait for the new
pods, ask for known answers, and put the earlier release back when one of these fails."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from slmrank.deploy.cluster.api import ApiError, Cluster
from slmrank.deploy.cluster.explain import UNSCHEDULABLE, Trouble, explain_pods
from slmrank.deploy.cluster.plan import Planned, check_release, job_states, plan_objects
from slmrank.deploy.cluster.records import (
    KEPT,
    Record,
    State,
    find_record,
    list_records,
    set_state,
    write_record,
)
from slmrank.deploy.cluster.rollout import Standing, judge, newest_set, pods_of, timed_out
from slmrank.deploy.naming import COMPONENT, INSTANCE, MANAGED_BY, MANAGER, RELEASE, TRACK, Object
from slmrank.deploy.release import Place, Release
from slmrank.deploy.render import identity, render
from slmrank.deploy.smoke_job import DEADLINE_S, smoke_job
from slmrank.errors import ControlError, DeployError, DeployFailed, Refused, RolledBack

REMOVAL_S = 60.0
UNSCHEDULABLE_S = 600.0
# After the cluster's own deadline: it tells of it within seconds.
DEADLINE_MARGIN_S = 5.0
NAMESPACE = ("v1", "Namespace")
# What `prune` and `delete` look through; claims and namespaces hold other people's data.
OWN_KINDS = (
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("apps/v1", "Deployment"),
    ("policy/v1", "PodDisruptionBudget"),
    ("v1", "Service"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("batch/v1", "Job"),
    ("v1", "ConfigMap"),
    ("v1", "ServiceAccount"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
)
Report = Callable[[str], None]
Smoke = Callable[[], None]


@dataclass(kw_only=True)
class Deployer:
    """A cluster and how to talk about it. `smoke` asks for the known answers in another way than by
    a Job; `clock` and `sleep` are for tests."""

    cluster: Cluster
    told: Report
    smoke: Smoke | None = None
    skip_smoke: bool = False
    force_conflicts: bool = False
    take_over: bool = False
    poll_s: float = 1.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _seen_events: set[tuple[str, Any]] = field(default_factory=set)

    def plan(self, release: Release) -> list[Planned]:
        """What `apply` would change. Raises Refused."""
        objects = render(release)
        check_release(release, objects, self.cluster.version())
        if self._namespace_is_missing(release):
            # Nothing can be dry-run in a namespace that is not there.
            return [Planned(content=one, change="create") for one in objects]
        return plan_objects(self.cluster, objects, force=self.force_conflicts)

    def apply(self, release: Release) -> dict[str, Any]:
        """Deploy a release; returns what happened.

        Raises Refused (nothing changed), RolledBack (the release before serves), DeployFailed.
        """
        objects = render(release)
        check_release(release, objects, self.cluster.version())
        made = self._make_namespace(release)
        try:
            planned = plan_objects(self.cluster, objects, force=self.force_conflicts)
            records = list_records(self.cluster, release.place)
            self._require_free(records, release.place)
        except BaseException:
            if made is not None:
                self.cluster.delete(made)
                self.told(f"removed the empty namespace {release.deploy.namespace} again")
            raise
        known = [one for one in planned if one.change != "skip"]
        contents = [one.content for one in known if not _built(one.content, records, release)]
        for one in planned:
            self.told(f"{one.change:<7} {one.title}" + (f" ({one.note})" if one.note else ""))
        revision = 1 + max((one.revision for one in records), default=0)
        record = write_record(self.cluster, release, contents, revision=revision, state="applying")
        try:
            self._bring(release, contents)
            self._smoke(release, revision)
        except ControlError as error:
            self._note(record, "failed", release.place)
            self._put_back(release, records, error)
        except BaseException as error:
            self._note(record, "failed", release.place)
            raise _interrupted(error) from error
        removed = self._conclude(release, contents, record, records)
        return {
            "release": release.hash,
            "engine": release.engine.tag,
            "revision": revision,
            "changed": [one.title for one in known if one.change != "same"],
            "skipped": [one.note for one in planned if one.note],
            "pruned": removed,
            "smoke": "skipped" if self.skip_smoke else "known answers hold",
        }

    def rollback(self, place: Place, revision: int | None) -> dict[str, Any]:
        """Put an earlier deployment back, the last good one or a given revision.

        Raises Refused when there is none, DeployFailed when it does not come up.
        """
        records = list_records(self.cluster, place)
        self._require_free(records, place)
        live = self.cluster.get("apps/v1", "Deployment", place.namespace, place.object_name)
        notes = ((live or {}).get("metadata") or {}).get("annotations") or {}
        running = notes.get(RELEASE)
        # The newest good one that is not what runs now.
        others = [one for one in records if revision is not None or one.release != running]
        try:
            target = find_record(others, revision)
        except DeployError as error:
            raise Refused(error.message, error.hint) from error
        self.told(f"back to revision {target.revision}: engine {target.engine}")
        try:
            self._restore(place, target)
        except DeployFailed:
            raise
        except ControlError as error:
            raise DeployFailed(
                f"revision {target.revision} could not be put back: {error.message}", error.hint
            ) from error
        except BaseException as error:
            raise _interrupted(error) from error
        for one in records:
            if one.revision > target.revision and one.state != "failed":
                self._note(one, "failed", place)
        self._note(target, "deployed", place)
        return {"revision": target.revision, "release": target.release, "engine": target.engine}

    def wait(
        self, namespace: str, name: str, release: str | None = None, stale: str | None = None
    ) -> Standing:
        """Until a Deployment's new pods are available; events are told as they come. `release` is
        whose Deployment it must still be, `stale` what `timed_out` said before the change.

        Raises DeployFailed with what keeps its pods, when its deadline has passed since the last
        progress: the controller counts like that, and may itself be gone. An API server that does
        not answer for a while is waited for as long.
        """
        started = progressed = self.clock()
        told = ""
        deadline = 600.0
        deployment: Object | None = None
        sets: list[Object] = []
        events: list[Object] = []
        while True:
            try:
                deployment = self.cluster.get("apps/v1", "Deployment", namespace, name)
                sets = self.cluster.list("apps/v1", "ReplicaSet", namespace)
                standing = self._judge(deployment, sets, name, release, stale)
                events = self._tell_events(namespace, name)
            except ApiError as error:
                if error.status in (401, 403):
                    raise
                standing = Standing(state="waiting", text=error.message)
            if standing.text != told:
                told, progressed = standing.text, self.clock()
                self.told(f"{self.clock() - started:4.0f} s  {told}")
            if standing.state == "arrived":
                return standing
            if deployment is not None:
                deadline = deployment["spec"].get("progressDeadlineSeconds", 600)
            late = self.clock() - progressed > deadline + DEADLINE_MARGIN_S
            if standing.state == "failed" or late:
                why = f"not there in {deadline:g} s: {told}" if late else told
                raise self._explained(why, namespace, deployment, sets, events)
            self.sleep(self.poll_s)

    def _judge(
        self,
        deployment: Object | None,
        sets: Sequence[Object],
        name: str,
        release: str | None,
        stale: str | None,
    ) -> Standing:
        if deployment is None:
            raise DeployFailed(f"Deployment {name} is gone", "somebody deleted it meanwhile")
        found = (deployment["metadata"].get("annotations") or {}).get(RELEASE)
        if release is not None and found != release:
            raise Overtaken(
                f"Deployment {name} is of release {found} now, not of {release}",
                "somebody else deployed meanwhile; see `control deploy status`",
            )
        return judge(deployment, sets, stale=stale)

    def delete(self, place: Place, *, dry_run: bool = False) -> list[str]:
        """Remove everything of a bundle and track but claims and the namespace; returns what."""
        removed: list[str] = []
        owned = self.owned(place)
        try:
            for given in owned:
                self.cluster.delete(given, dry_run=dry_run)
                removed.append(f"{given['kind']} {given['metadata']['name']}")
        except (ControlError, KeyboardInterrupt) as error:
            if not removed or dry_run:
                raise
            told = error.message if isinstance(error, ControlError) else "interrupted"
            raise DeployFailed(
                f"{told}; deleted so far: {', '.join(removed)}", "repeat the command"
            ) from error
        return removed

    def owned(self, place: Place) -> list[Object]:
        """Objects of a bundle and track, the autoscaler first: it would start pods again."""
        labels = {MANAGED_BY: MANAGER, INSTANCE: place.bundle}
        return [
            one
            for api_version, kind in OWN_KINDS
            for one in self.cluster.list(api_version, kind, place.namespace, labels)
            if (one["metadata"].get("labels") or {}).get(TRACK, "stable") == place.track
        ]

    def _note(self, record: Record, state: State, place: Place) -> None:
        """Change the state of a record; what happened does not depend on it."""
        try:
            set_state(self.cluster, record, state, place)
        except ControlError as error:
            self.told(f"the record of revision {record.revision} stays as it is: {error.message}")

    def _require_free(self, records: Sequence[Record], place: Place) -> None:
        """Two deployments at once would wait for each other's pods."""
        if not records or records[0].state != "applying" or self.take_over:
            return
        age = datetime.datetime.now(datetime.UTC) - records[0].when
        raise Refused(
            f"revision {records[0].revision} of {place.object_name} is being applied since "
            f"{age.total_seconds():.0f} s",
            "wait for it; if whoever applied it is gone, use --take-over",
        )

    def _namespace_is_missing(self, release: Release) -> bool:
        try:
            return self.cluster.get(*NAMESPACE, "", release.deploy.namespace) is None
        except ApiError as error:
            if error.status == 403:
                return False
            raise

    def _make_namespace(self, release: Release) -> Object | None:
        """Nothing can be dry-run in a namespace that is not there."""
        if not self._namespace_is_missing(release):
            return None
        given = next(one for one in render(release) if one["kind"] == "Namespace")
        try:
            self.cluster.apply(given)
        except ApiError as error:
            raise Refused(
                f"namespace {release.deploy.namespace} does not exist: {error.message}", error.hint
            ) from error
        self.told(f"create  Namespace {release.deploy.namespace}")
        return given

    def _bring(self, release: Release, objects: Sequence[Object]) -> None:
        """Apply in order; the Job that builds the engine ends before the Deployment changes."""
        namespace, name = release.deploy.namespace, release.object_name
        self._tell_events(namespace, name)
        live = self.cluster.get("apps/v1", "Deployment", namespace, name)
        stale = timed_out(live) if live is not None else None
        for given in objects:
            if given["kind"] == "Job":
                self._run_job(given, given["spec"]["activeDeadlineSeconds"])
            else:
                self.cluster.apply(given, force=self.force_conflicts)
        self.wait(namespace, name, release.hash, stale)

    def _smoke(self, release: Release, revision: int) -> None:
        if self.skip_smoke:
            return
        if self.smoke is not None:
            self.smoke()
        else:
            self._run_job(smoke_job(release, f"{release.object_name}-smoke-{revision}"), DEADLINE_S)
        self.told(f"known answers hold: {len(release.known_answers)} scores over gRPC")

    def _run_job(self, job: Object, limit_s: float) -> None:
        """Start a Job and wait for its end; one that runs or is done is taken as it is, because a
        Job cannot be changed, and one that failed is started again."""
        place = job["metadata"]["namespace"], job["metadata"]["name"]
        live = self.cluster.get("batch/v1", "Job", *place)
        if live is not None and "Failed" in job_states(live):
            self.cluster.delete(job)
            started = self.clock()
            while self.cluster.get("batch/v1", "Job", *place) is not None:
                if self.clock() - started > REMOVAL_S:
                    raise DeployFailed(f"Job {place[1]} does not go away", "delete it by hand")
                self.sleep(self.poll_s)
            live = None
        if live is None:
            self.cluster.apply(job)
        self._wait_job(job, limit_s)

    def _wait_job(self, job: Object, limit_s: float) -> None:
        """Until a Job is complete; what keeps its pod is told. Raises DeployFailed with what its
        pods said, also when none finds a place for UNSCHEDULABLE_S: building an engine needs a GPU
        beside those that serve."""
        namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
        started = placed = self.clock()
        told = ""
        self.told(f"waiting for Job {name}, at most {limit_s:g} s")
        while True:
            try:
                found = self.cluster.get("batch/v1", "Job", namespace, name)
                pods = self.cluster.list("v1", "Pod", namespace, {"job-name": name})
            except ApiError as error:
                if error.status in (401, 403) or self.clock() - started > limit_s:
                    raise
                self.sleep(self.poll_s)
                continue
            if found is None:
                raise DeployFailed(f"Job {name} is gone", "somebody deleted it meanwhile")
            states = job_states(found)
            if "Complete" in states:
                return
            troubles = explain_pods(pods)
            why = troubles[-1].line() if troubles else "see kubectl logs"
            if troubles and why != told:
                told = why
                self.told(f"{self.clock() - started:4.0f} s  {why}")
            if not any(one.state == UNSCHEDULABLE for one in troubles):
                placed = self.clock()
            late = self.clock() - started > limit_s + DEADLINE_MARGIN_S
            stuck = self.clock() - placed > UNSCHEDULABLE_S
            if "Failed" in states or late or stuck:
                if "Failed" not in states:
                    self.cluster.delete(job)
                raise DeployFailed(f"Job {name} failed: {why}", _first_fix(troubles))
            self.sleep(self.poll_s)

    def _put_back(self, release: Release, records: Sequence[Record], error: ControlError) -> None:
        """Put the last good release back and raise what tells of it."""
        self.told(f"failed: {error.message}")
        if isinstance(error, Overtaken):
            raise error
        # The very release that just failed is no way back.
        others = [one for one in records if one.release != release.hash]
        try:
            target = find_record(others, None)
        except DeployError:
            raise DeployFailed(
                f"{error.message}\nThere is no earlier release to go back to; its objects stay for "
                "a look at them",
                error.hint or "`control deploy status`, then `control deploy delete`",
            ) from error
        self.told(f"back to revision {target.revision}: engine {target.engine}")
        try:
            self._restore(release.place, target)
        except ControlError as second:
            raise DeployFailed(
                f"{error.message}\nand revision {target.revision} could not be put back: "
                f"{second.message}",
                second.hint,
            ) from second
        except BaseException as second:
            raise _interrupted(second) from second
        raise RolledBack(
            f"{error.message}\nRevision {target.revision} (engine {target.engine}) serves again",
            error.hint,
        ) from error

    def _restore(self, place: Place, target: Record) -> None:
        live = self.cluster.get("apps/v1", "Deployment", place.namespace, place.object_name)
        stale = timed_out(live) if live is not None else None
        for given in target.objects:
            if given["kind"] in ("Namespace", "PersistentVolumeClaim", "Job"):
                continue
            # Taken back by force: the manager that is in the way is ours, of a moment ago.
            self.cluster.apply(given, force=True)
        self.wait(place.namespace, place.object_name, target.release, stale)

    def _conclude(
        self,
        release: Release,
        contents: Sequence[Object],
        record: Record,
        records: Sequence[Record],
    ) -> list[str]:
        """Book-keeping after a release serves: it must not make a failure of a success."""
        try:
            set_state(self.cluster, record, "deployed", release.place)
            return self._prune(release, contents, [record, *records])
        except ApiError as error:
            self.told(f"the release serves, but its records were not tidied: {error.message}")
            return []

    def _prune(
        self, release: Release, contents: Sequence[Object], records: Sequence[Record]
    ) -> list[str]:
        """Remove objects of earlier releases that neither this one nor a kept record needs."""
        kept = {identity(one)[1:] for one in contents}
        named = set()
        for record in [one for one in records if one.state != "failed"][:KEPT]:
            named.add(record.name)
            kept |= {identity(one)[1:] for one in record.objects if one["kind"] == "ConfigMap"}
        removed = []
        for given in self.owned(release.place):
            component = given["metadata"]["labels"].get(COMPONENT)
            name = given["metadata"]["name"]
            if component in ("smoke", "engine-build") or identity(given)[1:] in kept:
                continue
            if component == "release" and name in named:
                continue
            self.cluster.delete(given)
            removed.append(f"{given['kind']} {name}")
        return removed

    def _tell_events(self, namespace: str, name: str) -> list[Object]:
        """New events of the Deployment, its ReplicaSets and pods; returns all of them."""
        first = not self._seen_events
        found = []
        try:
            listed = self.cluster.list("v1", "Event", namespace)
        except ApiError:
            return []  # events explain; a rollout does not depend on them
        for event in listed:
            about = event.get("involvedObject") or {}
            if not _belongs(str(about.get("name", "")), name):
                continue
            found.append(event)
            key = (str(event["metadata"].get("uid")), event.get("count"))
            if key in self._seen_events:
                continue
            self._seen_events.add(key)
            if not first:
                text = " ".join(str(event.get("message", "")).split())
                self.told(f"        {about.get('kind')} {about.get('name')}: {text}")
        self._seen_events.add(("", None))
        return found

    def _explained(
        self,
        why: str,
        namespace: str,
        deployment: Object | None,
        sets: Sequence[Object],
        events: Sequence[Object],
    ) -> DeployFailed:
        new = newest_set(deployment, sets) if deployment is not None else None
        troubles: list[Trouble] = []
        if new is not None:
            with contextlib.suppress(ApiError):
                pods = pods_of(new, self.cluster.list("v1", "Pod", namespace))
                troubles = explain_pods(pods, events)
        told = "".join(f"\n  {one.name}: {one.state}: {one.message}" for one in troubles)
        return DeployFailed(f"the rollout did not arrive: {why}{told}", _first_fix(troubles))


class Overtaken(DeployFailed):
    """Somebody else changed the Deployment while it was waited for: nothing is put back over it."""


def _interrupted(error: BaseException) -> DeployFailed:
    why = (
        "interrupted"
        if isinstance(error, KeyboardInterrupt)
        else f"{type(error).__name__}: {error}"
    )
    return DeployFailed(
        f"{why}; the cluster goes on with what it was told last",
        "`control deploy status` shows it, `control deploy rollback` puts the earlier back",
    )


def _built(given: Object, records: Sequence[Record], release: Release) -> bool:
    """Whether an object is the Job of an engine that served before: it needs a GPU only to find
    that there is nothing to do."""
    served = any(one.state == "deployed" and one.engine == release.engine.tag for one in records)
    return given["kind"] == "Job" and served


def _belongs(about: str, name: str) -> bool:
    return about == name or about.startswith(f"{name}-")


def _first_fix(troubles: Sequence[Trouble]) -> str:
    return next((one.fix for one in troubles if one.fix), "see `control deploy status`")

"""Bring a release into a cluster, and back: dry run of everything, apply in order, wait for the new
pods, ask for known answers, and put the earlier release back when one of these fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from slmrank.deploy.cluster.api import ApiError, Cluster
from slmrank.deploy.cluster.history import (
    back_to,
    require_free,
    running_release,
    settled,
    way_out,
    ways_back,
)
from slmrank.deploy.cluster.ownership import delete_owned, is_empty, prune, remove_additions
from slmrank.deploy.cluster.plan import (
    Planned,
    check_release,
    keeps_serving,
    namespace_is_missing,
    plan_new,
    plan_objects,
    serves,
    without_built,
)
from slmrank.deploy.cluster.records import (
    Record,
    State,
    find_record,
    read_records,
    set_state,
    write_record,
)
from slmrank.deploy.cluster.rollout import timed_out
from slmrank.deploy.cluster.waiting import Overtaken, Report, Waiter, interrupted
from slmrank.deploy.naming import Object
from slmrank.deploy.release import Place, Release
from slmrank.deploy.render import render
from slmrank.deploy.smoke_job import DEADLINE_S, smoke_job
from slmrank.errors import ControlError, DeployFailed, Refused, RolledBack

Smoke = Callable[[Release], None]


@dataclass(kw_only=True)
class Deployer:
    """A cluster and how to talk about it. `smoke` asks for the known answers in another way than by
    a Job."""

    cluster: Cluster
    waiter: Waiter
    report: Report
    smoke: Smoke | None = None
    skip_smoke: bool = False
    force_conflicts: bool = False
    take_over: bool = False

    def plan(self, release: Release) -> list[Planned]:
        """What `apply` would change. Raises Refused."""
        objects = render(release)
        check_release(release, objects, self.cluster.version())
        if namespace_is_missing(self.cluster, release):
            # Nothing can be dry-run in a namespace that is not there.
            return [plan_new(self.cluster, given) for given in objects]
        planned = plan_objects(self.cluster, objects, force=self.force_conflicts)
        return without_built(self.cluster, planned, release)

    def apply(self, release: Release) -> dict[str, Any]:
        """Deploy a release; returns what happened.

        Raises Refused (nothing changed), RolledBack (the release before serves), DeployFailed.
        """
        self.require_askable(release)
        planned, records, newest = self._prepare(release)
        wanted = [one for one in planned if one.change != "skip"]
        contents = [one.content for one in wanted]
        for one in planned:
            self.report(f"{one.change:<7} {one.title}" + (f" ({one.note})" if one.note else ""))
        if all(one.change == "same" for one in wanted) and serves(records, release):
            # Nothing to do but to see that it serves: no record, and no Job that asks again.
            self.waiter.rollout(release.deploy.namespace, release.object_name, release.hash)
            if self.smoke is not None:
                self.ask(release, records[0].revision)
            told = "known answers hold" if self.smoke else "not asked: nothing changed"
            return _done(release, records[0].revision, planned, [], told)
        records = settled(self.cluster, records, release.place, self._note, release.hash)
        kept = keeps_serving(wanted, records, release, self.running(release.place))
        revision = 1 + newest
        record = write_record(self.cluster, release, contents, revision=revision, state="applying")
        try:
            self._bring(release, contents)
            self.ask(release, revision)
        except ControlError as error:
            self._note(record, "failed", release.place)
            if kept and not isinstance(error, Overtaken):
                raise DeployFailed(
                    f"{error.message}\nIts Deployment was not changed and goes on", error.hint
                ) from error
            self._put_back(release, records, error)
        except BaseException as error:
            self._note(record, "interrupted", release.place)
            raise interrupted(error, way_out(self.cluster, release, records, kept)) from error
        removed = self._conclude(release, contents, record, records)
        told = "skipped" if self.skip_smoke else "known answers hold"
        return _done(release, revision, planned, removed, told)

    def rollback(self, place: Place, revision: int | None) -> dict[str, Any]:
        """Put an earlier deployment back, the one that was good before what runs or a given
        revision, and ask it for its known answers. What is left behind is `rolled-back`, so that a
        second rollback returns to it.

        Raises Refused when there is none, DeployFailed when it does not come up or answers wrongly.
        """
        records, _ = self._free_records(place)
        records = settled(self.cluster, records, place, self._note)
        running = self.running(place)
        others = records if revision is not None else ways_back(records, running)
        target = find_record(others, revision)
        if target.release_values is not None:
            self.require_askable(target.release_values)
        self.report(f"back to revision {target.revision}: engine {target.engine}")
        # What came after it is left before anything changes: a rollback that is stopped half-way,
        # or an apply that fails after it, must not go back there.
        newer = (one for one in records if one.revision > target.revision)
        left = [one for one in newer if one.state == "deployed"]
        for one in left:
            self._note(one, "rolled-back", place)
        self._note(target, "applying", place)  # nobody else begins meanwhile
        try:
            self._restore(place, target)
            if target.release_values is None:
                self.report("this revision was recorded without its known answers: not asked")
            else:
                self.ask(target.release_values, target.revision, again=True)
            self._note(target, "deployed", place)
        except ControlError as error:
            if not isinstance(error, Overtaken):
                for one in left:  # better than this one, as it turns out
                    self._note(one, "deployed", place)
            self._note(target, target.state, place)
            if isinstance(error, DeployFailed):
                raise
            raise DeployFailed(
                f"revision {target.revision} could not be put back: {error.message}", error.hint
            ) from error
        except BaseException as error:
            self._note(target, "deployed", place)
            raise interrupted(error, back_to(target, place)) from error
        return {"revision": target.revision, "release": target.release, "engine": target.engine}

    def running(self, place: Place) -> str | None:
        """The hash of the release that a place runs, None where it runs none."""
        return running_release(self.cluster, place)

    def delete(self, place: Place, *, dry_run: bool = False) -> list[str]:
        """Remove everything of a bundle and track but claims and the namespace; returns what."""
        if not dry_run:
            self._free_records(place)
        return delete_owned(self.cluster, place, self.report, dry_run=dry_run)

    def _prepare(self, release: Release) -> tuple[list[Planned], list[Record], int]:
        """Everything that can refuse, before anything is changed; a namespace that had to be made
        for the dry run goes away again."""
        objects = render(release)
        check_release(release, objects, self.cluster.version())
        namespace = self._make_namespace(release)
        try:
            planned = plan_objects(self.cluster, objects, force=self.force_conflicts)
            # Of one look: whoever begins after it takes the same number.
            records, newest = self._free_records(release.place)
            planned = without_built(self.cluster, planned, release)
        except BaseException:
            # Others may have begun to use it meanwhile; what was wrong is told in any case.
            with contextlib.suppress(ApiError):
                if namespace is not None and is_empty(self.cluster, release.deploy.namespace):
                    self.cluster.delete(namespace)
                    self.report(f"removed the empty namespace {release.deploy.namespace} again")
            raise
        return planned, records, newest

    def _note(self, record: Record, state: State, place: Place) -> None:
        """Change the state of a record; what happened does not depend on it."""
        try:
            set_state(self.cluster, record, state, place)
        except ControlError as error:
            self.report(f"the record of revision {record.revision} stays as it is: {error.message}")

    def _free_records(self, place: Place) -> tuple[list[Record], int]:
        """See `read_records`. Raises Refused while somebody else is at work, unless taken over."""
        records, newest = read_records(self.cluster, place)
        if not self.take_over:
            require_free(records, place)
        return records, newest

    def _make_namespace(self, release: Release) -> Object | None:
        """Nothing can be dry-run in a namespace that is not there."""
        if not namespace_is_missing(self.cluster, release):
            return None
        given = next(one for one in render(release) if one["kind"] == "Namespace")
        try:
            self.cluster.apply(given)
        except ApiError as error:
            raise Refused(
                f"namespace {release.deploy.namespace} does not exist: {error.message}", error.hint
            ) from error
        self.report(f"create  Namespace {release.deploy.namespace}")
        return given

    def _bring(self, release: Release, objects: Sequence[Object]) -> None:
        """Apply in order; the Job that builds the engine ends before the Deployment changes."""
        namespace, name = release.deploy.namespace, release.object_name
        self.waiter.report_events(namespace, name)
        stale = self._timed_out(release.place)
        for given in objects:
            if given["kind"] == "Job":
                self.waiter.run_job(given, given["spec"]["activeDeadlineSeconds"])
            else:
                self.cluster.apply(given, force=self.force_conflicts)
        self.waiter.rollout(namespace, name, release.hash, stale)

    def require_askable(self, release: Release) -> None:
        """Raises Refused where `smoke` could not ask the release, before anything is changed."""
        if self.smoke is not None and not self.skip_smoke and release.deploy.tls is not None:
            raise Refused(
                "--smoke-url asks without TLS, and the pods speak it",
                "leave it out: the Job inside asks over TLS",
            )

    def ask(self, release: Release, revision: int, *, again: bool = False) -> None:
        """Ask for the known answers; `again`: although a Job has asked this revision before.

        Raises WrongAnswer or DeployFailed.
        """
        if self.skip_smoke:
            return
        if self.smoke is not None:
            self.smoke(release)
        else:
            name = f"{release.object_name}-smoke-{revision}"
            self.waiter.run_job(smoke_job(release, name), DEADLINE_S, again=again)
        self.report(f"known answers hold: {len(release.known_answers)} scores over gRPC")

    def _put_back(self, release: Release, records: Sequence[Record], error: ControlError) -> None:
        """Put the last good release back and raise what tells of it."""
        self.report(f"failed: {error.message}")
        if isinstance(error, Overtaken):
            raise error
        # The very release that just failed is no way back.
        others = (one for one in records if one.release != release.hash)
        target = next((one for one in others if one.state == "deployed"), None)
        if target is None:
            raise DeployFailed(
                f"{error.message}\nThere is no earlier release to go back to; its objects stay for "
                "a look at them",
                error.hint or "`control deploy status`, then `control deploy delete`",
            ) from error
        self.report(f"back to revision {target.revision}: engine {target.engine}")
        try:
            self._restore(release.place, target)
        except ControlError as second:
            raise DeployFailed(
                f"{error.message}\nand revision {target.revision} could not be put back: "
                f"{second.message}",
                second.hint,
            ) from second
        except BaseException as second:
            raise interrupted(second, back_to(target, release.place)) from second
        raise RolledBack(
            f"{error.message}\nRevision {target.revision} (engine {target.engine}) serves again",
            error.hint,
        ) from error

    def _restore(self, place: Place, target: Record) -> None:
        stale = self._timed_out(place)
        for given in target.objects:
            if given["kind"] in ("Namespace", "PersistentVolumeClaim", "Job"):
                continue
            # Taken back by force: the manager that is in the way is ours, of a moment ago.
            self.cluster.apply(given, force=True)
        self.waiter.rollout(place.namespace, place.object_name, target.release, stale)
        try:
            removed = remove_additions(self.cluster, place, target.objects)
        except ApiError as error:
            self.report(
                f"not all that the other release added was removed: {error.message}. Fix: see "
                "`control deploy status`, and repeat `control deploy rollback`"
            )
            return
        if removed:
            self.report(f"removed, as revision {target.revision} has none: {', '.join(removed)}")

    def _timed_out(self, place: Place) -> str | None:
        live = self.cluster.get("apps/v1", "Deployment", place.namespace, place.object_name)
        return timed_out(live) if live is not None else None

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
            return prune(self.cluster, release.place, contents, [record, *records])
        except KeyboardInterrupt as error:
            remedy = (
                "the release serves; where its record says applying, the next needs --take-over"
            )
            raise interrupted(error, remedy) from error
        except ApiError as error:
            self.report(f"the release serves, but its records were not tidied: {error.message}")
            return []


def _done(
    release: Release, revision: int, planned: Sequence[Planned], pruned: list[str], smoke: str
) -> dict[str, Any]:
    return {
        "release": release.hash,
        "engine": release.engine.tag,
        "revision": revision,
        "changed": [one.title for one in planned if one.change in ("create", "change")],
        "skipped": [one.note for one in planned if one.note],
        "pruned": pruned,
        "smoke": smoke,
    }

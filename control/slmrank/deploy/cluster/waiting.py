"""Wait for what a cluster does: a rollout, a Job, an object that goes away. What happens meanwhile
is reported as it comes, and what keeps it is explained."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from slmrank.deploy.cluster.api import ApiError, Cluster
from slmrank.deploy.cluster.explain import (
    UNCREATED,
    UNSCHEDULABLE,
    Trouble,
    explain_deployment,
    explain_job,
    explain_pods,
)
from slmrank.deploy.cluster.rollout import Standing, holding, judge, newest_set, pods_of
from slmrank.deploy.naming import RELEASE, Object
from slmrank.errors import DeployFailed

REMOVAL_S = 60.0
UNSCHEDULABLE_S = 600.0
# After the cluster's own deadline: it tells of it within seconds.
DEADLINE_MARGIN_S = 5.0
ROLLOUT_DEADLINE_S = 600.0
Report = Callable[[str], None]


class Overtaken(DeployFailed):
    """Somebody else changed the Deployment while it was waited for: nothing is put back over it."""


@dataclass(kw_only=True)
class Waiter:
    """A cluster and whom to report to; `clock` and `sleep` are for tests."""

    cluster: Cluster
    report: Report
    poll_s: float = 1.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _seen_events: set[tuple[str, Any]] = field(default_factory=set)
    _said: str = ""

    def _ticks(self) -> Iterator[float]:
        """The seconds so far, once in a while and without an end."""
        started, self._said = self.clock(), ""
        while True:
            yield self.clock() - started
            self.sleep(self.poll_s)

    def _say(self, passed: float, line: str) -> None:
        """Report a line that is another than the last."""
        if line and line != self._said:
            self._said = line
            self.report(f"{passed:4.0f} s  {line}")

    def _events(self, namespace: str) -> list[Object] | None:
        """They explain, and nothing depends on them; None where they are not told."""
        with contextlib.suppress(ApiError):
            return self.cluster.list("v1", "Event", namespace)
        return None

    def rollout(
        self, namespace: str, name: str, release: str | None = None, stale: str | None = None
    ) -> None:
        """Until a Deployment's new pods are available. `release` is whose Deployment it must still
        be, `stale` what `timed_out` said before the change.

        Raises DeployFailed with what keeps its pods, when its deadline has passed since the last
        progress: the controller counts like that, and may itself be gone. An API server that does
        not answer for a while is waited for as long.
        """
        standing = Standing(state="waiting", text="")
        progressed, deadline = 0.0, ROLLOUT_DEADLINE_S
        deployment: Object | None = None
        sets: list[Object] = []
        events: list[Object] = []
        shown: list[str] = []
        for passed in self._ticks():
            before = standing.text
            try:
                deployment = self.cluster.get("apps/v1", "Deployment", namespace, name)
                sets = self.cluster.list("apps/v1", "ReplicaSet", namespace)
                standing = _judged(deployment, sets, name, release, stale)
                events = self.report_events(namespace, name)
            except ApiError as error:
                if error.status in (401, 403):
                    raise
                standing = Standing(state="waiting", text=error.message)
            if standing.text != before:
                progressed = passed
                self.report(f"{passed:4.0f} s  {standing.text}")
            if standing.state == "arrived":
                return
            if deployment is not None:
                kept = [one.line() for one in explain_deployment(deployment)]
                for line in kept if kept != shown else ():
                    self.report(f"{passed:4.0f} s  {line}")
                shown = kept
                spec = deployment["spec"]
                deadline = spec.get("progressDeadlineSeconds", ROLLOUT_DEADLINE_S)
            late = passed - progressed > deadline + DEADLINE_MARGIN_S
            if standing.state == "failed" or late:
                why = f"not there in {deadline:g} s: {standing.text}" if late else standing.text
                raise self._explained(why, namespace, deployment, sets, events)

    def job(self, job: Object, limit_s: float) -> None:
        """Until a Job is complete. Raises DeployFailed with what its pods said, also when none can
        be created or finds a place for UNSCHEDULABLE_S: building an engine needs a GPU beside those
        that serve.
        """
        namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
        placed = 0.0
        self.report(f"waiting for Job {name}, at most {limit_s:g} s")
        for passed in self._ticks():
            try:
                found = self.cluster.get("batch/v1", "Job", namespace, name)
                pods = self.cluster.list("v1", "Pod", namespace, {"job-name": name})
            except ApiError as error:
                if error.status in (401, 403) or passed > limit_s:
                    raise
                continue
            if found is None:
                raise DeployFailed(f"Job {name} is gone", "somebody deleted it meanwhile")
            states = holding(found)
            if "Complete" in states:
                return
            troubles = explain_job(name, pods, self._events(namespace) or [])
            self._say(passed, troubles[-1].line() if troubles else "")
            why = troubles[-1].line() if troubles else "see kubectl logs"
            if not any(trouble.state in (UNSCHEDULABLE, UNCREATED) for trouble in troubles):
                placed = passed
            late = passed > limit_s + DEADLINE_MARGIN_S
            if "Failed" in states or late or passed - placed > UNSCHEDULABLE_S:
                if "Failed" not in states:
                    self.cluster.delete(job)
                raise DeployFailed(f"Job {name} failed: {why}", first_fix(troubles))

    def pod(self, namespace: str, name: str, limit_s: float) -> None:
        """Until a pod is ready. Raises DeployFailed with what keeps it."""
        self.report(f"waiting for Pod {name}, at most {limit_s:g} s")
        for passed in self._ticks():
            found = self.cluster.get("v1", "Pod", namespace, name)
            if found is not None and "Ready" in holding(found):
                return
            troubles = explain_pods([found], self._events(namespace) or []) if found else []
            why = troubles[-1].line() if troubles else "it is gone" if found is None else ""
            self._say(passed, why)
            if passed > limit_s or found is None:
                raise DeployFailed(f"Pod {name} does not start: {why}", first_fix(troubles))

    def gone(self, api_version: str, kind: str, namespace: str, name: str) -> None:
        """Until an object that was deleted is away."""
        for passed in self._ticks():
            if passed > REMOVAL_S:
                raise DeployFailed(f"{kind} {name} does not go away", "delete it by hand")
            if self.cluster.get(api_version, kind, namespace, name) is None:
                return

    def run_job(self, job: Object, limit_s: float, *, again: bool = False) -> None:
        """Start a Job and wait for its end; one that runs or is done is taken as it is, because a
        Job cannot be changed, and one that failed, or with `again` ended, is started again."""
        place = job["metadata"]["namespace"], job["metadata"]["name"]
        live = self.cluster.get("batch/v1", "Job", *place)
        ended = {"Failed", "Complete"} if again else {"Failed"}
        if live is not None and ended & holding(live):
            self.cluster.delete(job)
            self.gone("batch/v1", "Job", *place)
            live = None
        if live is None:
            self.cluster.apply(job)
        self.job(job, limit_s)

    def report_events(self, namespace: str, name: str) -> list[Object]:
        """New events of the Deployment, its ReplicaSets and pods; returns all of them."""
        first, listed = not self._seen_events, self._events(namespace)
        if listed is None:  # the first that are listed are old ones
            return []
        found = []
        for event in listed:
            about = event.get("involvedObject") or {}
            who = str(about.get("name", ""))
            if who != name and not who.startswith(f"{name}-"):
                continue
            found.append(event)
            key = (str(event["metadata"].get("uid")), event.get("count"))
            if key not in self._seen_events and not first:
                text = " ".join(str(event.get("message", "")).split())
                self.report(f"        {about.get('kind')} {who}: {text}")
            self._seen_events.add(key)
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
        troubles: list[Trouble] = explain_deployment(deployment) if deployment is not None else []
        if new is not None:
            with contextlib.suppress(ApiError):
                pods = pods_of(new, self.cluster.list("v1", "Pod", namespace))
                troubles += explain_pods(pods, events)
        lines = "".join(f"\n  {one.name}: {one.state}: {one.message}" for one in troubles)
        return DeployFailed(f"the rollout did not arrive: {why}{lines}", first_fix(troubles))


def first_fix(troubles: Sequence[Trouble]) -> str:
    return next((one.fix for one in troubles if one.fix), "see `control deploy status`")


def _judged(
    deployment: Object | None,
    sets: Sequence[Object],
    name: str,
    release: str | None,
    stale: str | None,
) -> Standing:
    if deployment is None:
        raise Overtaken(f"Deployment {name} is gone", "somebody deleted it meanwhile")
    found = (deployment["metadata"].get("annotations") or {}).get(RELEASE)
    if release is not None and found != release:
        raise Overtaken(
            f"Deployment {name} is of release {found} now, not of {release}",
            "somebody else deployed meanwhile; see `control deploy status`",
        )
    return judge(deployment, sets, stale=stale)


def interrupted(error: BaseException, remedy: str) -> DeployFailed:
    why = (
        "interrupted"
        if isinstance(error, KeyboardInterrupt)
        else f"{type(error).__name__}: {error}"
    )
    return DeployFailed(
        f"{why}; the cluster goes on with what it was told last",
        f"`control deploy status` shows it, {remedy}",
    )

"""What the records of a place say: who is at work, what came to its end after whoever began it was
gone, and what may be gone back to."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Sequence
from dataclasses import replace

from slmrank.deploy.cluster.api import Cluster
from slmrank.deploy.cluster.records import GOOD, Record, State
from slmrank.deploy.cluster.rollout import judge
from slmrank.deploy.naming import RELEASE
from slmrank.deploy.release import Place, Release
from slmrank.errors import ControlError, Refused

Note = Callable[[Record, State, Place], None]


def running_release(cluster: Cluster, place: Place) -> str | None:
    """The hash of the release that a place runs, None where it runs none."""
    live = cluster.get("apps/v1", "Deployment", place.namespace, place.object_name)
    notes = ((live or {}).get("metadata") or {}).get("annotations") or {}
    return notes.get(RELEASE)


def require_free(records: Sequence[Record], place: Place) -> None:
    """Raises Refused while somebody applies: two at once would wait for each other's pods."""
    busy = next((one for one in records if one.state == "applying"), None)
    if busy is None:
        return
    age = datetime.datetime.now(datetime.UTC) - busy.when
    raise Refused(
        f"revision {busy.revision} of {place.object_name} is being applied since "
        f"{age.total_seconds():.0f} s",
        "wait for it; if whoever applied it is gone, use --take-over",
    )


def settled(
    cluster: Cluster, records: Sequence[Record], place: Place, note: Note, but: str = ""
) -> list[Record]:
    """The records with those ended that nobody ends any more: an apply that was killed is
    interrupted, and what was interrupted is deployed once the cluster has brought it to its end;
    the target of a rollback that was killed is what it was. Not of the release `but`, which is
    being applied again."""
    found: list[Record] = []
    running = running_release(cluster, place)
    for one in records:
        state: State = (one.before or "interrupted") if one.state == "applying" else one.state
        newest = one.release == running and all(each.release != running for each in found)
        begun = one.state == "applying" or state == "interrupted"
        if begun and newest and one.release != but and _arrived(cluster, place):
            state = "deployed"
        if state != one.state:
            note(one, state, place)
        found.append(replace(one, state=state))
    return found


def ways_back(records: Sequence[Record], running: str | None) -> list[Record]:
    """What a rollback may choose from, newest first: what was good before what runs. What was
    rolled back from is good as well, and comes first where what runs is what was put back instead,
    so that a second rollback returns; but not where a better one was deployed since."""
    others = [one for one in records if one.release != running and one.state in GOOD]
    mine = (one for one in records if one.release == running and one.state == "deployed")
    now = max((one.revision for one in mine), default=0)
    return [one for one in others if one.state == "deployed" or one.revision > now] or others


def way_out(
    cluster: Cluster, release: Release, records: Sequence[Record], kept: bool = False
) -> str:
    """What to do after an interrupt of an apply: what runs decides, and whether there is a way
    back. `kept`: nothing of what runs was touched."""
    if kept:
        return "the release goes on: repeat the command"
    if release.track == "canary":
        return "`control deploy abort` takes the canary back"
    with contextlib.suppress(ControlError):
        running = running_release(cluster, release.place)
        if running != release.hash:
            before = "" if running is None else "the release before still runs: "
            return f"{before}repeat the command to go on"
    if not ways_back(records, release.hash):
        return "repeat the command to go on, or `control deploy delete`"
    return "`control deploy rollback` puts the earlier back"


def back_to(target: Record, place: Place) -> str:
    """The remedy after an interrupt on the way back to a record."""
    track = " --track canary" if place.track == "canary" else ""
    return f"`control deploy rollback SPEC --to {target.revision}{track}` goes on"


def _arrived(cluster: Cluster, place: Place) -> bool:
    live = cluster.get("apps/v1", "Deployment", place.namespace, place.object_name)
    sets = cluster.list("apps/v1", "ReplicaSet", place.namespace)
    return live is not None and judge(live, sets).state == "arrived"

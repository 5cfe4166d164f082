"""A canary: a second release beside the one that serves, with a share of the calls, until it is
promoted or given up. The share is a weight of the GRPCRoute, so it is one of the calls that come
through the Gateway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from slmrank.deploy.cluster.api import ApiError, Cluster
from slmrank.deploy.cluster.apply import Deployer
from slmrank.deploy.cluster.records import GOOD, Record, list_records
from slmrank.deploy.cluster.rollout import newest_set
from slmrank.deploy.cluster.waiting import interrupted
from slmrank.deploy.exposure import GRPC_ROUTE, grpc_route
from slmrank.deploy.release import Place, Release
from slmrank.errors import ControlError, DeployFailed, Refused

Judge = Callable[[Release, str | None], str]  # of a release and the name of its ReplicaSet


def read_share(cluster: Cluster, place: Place) -> int:
    """Percent of the calls through the Gateway that the canary of a bundle gets."""
    stable, canary = (replace(place, track=one).object_name for one in ("stable", "canary"))
    route = cluster.get(*GRPC_ROUTE, place.namespace, stable) or {}
    weights = {
        backend["name"]: backend.get("weight", 1)
        for rule in (route.get("spec") or {}).get("rules") or []
        for backend in rule.get("backendRefs") or []
    }
    total = sum(weights.values())
    return round(100 * weights.get(canary, 0) / total) if total else 0


@dataclass(kw_only=True)
class Canary:
    """What starts, promotes and ends a canary, with the deployer of its cluster."""

    deployer: Deployer

    def start(self, release: Release, percent: int) -> dict[str, Any]:
        """Deploy `release` as canary and then send it `percent` of the calls; returns what
        `Deployer.apply` does. One that runs already is replaced, or gets another share.

        Raises Refused where nothing stable runs or the cluster has no GRPCRoute, what
        `Deployer.apply` raises while no call has reached the canary yet, and DeployFailed when it
        serves but the route could not be changed.
        """
        canary = release.on_track("canary")
        cluster = self.deployer.cluster
        if self.deployer.running(replace(canary.place, track="stable")) is None:
            raise Refused(
                f"nothing of {canary.name} serves in namespace {canary.deploy.namespace}, so there "
                "is nothing to compare a canary with",
                "`control deploy apply SPEC` first",
            )
        if cluster.find_kind(*GRPC_ROUTE) is None:
            raise Refused(
                f"{cluster.where} has no kind GRPCRoute, whose weights share the calls",
                "install the Gateway API, or deploy beside with `--track canary` and share the "
                "calls yourself",
            )
        done = self.deployer.apply(canary)
        try:
            self._send(canary, percent)
        except KeyboardInterrupt as error:
            remedy = "repeat the command to set its share, or `control deploy abort`"
            raise interrupted(error, remedy) from error
        return {**done, "canary_percent": percent}

    def promote(self, place: Place, judge: Judge | None) -> dict[str, Any]:
        """Make the canary's release the stable one, send all calls there, remove the canary.

        First its known answers are asked again and `judge` says what its calls were like, or raises
        Refused: then nothing has changed. A promotion that was interrupted goes on where it was.
        Raises what `Deployer.apply` raises; the canary then keeps its share.
        """
        stable, canary = (replace(place, track=one) for one in ("stable", "canary"))
        record, release = self._recorded(canary)
        promoted = release.on_track("stable")
        verdict = "judged before"
        if self.deployer.running(stable) != promoted.hash:
            try:
                self.deployer.ask(release, record.revision, again=True)
            except ControlError as error:
                raise Refused(f"the canary answers wrongly: {error.message}", error.hint) from error
            verdict = judge(release, self._newest(canary)) if judge is not None else "not looked at"
            self.deployer.report(f"the canary's calls: {verdict}")
        done = self.deployer.apply(promoted)
        removed = self._end(release, canary, f"revision {done['revision']} is promoted")
        return {**done, "verdict": verdict, "removed": removed}

    def abort(self, place: Place) -> list[str]:
        """Send all calls to the stable release and remove the canary; returns what was removed.

        Raises Refused when there is none.
        """
        canary = replace(place, track="canary")
        _, release = self._recorded(canary, good_only=False)
        return self._end(release, canary, None)

    def _end(self, release: Release, canary: Place, done: str | None) -> list[str]:
        """Raises DeployFailed where it ends half-way: what is `done` before, or the route."""
        try:
            if self._send(release, 0) and done is None:
                done = "the stable release gets all calls"
            # Its pods go on for their preStop time: until then clients have heard of it.
            return self.deployer.delete(canary)
        except DeployFailed:
            raise
        except (ControlError, KeyboardInterrupt) as error:
            if done is None:
                raise
            why = error.message if isinstance(error, ControlError) else "interrupted"
            raise DeployFailed(
                f"{done}, but the canary is not removed: {why}",
                "repeat the command, or `control deploy abort`",
            ) from error

    def _send(self, release: Release, percent: int) -> bool:
        """Set the share; returns whether it was another."""
        cluster = self.deployer.cluster
        if percent == 0 and read_share(cluster, release.place) == 0:
            return False
        route = grpc_route(release, percent)
        try:
            cluster.apply(route, force=self.deployer.force_conflicts)
        except ApiError as error:
            raise DeployFailed(
                f"the route {route['metadata']['name']} could not be changed to {percent} % for "
                f"the canary: {error.message}",
                error.hint,
            ) from error
        self.deployer.report(f"the canary gets {percent} % of the calls through the Gateway")
        return True

    def _newest(self, place: Place) -> str | None:
        """The name of the ReplicaSet that runs a place's release."""
        cluster = self.deployer.cluster
        live = cluster.get("apps/v1", "Deployment", place.namespace, place.object_name)
        sets = cluster.list("apps/v1", "ReplicaSet", place.namespace)
        newest = newest_set(live, sets) if live is not None else None
        return newest["metadata"]["name"] if newest is not None else None

    def _recorded(self, canary: Place, *, good_only: bool = True) -> tuple[Record, Release]:
        """The newest record of a canary and its release."""
        found = list_records(self.deployer.cluster, canary)
        if good_only:
            running = self.deployer.running(canary)
            found = [one for one in found if one.release == running and one.state in GOOD][:1]
        for record in found:
            if record.release_values is not None:
                return record, record.release_values
        if found:
            raise Refused(
                f"revision {found[0].revision} of the canary was recorded by another slmrank, "
                "which this one cannot read",
                "use that version",
            )
        raise Refused(
            f"no canary of {canary.bundle} serves in namespace {canary.namespace}",
            "start one with `control deploy apply SPEC --canary PERCENT`",
        )

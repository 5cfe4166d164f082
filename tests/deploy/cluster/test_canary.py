"""Canaries against the API server of api_server.py: their share, what decides on them, how they end."""

from __future__ import annotations

import copy
import json
import threading
from pathlib import Path

import pytest
from slmrank.deploy.cluster.api import ApiError
from slmrank.deploy.cluster.canary import Canary, read_share
from slmrank.deploy.cluster.records import list_records
from slmrank.deploy.cluster.status import read_status
from slmrank.deploy.release import Release
from slmrank.errors import DeployError, DeployFailed, Refused, RolledBack

from tests.conftest import Control
from tests.deploy import releases
from tests.deploy.cluster.api_server import ApiServer
from tests.deploy.cluster.test_apply import NEVER, Bench, bad, cpu, mutations, second

pytestmark = pytest.mark.slow


@pytest.fixture
def canary(bench: Bench) -> Canary:
    return Canary(deployer=bench.deployer)


def content(_release: Release, _replica_set: str | None) -> str:
    return "all is well"


def never_asked(_release: Release, _replica_set: str | None) -> str:
    raise AssertionError("it was decided before")


def too_slow(_release: Release, _replica_set: str | None) -> str:
    raise Refused("the canary is too slow", "abort it")


def weights(server: ApiServer) -> dict[str, int]:
    route = server.get("GRPCRoute", "slmrank-demo")
    assert route is not None
    (rule,) = route["spec"]["rules"]
    return {one["name"]: one["weight"] for one in rule["backendRefs"]}


def objects_of(server: ApiServer, track: str) -> set[str]:
    return {
        key[1]
        for key, one in server.objects.items()
        if one["metadata"].get("labels", {}).get("slmrank.io/track") == track and key[1] != "Job"
    }


def test_a_canary_gets_its_share_once_it_serves(
    bench: Bench, server: ApiServer, canary: Canary
) -> None:
    bench.apply(cpu())
    done = canary.start(second(), 10)
    assert done["canary_percent"] == 10
    assert bench.serving() == {"0123456789ab", "222222222222"}
    assert weights(server) == {"slmrank-demo": 90, "slmrank-demo-canary": 10}
    asked = [path for method, path in mutations(server) if method == "PATCH"]
    assert "grpcroutes" in asked[-1]
    assert "jobs/slmrank-demo-canary-smoke-1" in asked[-3]
    status = read_status(bench.deployer.cluster, cpu().place)
    assert status.canary_percent == 10
    # The same again with another percentage changes the share and nothing else.
    before = len(mutations(server))
    canary.start(second(), 50)
    assert [path.split("/")[-2] for _, path in mutations(server)[before:]] == ["grpcroutes"]
    assert read_share(bench.deployer.cluster, cpu().place) == 50


def test_a_release_that_goes_out_meanwhile_leaves_the_share(
    bench: Bench, server: ApiServer, canary: Canary
) -> None:
    bench.apply(cpu())
    canary.start(second(), 20)
    bench.apply(cpu(latency_ms=400.0))
    assert weights(server) == {"slmrank-demo": 80, "slmrank-demo-canary": 20}


def test_nothing_to_compare_with_and_no_route_are_refused(
    bench: Bench, server: ApiServer, canary: Canary, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match="nothing of demo serves"):
        canary.start(second(), 10)
    assert mutations(server) == []
    with ApiServer(gateway=False) as old:
        other = Bench(old, tmp_path)
        other.apply(cpu())
        before = len(mutations(old))
        with pytest.raises(Refused, match="no kind GRPCRoute"):
            Canary(deployer=other.deployer).start(second(), 10)
        assert len(mutations(old)) == before
        assert read_status(other.deployer.cluster, cpu().place).canary_percent == 0


def test_a_canary_that_never_serves_gets_no_call(
    bench: Bench, server: ApiServer, canary: Canary
) -> None:
    bench.apply(cpu())
    bad(server, NEVER, "222222222222")
    with pytest.raises(DeployFailed):
        canary.start(second(), 10)
    assert server.get("GRPCRoute", "slmrank-demo") is None
    with pytest.raises(Refused, match="no canary of demo serves"):
        canary.promote(cpu().place, content)
    assert "Deployment slmrank-demo-canary" in canary.abort(cpu().place)
    assert objects_of(server, "canary") == set()
    assert bench.serving() == {"0123456789ab"}


def test_promotion_makes_it_stable_and_removes_it(
    bench: Bench, server: ApiServer, canary: Canary
) -> None:
    bench.apply(cpu())
    canary.start(second(), 10)
    done = canary.promote(cpu().place, content)
    server.advance(1)
    assert done["verdict"] == "all is well"
    assert done["revision"] == 2
    assert bench.serving() == {"222222222222"}
    assert weights(server) == {"slmrank-demo": 100}
    assert objects_of(server, "canary") == set()
    assert server.get("PersistentVolumeClaim", "bundles") is not None
    newest = list_records(bench.deployer.cluster, cpu().place)[0]
    assert (newest.state, newest.engine) == ("deployed", "222222222222")
    # It can be gone back from, as from any release.
    bench.deployer.rollback(cpu().place, None)
    server.advance(1)
    assert bench.serving() == {"0123456789ab"}


def test_the_judge_hears_of_the_newest_canary_alone(
    bench: Bench, server: ApiServer, canary: Canary
) -> None:
    """The pods of a canary before it answered calls too."""
    third = cpu(
        engine={**releases.values()["engine"], "tag": "333333333333"},
        repository=cpu().repository.settings() | {"digest": "3333333333333333"},
    )
    bench.apply(cpu())
    canary.start(second(), 10)
    canary.start(third, 10)
    sets = {
        one["spec"]["template"]["metadata"]["labels"]["slmrank.io/engine"]: one["metadata"]["name"]
        for one in server.all("ReplicaSet")
        if "canary" in one["metadata"]["name"]
    }
    assert set(sets) == {"222222222222", "333333333333"}
    heard: list[tuple[str, str | None]] = []

    def judge(release: Release, replica_set: str | None) -> str:
        heard.append((release.engine.tag, replica_set))
        return "heard"

    assert canary.promote(cpu().place, judge)["verdict"] == "heard"
    assert heard == [("333333333333", sets["333333333333"])]


@pytest.mark.parametrize("why", ["objective", "answers"])
def test_a_canary_that_is_found_wrong_changes_nothing(
    bench: Bench, server: ApiServer, canary: Canary, why: str
) -> None:
    bench.apply(cpu())
    canary.start(second(), 10)
    stable = server.get("Deployment", "slmrank-demo")
    if why == "answers":
        # Its Job asked once when it came, and is asked again.
        server.run_job = lambda job: ("canary" not in job["metadata"]["name"], "answers are off")
        with pytest.raises(Refused, match="answers wrongly.*answers are off"):
            canary.promote(cpu().place, content)
    else:
        with pytest.raises(Refused, match="too slow"):
            canary.promote(cpu().place, too_slow)
    assert server.get("Deployment", "slmrank-demo") == stable
    assert weights(server)["slmrank-demo-canary"] == 10


def test_a_promotion_that_does_not_come_up_is_taken_back_and_the_canary_stays(
    bench: Bench, server: ApiServer, canary: Canary
) -> None:
    bench.apply(cpu())
    canary.start(second(), 10)
    good = server.fate
    server.fate = lambda pod: NEVER if "canary" not in pod["metadata"]["name"] else good(pod)
    server.fate = lambda pod: (
        NEVER
        if pod["metadata"]["labels"]["slmrank.io/track"] == "stable"
        and pod["metadata"]["labels"]["slmrank.io/engine"] == "222222222222"
        else good(pod)
    )
    with pytest.raises(RolledBack):
        canary.promote(cpu().place, content)
    assert weights(server)["slmrank-demo-canary"] == 10
    assert bench.serving() == {"0123456789ab", "222222222222"}


def test_a_promotion_that_was_interrupted_goes_on_without_judging_again(
    bench: Bench, server: ApiServer, canary: Canary
) -> None:
    bench.apply(cpu())
    canary.start(second(), 10)
    server.fail("PATCH", "grpcroutes", 403, "not yours", count=1)
    with pytest.raises(DeployFailed, match="could not be changed to 0 %"):
        canary.promote(cpu().place, content)
    assert objects_of(server, "canary") != set()
    done = canary.promote(cpu().place, never_asked)
    assert done["verdict"] == "judged before"
    assert objects_of(server, "canary") == set()
    assert weights(server) == {"slmrank-demo": 100}


def test_abort_sends_the_calls_back_before_it_removes(
    bench: Bench, server: ApiServer, canary: Canary
) -> None:
    bench.apply(cpu())
    canary.start(second(), 10)
    before = len(mutations(server))
    canary.abort(cpu().place)
    server.advance(1)
    first = mutations(server)[before]
    assert "grpcroutes" in first[1]
    assert weights(server) == {"slmrank-demo": 100}
    assert bench.serving() == {"0123456789ab"}
    with pytest.raises(Refused, match="no canary of demo serves"):
        canary.abort(cpu().place)


@pytest.mark.slow
def test_an_end_that_stops_half_way_is_no_refusal(
    bench: Bench, server: ApiServer, canary: Canary
) -> None:
    """Exit code 1 says that nothing has changed: the route has, and so has the stable release."""
    bench.apply(cpu())
    canary.start(second(), 10)
    server.fail("DELETE", "/horizontalpodautoscalers/", 503, "away", count=99)
    with pytest.raises(DeployFailed, match=r"revision 2 is promoted, but the canary is not"):
        canary.promote(cpu().place, content)
    assert weights(server) == {"slmrank-demo": 100}
    # Nothing is left to be changed before the removal, which fails: that is a plain error.
    with pytest.raises(ApiError, match="away"):
        canary.abort(cpu().place)
    server.faults.clear()
    canary.abort(cpu().place)
    assert objects_of(server, "canary") == set()
    canary.start(cpu(), 10)
    server.fail("DELETE", "/horizontalpodautoscalers/", 503, "away", count=99)
    with pytest.raises(DeployFailed, match=r"the stable release gets all calls, but the canary"):
        canary.abort(cpu().place)


def test_a_name_that_fits_one_track_only_is_refused() -> None:
    name = "a" * 36
    release = cpu(name=name)
    with pytest.raises(DeployError, match="too long"):
        release.on_track("canary")


@pytest.mark.long
def test_the_command_line_starts_promotes_and_aborts(
    server: ApiServer, tmp_path: Path, control: Control
) -> None:
    config = server.kubeconfig(tmp_path / "kubeconfig")
    first, other = tmp_path / "first.yaml", tmp_path / "other.yaml"
    first.write_text(cpu().to_yaml())
    other.write_text(second().to_yaml())
    stop = threading.Event()
    server.run_in_background(stop)
    place = ("--kubeconfig", config)
    try:
        assert control("deploy", "apply", other, "--canary", "10", *place).returncode == 1
        assert control("deploy", "apply", first, *place).returncode == 0
        done = control("deploy", "apply", other, "--canary", "10", *place)
        assert done.returncode == 0, done.stderr
        assert "canary with 10 % of the calls" in done.stdout
        assert "10 % of the calls" in control("deploy", "status", first, *place).stdout
        done = control("deploy", "delete", first, "--track", "canary", "--yes", *place)
        assert done.returncode == 1
        assert "`control deploy abort`" in done.stderr
        done = control("deploy", "promote", first, *place)
        assert done.returncode == 1
        assert "--unobserved" in done.stderr
        done = control("deploy", "promote", first, "--prometheus", "http://127.0.0.1:9", *place)
        assert done.returncode == 1
        assert "does not answer" in done.stderr
        done = control("deploy", "promote", first, "--unobserved", *place, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["engine"] == "222222222222"
        assert control("deploy", "abort", first, *place).returncode == 1
    finally:
        stop.set()


def test_a_canary_that_another_version_recorded_is_named_and_can_be_given_up(
    bench: Bench, server: ApiServer, canary: Canary
) -> None:
    bench.apply(cpu())
    canary.start(second(), 10)
    key = next(key for key in server.objects if key[3].endswith("canary-release-1"))
    newer = copy.deepcopy(server.objects[key])
    newer["data"]["release.yaml"] += "of_a_newer_version: 1\n"
    newer["metadata"]["name"] = newer["metadata"]["name"].replace("-1", "-2")
    newer["metadata"]["annotations"]["slmrank.io/revision"] = "2"
    server.objects[(*key[:3], newer["metadata"]["name"])] = newer
    with pytest.raises(Refused, match="revision 2 of the canary was recorded by another slmrank"):
        canary.promote(cpu().place, None)
    assert canary.abort(cpu().place)
    canary.start(second(), 10)
    server.objects[key]["data"]["release.yaml"] += "of_a_newer_version: 1\n"
    with pytest.raises(Refused, match="was recorded by another slmrank"):
        canary.abort(cpu().place)

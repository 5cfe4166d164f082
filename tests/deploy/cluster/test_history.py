"""What is gone back to, and what an operator who was interrupted is told and left with."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from slmrank.deploy.cluster import push
from slmrank.deploy.cluster.canary import Canary
from slmrank.deploy.cluster.history import ways_back
from slmrank.deploy.cluster.records import Record, State, write_record
from slmrank.deploy.release import Release
from slmrank.errors import DeployFailed, Refused, RolledBack

from tests.deploy import releases
from tests.deploy.cluster.api_server import ApiServer, Refusal
from tests.deploy.cluster.test_apply import NEVER, Bench, bad, cpu, gpu, second, states

pytestmark = pytest.mark.slow
FIRST, SECOND, THIRD = "0123456789ab", "222222222222", "333333333333"


def third() -> Release:
    return cpu(engine={**releases.values()["engine"], "tag": THIRD})


def stop(_seconds: float) -> None:
    raise KeyboardInterrupt


def record(revision: int, release: str, state: State) -> Record:
    now = datetime.datetime.now(datetime.UTC)
    said = {"when": now, "engine": release, "objects": ()}
    return Record(name=str(revision), revision=revision, state=state, release=release, **said)


@pytest.mark.parametrize(
    ("history", "running", "first"),
    [
        ([(1, "a", "deployed"), (2, "b", "deployed")], "b", 1),
        # B was bad, A came back, C mends it: before C there was A.
        ([(1, "a", "deployed"), (2, "b", "rolled-back"), (3, "c", "deployed")], "c", 1),
        # A came back by a rollback: a second one returns to B.
        ([(1, "a", "deployed"), (2, "b", "rolled-back")], "a", 2),
        ([(1, "a", "rolled-back"), (2, "b", "deployed")], "b", 1),
        ([(1, "a", "deployed"), (2, "b", "failed")], "b", 1),
    ],
)
def test_a_rollback_goes_to_what_was_good_before_what_runs(
    history: list[tuple[int, str, State]], running: str, first: int
) -> None:
    found = ways_back([record(*one) for one in reversed(history)], running)
    assert found[0].revision == first


def test_what_came_to_its_end_after_an_interrupt_is_the_way_back(
    bench: Bench, server: ApiServer
) -> None:
    bench.apply(cpu())
    keep, bench.waiter.sleep = bench.waiter.sleep, stop
    with pytest.raises(DeployFailed, match="interrupted") as caught:
        bench.apply(second())
    assert "rollback` puts the earlier back" in caught.value.hint
    bench.waiter.sleep = keep
    assert states(bench) == {1: "deployed", 2: "interrupted"}
    for _ in range(20):
        server.advance(1)
    assert bench.serving() == {SECOND}
    bad(server, NEVER, THIRD)
    with pytest.raises(RolledBack, match="Revision 2"):
        bench.apply(third())
    assert bench.serving() == {SECOND}


def test_an_interrupt_before_the_deployment_changed_advises_no_rollback(
    bench: Bench, server: ApiServer
) -> None:
    bench.apply(cpu())
    keep, bench.waiter.sleep = bench.waiter.sleep, stop
    with pytest.raises(DeployFailed) as caught:
        bench.apply(gpu())  # its engine is built first
    assert "the release before still runs: repeat" in caught.value.hint
    bench.waiter.sleep = keep
    bench.waiter.sleep = stop
    with pytest.raises(DeployFailed) as caught:
        Canary(deployer=bench.deployer).start(third(), 10)
    assert "`control deploy abort`" in caught.value.hint
    assert bench.serving() == {FIRST}


def test_a_lock_that_was_taken_over_is_gone(bench: Bench, server: ApiServer) -> None:
    bench.apply(cpu())
    bench.apply(second())
    server.fail("PATCH", "-release-3", 500, "etcd", count=50)
    bench.apply(third())
    server.faults.clear()
    assert states(bench)[3] == "applying"
    with pytest.raises(Refused, match="is being applied"):
        bench.apply(cpu())
    bench.deployer.take_over = True
    assert bench.deployer.rollback(cpu().place, None)["revision"] == 2
    # The killed one had come to its end, and was good until it was left.
    assert states(bench) == {1: "deployed", 2: "deployed", 3: "rolled-back"}
    bench.deployer.take_over = False
    assert bench.apply(cpu())["revision"] == 4


def test_a_rollback_that_was_killed_does_not_lose_its_target(
    bench: Bench, server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.apply(cpu())
    bench.apply(second())
    keep = bench.deployer._note

    def killed(one: Record, state: State, place: Any) -> None:
        keep(one, state, place)
        if state == "applying":
            raise SystemExit  # and nothing of this process is written any more

    monkeypatch.setattr(bench.deployer, "_note", killed)
    with pytest.raises(SystemExit):
        bench.deployer.rollback(cpu().place, None)
    assert states(bench) == {1: "applying", 2: "rolled-back"}
    again = Bench(server, tmp_path, take_over=True)
    assert again.deployer.rollback(cpu().place, None)["revision"] == 1
    assert states(again) == {1: "deployed", 2: "rolled-back"}


def test_a_rollback_whose_last_note_was_lost_is_what_it_came_to(
    bench: Bench, server: ApiServer
) -> None:
    bench.apply(cpu())
    bench.apply(second())
    bench.deployer.rollback(cpu().place, None)
    keep = bench.deployer._note

    def lost(one: Record, state: State, place: Any) -> None:
        if (one.revision, state) != (2, "deployed"):
            keep(one, state, place)

    bench.deployer._note = lost  # type: ignore[method-assign]
    bench.deployer.rollback(cpu().place, None)
    bench.deployer._note = keep  # type: ignore[method-assign]
    assert states(bench)[2] == "applying"
    bad(server, NEVER, THIRD)
    bench.deployer.take_over = True
    with pytest.raises(RolledBack, match="Revision 2"):
        bench.apply(third())


def test_three_rollbacks_change_between_two_releases(bench: Bench) -> None:
    bench.apply(cpu())
    bench.apply(second())
    bench.apply(third())
    found = [bench.deployer.rollback(cpu().place, None)["revision"] for _ in range(3)]
    assert found == [2, 3, 2]


def test_two_applies_that_begin_together_collide(bench: Bench, server: ApiServer) -> None:
    bench.apply(cpu())
    told = bench.deployer.report

    def meanwhile(line: str) -> None:
        told(line)
        if "Deployment" in line:
            bench.deployer.report = told
            own = record_of(bench, second())
            assert own.revision == 2

    bench.deployer.report = meanwhile
    with pytest.raises(Refused, match="is being applied by somebody else"):
        bench.apply(third())
    assert states(bench) == {1: "deployed", 2: "applying"}


def record_of(bench: Bench, release: Release) -> Record:
    """The lock of somebody else's apply."""
    return write_record(bench.deployer.cluster, release, [], revision=2, state="applying")


@pytest.mark.parametrize("fault", ["wrong answers", "no image"])
def test_what_was_never_good_does_not_go_on(bench: Bench, server: ApiServer, fault: str) -> None:
    """Its Deployment is as it should be, and serves nobody rightly."""
    bench.apply(cpu())
    keep, bench.waiter.sleep = bench.waiter.sleep, stop
    with pytest.raises(DeployFailed):
        bench.apply(second())
    bench.waiter.sleep = keep
    if fault == "no image":
        bad(server, NEVER, SECOND)
        for pod in server.all("Pod"):
            server._remove(("v1", "Pod", "slmrank", pod["metadata"]["name"]))
    else:
        server.run_job = lambda _job: (False, "Error: known answers are off")
    with pytest.raises(RolledBack, match="Revision 1"):
        bench.apply(second())
    assert states(bench)[3] == "failed"


def test_a_release_that_was_replaced_since_is_good_no_more(bench: Bench, server: ApiServer) -> None:
    bench.apply(cpu())
    bench.apply(second())
    keep, bench.waiter.sleep = bench.waiter.sleep, stop
    with pytest.raises(DeployFailed):
        bench.apply(cpu())
    bench.waiter.sleep = keep
    server.run_job = lambda _job: (False, "Error: known answers are off")
    with pytest.raises(RolledBack, match="Revision 2"):
        bench.apply(cpu())
    assert bench.serving() == {SECOND}


def test_remedies_after_an_interrupt_fit_what_runs(bench: Bench, server: ApiServer) -> None:
    keep, bench.waiter.sleep = bench.waiter.sleep, stop
    with pytest.raises(DeployFailed) as caught:
        bench.apply(cpu())
    assert "or `control deploy delete`" in caught.value.hint
    bench.waiter.sleep = keep
    bench.apply(cpu())
    bench.apply(second())
    server._remove(next(key for key in server.objects if key[1] == "PodDisruptionBudget"))
    bench.waiter.sleep = stop
    with pytest.raises(DeployFailed) as caught:
        bench.apply(second())
    assert "the release goes on: repeat" in caught.value.hint


def test_whoever_may_not_look_beside_a_release_can_delete_it(
    bench: Bench, server: ApiServer
) -> None:
    server.kinds |= {"keda.sh/v1alpha1": {"ScaledObject": ("scaledobjects", True)}}
    bench.apply(cpu())
    server.fail("GET", "scaledobjects", 403, "Forbidden", count=50)
    bench.deployer.delete(cpu().place)
    assert any("not allowed to look for a ScaledObject" in line for line in bench.lines)
    assert server.get("Deployment", "slmrank-demo") is None


def test_nobody_applies_while_somebody_rolls_back(
    bench: Bench, server: ApiServer, tmp_path: Path
) -> None:
    bench.apply(cpu())
    bench.apply(second())
    other = Bench(server, tmp_path)
    refused = []

    def meanwhile(seconds: float) -> None:
        if not refused:
            with pytest.raises(
                Refused, match="revision 1 .* is being applied since [0-9] s"
            ) as caught:
                other.apply(third())
            refused.append(caught)
        server.advance(seconds)

    bench.waiter.sleep = meanwhile
    bench.deployer.rollback(cpu().place, None)
    assert refused
    assert states(bench) == {1: "deployed", 2: "rolled-back"}


def test_what_a_rollback_left_as_bad_stays_so_when_it_is_overtaken(
    bench: Bench, server: ApiServer, tmp_path: Path
) -> None:
    bench.apply(cpu())
    bench.apply(second())
    other = Bench(server, tmp_path, take_over=True)
    done = []

    def meanwhile(seconds: float) -> None:
        if not done:
            done.append(True)
            other.apply(third())
        server.advance(seconds)

    bench.waiter.sleep = meanwhile
    with pytest.raises(DeployFailed, match="somebody|of release"):
        bench.deployer.rollback(cpu().place, None)
    assert states(bench)[2] == "rolled-back"
    assert states(bench)[3] == "deployed"


def test_a_smoke_that_fails_over_what_did_not_change_puts_nothing_back(
    bench: Bench, server: ApiServer
) -> None:
    bench.apply(cpu())
    bench.apply(second())
    budget = next(key for key in server.objects if key[1] == "PodDisruptionBudget")
    server._remove(budget)
    server.run_job = lambda _job: (False, "no node for the smoke pod")
    for _ in range(2):
        with pytest.raises(DeployFailed, match="was not changed and goes on"):
            bench.apply(second())
    assert bench.serving() == {SECOND}


def test_a_server_that_is_away_for_a_moment_has_all_its_kinds(
    bench: Bench, server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client takes a 503 for a cluster without the kind: autoscalers outlived their delete."""
    monkeypatch.setattr("slmrank.deploy.cluster.api.RETRY_PAUSE_S", 0.01)
    bench.apply(cpu())
    again = Bench(server, tmp_path)
    keep, seen = server._inject, dict.fromkeys(("/apis/apps/v1", "/apis/autoscaling/v2"), 0)

    def away(method: str, path: str) -> Any:
        if path in seen:
            seen[path] += 1
            if seen[path] < 3:
                raise Refusal(503, "ServiceUnavailable", "apiserver is shutting down")
        return keep(method, path)

    monkeypatch.setattr(server, "_inject", away)
    assert again.deployer.running(cpu().place) == cpu().hash
    removed = again.deployer.delete(cpu().place)
    assert "HorizontalPodAutoscaler slmrank-demo" in removed
    assert server.get("HorizontalPodAutoscaler", "slmrank-demo") is None


def test_the_plan_says_what_apply_does(tmp_path: Path) -> None:
    with ApiServer(monitoring=False) as server:
        bench = Bench(server, tmp_path)
        planned = [
            one.content["kind"] for one in bench.deployer.plan(cpu()) if one.change == "skip"
        ]
        skipped = bench.apply(cpu())["skipped"]
        assert planned == ["PodMonitor", "PrometheusRule"]
        assert len(skipped) >= 2
    with ApiServer() as server:
        bench = Bench(server, tmp_path)
        release = gpu()
        bench.apply(release)
        for key in [key for key in server.objects if key[1] == "Job"]:
            server._remove(key)  # a week later
        assert {one.change for one in bench.deployer.plan(release)} <= {"same", "skip"}


def test_a_record_that_cannot_be_read_is_counted(bench: Bench, server: ApiServer) -> None:
    bench.apply(cpu())
    bench.apply(second())
    key = ("v1", "ConfigMap", "slmrank", "slmrank-demo-release-2")
    server.objects[key]["data"]["objects.yaml"] = "{"
    assert bench.apply(third())["revision"] == 3


def test_an_interrupt_leaves_no_lock_and_says_what_is_gone(
    bench: Bench, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.apply(cpu())
    cluster = bench.deployer.cluster
    create, delete = cluster.create, cluster.delete

    def created(given: Any) -> Any:
        create(given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "create", created)
        with pytest.raises(KeyboardInterrupt):
            bench.apply(second())
    assert states(bench) == {1: "deployed"}

    def deleted(given: Any, **options: Any) -> Any:
        delete(given, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "delete", deleted)
    with pytest.raises(DeployFailed, match="interrupted; deleted so far: perhaps Horizontal"):
        bench.deployer.delete(cpu().place)


def test_two_pushes_of_a_bundle_go_on_beside_each_other(
    bench: Bench, server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Bench(server, tmp_path)
    pods: list[set[str]] = []

    def names() -> set[str]:
        return {one["metadata"]["name"] for one in server.all("Pod")}

    def copied(*_: Any) -> bool:
        pods.append(names())
        if len(pods) == 1:
            push.push_to_claims(other.deployer.cluster, other.waiter, cpu(), ["theirs"])  # type: ignore[list-item]
            assert names() == pods[0]
        return True

    monkeypatch.setattr(push, "_copied", copied)
    push.push_to_claims(bench.deployer.cluster, bench.waiter, cpu(), ["ours"])  # type: ignore[list-item]
    assert [len(one) for one in pods] == [1, 2]
    assert not names()


def test_the_remedies_name_options_that_exist(bench: Bench, server: ApiServer) -> None:
    canary = replace(cpu().place, track="canary")
    bench.apply(cpu())
    bench.apply(cpu().on_track("canary"))
    bench.apply(third().on_track("canary"))
    bench.waiter.sleep = stop
    with pytest.raises(DeployFailed) as caught:
        bench.deployer.rollback(canary, 1)
    assert "`control deploy rollback SPEC --to 1 --track canary` goes on" in caught.value.hint

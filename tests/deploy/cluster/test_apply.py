"""Rollouts against the API server of api_server.py: order, conflicts, faults, rollback."""

from __future__ import annotations

import copy
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from slmrank.deploy.catalogue import ray_job, ray_policy
from slmrank.deploy.cluster.api import connect
from slmrank.deploy.cluster.apply import Deployer
from slmrank.deploy.cluster.records import list_records, write_record
from slmrank.deploy.cluster.status import read_status
from slmrank.deploy.cluster.waiting import Waiter
from slmrank.deploy.kserve import inference_service, serving_runtime
from slmrank.deploy.naming import Object
from slmrank.deploy.release import Release
from slmrank.deploy.render import render
from slmrank.deploy.rerank import rerank_objects
from slmrank.deploy.scaling import scaled_object
from slmrank.deploy.sizing import progress_deadline_s
from slmrank.errors import DeployError, DeployFailed, Refused, RolledBack, WrongAnswer

from tests.conftest import Control
from tests.deploy import releases
from tests.deploy.cluster.api_server import ApiServer, Fate
from tests.deploy.releases import CPU_IMAGE

pytestmark = pytest.mark.slow
OTHER_IMAGE = f"slmrank-cpu@sha256:{'c' * 64}"
NEVER = Fate(
    ready_after_s=None,
    status={
        "phase": "Pending",
        "containerStatuses": [
            {
                "name": "serve",
                "image": OTHER_IMAGE,
                "state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}},
            }
        ],
    },
)


# Deadlines of 40 s on the server's clock: fewer questions until they pass.
SOON: dict[str, Any] = {"rollout": {"startup_s": 20, "pull_s": 20}}


def cpu(**changes: Any) -> Release:
    return releases.cpu(**{**changes, "deploy": {**SOON, **changes.get("deploy", {})}})


def gpu(**changes: Any) -> Release:
    return releases.gpu(**{**changes, "deploy": {**SOON, **changes.get("deploy", {})}})


class Bench:
    """A deployer on a server whose clock it turns, and what it told."""

    def __init__(self, server: ApiServer, folder: Path, **options: Any) -> None:
        self.lines: list[str] = []
        self.server = server
        cluster = connect(server.kubeconfig(folder / "kubeconfig"), warn=self.lines.append)
        self.waiter = Waiter(
            cluster=cluster,
            report=self.lines.append,
            clock=lambda: server.now,
            sleep=server.advance,
        )
        self.deployer = Deployer(
            cluster=cluster, waiter=self.waiter, report=self.lines.append, **options
        )

    def apply(self, release: Release) -> dict[str, Any]:
        return self.deployer.apply(release)

    def serving(self) -> set[str]:
        """Engines of the ready pods."""
        found = {
            pod["metadata"]["labels"]["slmrank.io/engine"]
            for pod in self.server.all("Pod")
            if any(one["type"] == "Ready" for one in pod["status"].get("conditions", []))
        }
        return found


def bad(server: ApiServer, fate: Fate, engine: str) -> None:
    """Pods of an engine never get ready."""
    server.fate = lambda pod: (
        fate if pod["metadata"]["labels"]["slmrank.io/engine"] == engine else Fate()
    )


def second(**changes: Any) -> Release:
    """The next release: another engine."""
    engine = {**releases.values()["engine"], "tag": "222222222222"}
    repository = cpu().repository.settings() | {"digest": "2222222222222222"}
    return cpu(engine=engine, repository=repository, **changes)


def mutations(server: ApiServer) -> list[tuple[str, str]]:
    """(method, path) of what really changed something, in order."""
    return [
        (method, path)
        for method, path, query in server.requests
        if method != "GET" and "dryRun" not in query
    ]


def test_a_first_release_is_applied_in_order_and_serves(bench: Bench, server: ApiServer) -> None:
    done = bench.apply(cpu())
    assert done["revision"] == 1
    assert done["smoke"] == "known answers hold"
    assert bench.serving() == {"0123456789ab"}
    changed = [path.rsplit("/", 2)[-2] for _, path in mutations(server)]
    order = ["namespaces", "serviceaccounts", "networkpolicies", "services", "deployments"]
    places = [changed.index(kind) for kind in order]
    assert places == sorted(places)
    assert changed.index("deployments") < changed.index("horizontalpodautoscalers")
    # Every object was dry-run before the first of them was changed.
    dry = [index for index, one in enumerate(server.requests) if "dryRun" in one[2]]
    deployment = [
        index
        for index, (method, path, query) in enumerate(server.requests)
        if method == "PATCH" and "/deployments/" in path and "dryRun" not in query
    ]
    assert max(dry) < min(deployment)
    managers = {query["fieldManager"] for _, _, query in server.requests if "fieldManager" in query}
    assert managers == {"slmrank"}


def test_the_same_release_again_changes_nothing(bench: Bench, server: ApiServer) -> None:
    bench.apply(cpu())
    before = server.get("Deployment", "slmrank-demo")
    server.requests.clear()
    done = bench.apply(cpu())
    after = server.get("Deployment", "slmrank-demo")
    assert done["changed"] == []
    assert (done["revision"], done["smoke"]) == (1, "not asked: nothing changed")
    assert mutations(server) == []
    assert before is not None
    assert after is not None
    assert before["metadata"]["generation"] == after["metadata"]["generation"]


def test_the_autoscalers_number_survives_an_apply(bench: Bench, server: ApiServer) -> None:
    bench.apply(cpu())
    deployment = server.get("Deployment", "slmrank-demo")
    assert deployment is not None
    scaled = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "slmrank-demo", "namespace": "slmrank"},
        "spec": {
            "replicas": 5,
            "selector": deployment["spec"]["selector"],
            "template": deployment["spec"]["template"],
        },
    }
    server.put(scaled, "kube-controller-manager")
    server.owners["apps/v1", "Deployment", "slmrank", "slmrank-demo"]["kube-controller-manager"] = {
        ("spec", "replicas")
    }
    bench.apply(second())
    found = server.get("Deployment", "slmrank-demo")
    assert found is not None
    assert found["spec"]["replicas"] == 5
    assert bench.serving() == {"222222222222"}


def test_what_the_server_refuses_changes_nothing(bench: Bench, server: ApiServer) -> None:
    bench.apply(cpu())
    before = copy.deepcopy(server.objects)
    server.fail("PATCH", "/services/", 422, "spec.ports: Invalid value", count=9)
    server.fail("PATCH", "/poddisruptionbudgets/", 403, "not allowed", count=9)
    with pytest.raises(Refused) as caught:
        bench.apply(second())
    assert "Service slmrank-demo: spec.ports: Invalid value" in caught.value.message
    assert "PodDisruptionBudget slmrank-demo: not allowed" in caught.value.message
    assert caught.value.exit_code == 1
    assert server.objects == before


def test_a_refused_first_release_leaves_no_namespace(bench: Bench, server: ApiServer) -> None:
    server.fail("PATCH", "/deployments/", 422, "no", count=9)
    with pytest.raises(Refused):
        bench.apply(cpu())
    assert server.get("Namespace", "slmrank") is None


def test_a_namespace_that_others_began_to_use_stays(bench: Bench, server: ApiServer) -> None:
    server.fail("PATCH", "/deployments/", 422, "no", count=9)
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
    theirs = {**claim, "metadata": {"name": "theirs", "namespace": "slmrank"}, "spec": {}}
    server.objects[("v1", "PersistentVolumeClaim", "slmrank", "theirs")] = theirs
    with pytest.raises(Refused):
        bench.apply(cpu())
    assert server.get("Namespace", "slmrank") is not None


def test_a_conflict_names_the_manager_and_the_field(bench: Bench, server: ApiServer) -> None:
    bench.apply(cpu())
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "slmrank-demo", "namespace": "slmrank"},
        "spec": {"maxUnavailable": 3},
    }
    server.put(budget, "somebody")
    with pytest.raises(Refused) as caught:
        bench.apply(cpu())
    assert '"somebody"' in caught.value.message
    assert ".spec.maxUnavailable" in caught.value.hint
    assert "--force-conflicts" in caught.value.hint
    bench.deployer.force_conflicts = True
    bench.apply(cpu())
    found = server.get("PodDisruptionBudget", "slmrank-demo")
    assert found is not None
    assert found["spec"]["maxUnavailable"] == 1


@pytest.mark.long
def test_the_history_counts_releases_not_applies(bench: Bench, server: ApiServer) -> None:
    """Six applies that each bring something of the second release back leave the first in reach."""
    bench.apply(cpu())
    for _ in range(6):
        bench.apply(second())
        server.put(
            {
                "apiVersion": "policy/v1",
                "kind": "PodDisruptionBudget",
                "metadata": {
                    "name": "slmrank-demo",
                    "namespace": "slmrank",
                    "labels": {"by": "hand"},
                },
                "spec": {"maxUnavailable": 2},
            },
            "hand",
        )
        bench.deployer.force_conflicts = True
    records = list_records(bench.deployer.cluster, cpu().place)
    assert [one.engine for one in records] == ["222222222222", "0123456789ab"]
    assert bench.deployer.rollback(cpu().place, None)["engine"] == "0123456789ab"


QUOTA = 'pods "slmrank-demo-1" is forbidden: exceeded quota: small, requested: limits.cpu=4'


def test_pods_that_cannot_be_created_are_explained(bench: Bench, server: ApiServer) -> None:
    bench.apply(cpu())
    server.refuse_pods = QUOTA
    with pytest.raises(RolledBack) as caught:
        bench.apply(second())
    assert "no pod can be created" in caught.value.message
    assert "exceeded quota: small" in caught.value.message
    assert "raise it, or lower deploy.placement" in caught.value.hint
    told = [line for line in bench.lines if "exceeded quota" in line]
    assert len(told) >= 1  # as it happens, not only at the end
    assert "Deployment slmrank-demo: no pod can be created" in told[0]


@pytest.mark.long
def test_a_build_whose_pods_cannot_be_created_ends_in_minutes(
    bench: Bench, server: ApiServer
) -> None:
    server.refuse_pods = QUOTA
    with pytest.raises(DeployFailed) as caught:
        bench.apply(gpu())
    assert "exceeded quota" in caught.value.message
    assert server.now < 700  # the Job's own deadline is 7,200 s
    assert any("Job" in line and "exceeded quota" in line for line in bench.lines)


def test_status_tells_of_pods_that_cannot_be_created(bench: Bench, server: ApiServer) -> None:
    bench.apply(cpu())
    assert read_status(bench.deployer.cluster, cpu().place).healthy
    deployment = next(one for one in server.objects.values() if one["kind"] == "Deployment")
    deployment["spec"]["replicas"] = 3
    server.refuse_pods = QUOTA
    server.advance(1)
    status = read_status(bench.deployer.cluster, cpu().place)
    assert not status.healthy
    assert [one.state for one in status.troubles] == ["no pod can be created"]


def test_status_tells_of_a_build_whose_pods_cannot_be_created(
    bench: Bench, server: ApiServer
) -> None:
    """An engine belongs to all tracks, so that its Job carries none."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "slmrank"}}
    bench.deployer.cluster.apply(namespace)
    server.refuse_pods = QUOTA
    (job,) = [one for one in render(gpu()) if one["kind"] == "Job"]
    bench.deployer.cluster.apply(job)
    server.advance(1)
    (trouble,) = read_status(bench.deployer.cluster, gpu().place).troubles
    assert trouble.name == f"Job {job['metadata']['name']}"


def test_status_tells_of_followers_that_do_not_run(bench: Bench, server: ApiServer) -> None:
    followed = cpu(store_ports=[6379], deploy={"watch": {"source": "redis-stream"}})
    bench.apply(followed)
    assert read_status(bench.deployer.cluster, followed.place).healthy
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting"}
    crashing = {
        "phase": "Running",
        "containerStatuses": [{"name": "watch", "restartCount": 9, "state": {"waiting": waiting}}],
    }
    server.fate = lambda pod: Fate(ready_after_s=None, status=crashing)
    for pod in server.all("Pod"):
        if "-watch-" in pod["metadata"]["name"]:
            server._remove(("v1", "Pod", "slmrank", pod["metadata"]["name"]))
    server.advance(1)
    status = read_status(bench.deployer.cluster, followed.place)
    assert not status.healthy
    assert any("-watch-" in one.name for one in status.troubles)


def test_an_autoscaler_without_metrics_is_advice_and_no_failure(
    bench: Bench, server: ApiServer
) -> None:
    bench.apply(cpu())
    scaler = next(
        one for one in server.objects.values() if one["kind"] == "HorizontalPodAutoscaler"
    )
    condition = {"type": "ScalingActive", "status": "False", "reason": "FailedGetPodsMetric"}
    scaler["status"] = {"conditions": [{**condition, "message": "no metrics returned"}]}
    status = read_status(bench.deployer.cluster, cpu().place)
    assert status.healthy
    assert [one.state for one in status.advice] == ["FailedGetPodsMetric"]
    assert "metrics adapter" in status.advice[0].fix


def test_a_schema_error_with_status_500_is_not_asked_again(bench: Bench, server: ApiServer) -> None:
    text = "failed to create typed patch object: .spec.foo: field not declared in schema"
    server.fail("PATCH", "/services/", 500, text, count=9)
    with pytest.raises(Refused, match="field not declared in schema"):
        bench.apply(cpu())
    left = sum(fault["count"] for fault in server.faults)
    services = {one["metadata"]["name"] for one in render(cpu()) if one["kind"] == "Service"}
    assert left == 9 - len(services)


def test_warnings_of_the_server_are_shown_once(bench: Bench, server: ApiServer) -> None:
    server.warning = 'unknown field \\"spec.foo\\"'
    bench.apply(cpu())
    assert len([line for line in bench.lines if line.startswith("the server warns:")]) == 1
    assert any("unknown field" in line for line in bench.lines)


def test_a_missing_crd_is_skipped_with_notice(tmp_path: Path) -> None:
    with ApiServer(monitoring=False) as server:
        bench = Bench(server, tmp_path)
        done = bench.apply(cpu())
    assert len([note for note in done["skipped"] if "has no monitoring" in note]) == 2
    assert any("has no monitoring.coreos.com/v1 PodMonitor" in line for line in bench.lines)


def test_an_image_that_never_starts_is_rolled_back_within_the_deadline(
    bench: Bench, server: ApiServer
) -> None:
    bench.apply(cpu())
    bad(server, NEVER, "222222222222")
    started = server.now
    release = second(deploy={"image": OTHER_IMAGE})
    with pytest.raises(RolledBack) as caught:
        bench.apply(release)
    assert server.now - started <= progress_deadline_s(release) + 10
    assert caught.value.exit_code == 2
    assert "timed out progressing" in caught.value.message
    assert "ImagePullBackOff" in caught.value.message
    assert "Revision 1 (engine 0123456789ab) serves again" in caught.value.message
    assert "registry" in caught.value.hint
    assert bench.serving() == {"0123456789ab"}
    deployment = server.get("Deployment", "slmrank-demo")
    assert deployment is not None
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == CPU_IMAGE


def test_what_a_failed_release_added_goes_with_it(bench: Bench, server: ApiServer) -> None:
    """A follower of the failed release would go on writing, or keep the status unhealthy."""
    good = cpu(store_ports=[6379])
    bench.apply(good)
    before = {(one["kind"], one["metadata"]["name"]) for one in server.objects.values()}
    bad(server, NEVER, "222222222222")
    with pytest.raises(RolledBack):
        bench.apply(second(store_ports=[6379], deploy={"watch": {"source": "redis-stream"}}))
    server.advance(60)
    after = {(one["kind"], one["metadata"]["name"]) for one in server.objects.values()}
    assert {kind for kind, _ in after - before} <= {"ConfigMap", "ReplicaSet", "Event"}
    assert not [name for _, name in after if "-watch" in name]
    assert read_status(bench.deployer.cluster, good.place).healthy
    assert any("removed, as revision 1 has none" in line for line in bench.lines)


def test_an_engine_with_wrong_answers_never_gets_ready_and_is_rolled_back(
    bench: Bench, server: ApiServer
) -> None:
    bench.apply(cpu())
    wrong = "Startup probe failed: Error: 2 of 2 known answers are off by more than 0.05"
    bad(server, Fate(ready_after_s=None, event=wrong), "222222222222")
    with pytest.raises(RolledBack) as caught:
        bench.apply(second())
    assert "known answers are off" in caught.value.message
    assert "another engine, tokenizer or store" in caught.value.hint
    # Nobody was ever sent to it.
    assert bench.serving() == {"0123456789ab"}


def test_a_rollout_that_the_controller_never_ends_is_ended_here(
    bench: Bench, server: ApiServer
) -> None:
    bench.apply(cpu())
    release = second()
    bad(server, Fate(ready_after_s=None), "222222222222")
    original = server._roll

    def silent(deployment: Object) -> None:
        """The controller never says that the deadline passed."""
        original(deployment)
        deployment["status"]["conditions"] = []

    server._roll = silent  # type: ignore[method-assign]
    started = server.now
    with pytest.raises(RolledBack, match="not there in"):
        bench.apply(release)
    assert server.now - started <= progress_deadline_s(release) + 10


def test_a_first_release_that_fails_stays_for_a_look(bench: Bench, server: ApiServer) -> None:
    bad(server, NEVER, "0123456789ab")
    with pytest.raises(DeployFailed) as caught:
        bench.apply(cpu())
    assert caught.value.exit_code == 3
    assert "no earlier release" in caught.value.message
    assert server.get("Deployment", "slmrank-demo") is not None
    states = [one.state for one in list_records(bench.deployer.cluster, cpu().place)]
    assert states == ["failed"]


def test_wrong_answers_through_the_service_are_rolled_back(bench: Bench, server: ApiServer) -> None:
    bench.apply(cpu())
    server.run_job = lambda job: (False, "Error: 1 of 2 known answers are off by more than 0.05")
    with pytest.raises(RolledBack, match="known answers are off"):
        bench.apply(second())
    assert bench.serving() == {"0123456789ab"}


def test_a_smoke_from_here_replaces_the_job(server: ApiServer, tmp_path: Path) -> None:
    asked: list[str] = []
    bench = Bench(server, tmp_path, smoke=lambda release: asked.append(release.name))
    bench.apply(cpu())
    assert asked == ["demo"]
    assert server.all("Job") == []

    def wrong(release: Release) -> None:
        raise WrongAnswer("off", "fix")

    bench.deployer.smoke = wrong
    with pytest.raises(RolledBack):
        bench.apply(second())


def test_the_engine_is_built_before_the_deployment_changes(bench: Bench, server: ApiServer) -> None:
    first = gpu()
    bench.apply(first)
    names = [one["metadata"]["name"] for one in server.all("Job")]
    assert any(name.startswith(f"engine-build-{first.engine.tag}-") for name in names)
    paths = [path for method, path in mutations(server) if method == "PATCH"]
    job = next(n for n, path in enumerate(paths) if "engine-build" in path)
    assert job < next(n for n, path in enumerate(paths) if "/deployments/" in path)


def test_a_build_that_fails_never_touches_the_deployment(bench: Bench, server: ApiServer) -> None:
    bench.apply(gpu())
    before = server.get("Deployment", "slmrank-demo")
    server.run_job = lambda job: (
        "engine-build" not in job["metadata"]["name"],
        "Error: trtllm-build ended with status 1",
    )
    with pytest.raises(RolledBack, match="trtllm-build ended with status 1"):
        bench.apply(gpu(tag="333333333333"))
    after = server.get("Deployment", "slmrank-demo")
    assert before is not None
    assert after is not None
    assert before["spec"] == after["spec"]
    # The Job failed for a passing reason: it runs again and the release arrives.
    server.run_job = lambda job: (True, "")
    assert bench.apply(gpu(tag="333333333333"))["engine"] == "333333333333"


def test_passing_faults_of_the_server_are_survived(
    bench: Bench, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmrank.deploy.cluster.api.RETRY_PAUSE_S", 0.01)
    server.fail("PATCH", "/deployments/", 503, "etcd leader changed", count=2)
    server.fail("GET", "/deployments/", 0, "connection broken", count=1)
    server.fail("PATCH", "/services/", 0, "connection broken", count=1)
    server.fail("GET", "/events", 429, "slow down", count=1)
    bench.apply(cpu())
    assert bench.serving() == {"0123456789ab"}


def test_an_outage_while_waiting_is_waited_for(
    bench: Bench, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the repeats of one request: the control plane is being upgraded."""
    monkeypatch.setattr("slmrank.deploy.cluster.api.RETRY_PAUSE_S", 0.001)
    bench.apply(cpu())
    server.fail("GET", "/replicasets", 503, "upgrading", count=8)
    server.fail("PATCH", "/horizontalpodautoscalers/", 0, "broken", count=2)
    assert bench.apply(second())["revision"] == 2
    assert any("upgrading" in line for line in bench.lines)
    assert bench.serving() == {"222222222222"}


def test_an_outage_that_does_not_end_is_no_refusal(
    bench: Bench, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmrank.deploy.cluster.api.RETRY_PAUSE_S", 0.0001)
    bench.apply(cpu())
    original = bench.waiter.sleep

    def gone(seconds: float) -> None:
        server.fail("", "/", 503, "gone", count=10**6)
        server.faults[-1]["method"] = "*"
        original(seconds)

    bench.waiter.sleep = gone
    with pytest.raises(DeployFailed) as caught:
        bench.apply(second())
    assert caught.value.exit_code == 3


def test_a_cause_that_is_mended_lets_the_same_release_arrive(
    bench: Bench, server: ApiServer
) -> None:
    """The controller leaves ProgressDeadlineExceeded there until there is progress."""
    bad(server, NEVER, "0123456789ab")
    with pytest.raises(DeployFailed):
        bench.apply(cpu())
    server.fate = lambda pod: Fate()
    for pod in server.all("Pod"):
        server.objects["v1", "Pod", "slmrank", pod["metadata"]["name"]]["_fate"] = Fate(
            ready_after_s=3
        )
        server.objects["v1", "Pod", "slmrank", pod["metadata"]["name"]]["_since"] = server.now
    assert bench.apply(cpu())["revision"] == 2
    assert bench.serving() == {"0123456789ab"}


def test_a_deployment_scaled_to_zero_has_not_arrived(bench: Bench, server: ApiServer) -> None:
    bench.apply(cpu())
    server.objects["apps/v1", "Deployment", "slmrank", "slmrank-demo"]["spec"]["replicas"] = 0
    with pytest.raises(DeployFailed, match="scaled to 0"):
        bench.apply(second())


def test_somebody_elses_rollout_is_not_taken_for_ours(bench: Bench, server: ApiServer) -> None:
    bench.apply(cpu())
    original = bench.waiter.sleep

    def overtaken(seconds: float) -> None:
        server.objects["apps/v1", "Deployment", "slmrank", "slmrank-demo"]["metadata"][
            "annotations"
        ]["slmrank.io/release"] = "somebody"
        original(seconds)

    bench.waiter.sleep = overtaken
    with pytest.raises(DeployFailed, match="is of release somebody now"):
        bench.apply(second())


def test_interrupts_end_with_a_word_about_the_cluster(bench: Bench, server: ApiServer) -> None:
    bench.apply(cpu())

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    keep = bench.waiter.sleep
    bench.waiter.sleep = interrupted
    with pytest.raises(DeployFailed, match="interrupted; the cluster goes on"):
        bench.apply(second())
    bench.waiter.sleep = keep
    # No lock is left behind.
    assert bench.apply(second())["revision"] == 3


def test_a_reader_without_events_can_deploy(bench: Bench, server: ApiServer) -> None:
    server.fail("GET", "/events", 403, "events is forbidden", count=1000)
    bench.apply(cpu())
    assert bench.serving() == {"0123456789ab"}


def test_a_job_that_is_deleted_is_not_waited_for(bench: Bench, server: ApiServer) -> None:
    bench.apply(cpu())

    def deleted(job: Object) -> tuple[bool, str]:
        server._remove(("batch/v1", "Job", "slmrank", job["metadata"]["name"]))
        return True, ""

    server.run_job = deleted
    with pytest.raises(RolledBack, match="is gone"):
        bench.apply(second())


def test_an_engine_that_served_is_not_built_again(bench: Bench, server: ApiServer) -> None:
    bench.apply(gpu())
    (built,) = [name for name in _jobs(server) if "engine-build" in name]
    server._remove(("batch/v1", "Job", "slmrank", built))
    server.run_job = lambda job: ("engine-build" not in job["metadata"]["name"], "no GPU is free")
    bench.apply(gpu(latency_ms=700.0))
    assert not any("engine-build" in name for name in _jobs(server))


def test_another_claim_for_engines_gets_a_job_of_its_own(bench: Bench, server: ApiServer) -> None:
    """A Job cannot be changed, and one that is complete had been taken for this one."""
    first = gpu()
    bench.apply(first)
    before = [name for name in _jobs(server) if "engine-build" in name]
    storage = first.deploy.storage.model_copy(update={"engines_claim": "engines-fast"})
    deploy = first.deploy.model_copy(update={"storage": storage})
    bench.apply(first.model_copy(update={"deploy": deploy}))
    after = [name for name in _jobs(server) if "engine-build" in name]
    assert len(before) == 1
    assert len(set(after) - set(before)) == 1


def _jobs(server: ApiServer) -> list[str]:
    return [str(one["metadata"]["name"]) for one in server.all("Job")]


def test_a_fault_in_the_middle_is_rolled_back(
    bench: Bench, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmrank.deploy.cluster.api.RETRY_PAUSE_S", 0.01)
    bench.apply(cpu())
    calls = {"count": 0}
    original = server._apply

    def late(key: Any, content: Object, manager: str, *, force: bool, dry: bool) -> Object:
        if key[1] == "Deployment" and not dry and not force:
            calls["count"] += 1
            from tests.deploy.cluster.api_server import Refusal

            raise Refusal(422, "Invalid", "a webhook changed its mind")
        return original(key, content, manager, force=force, dry=dry)

    server._apply = late  # type: ignore[method-assign]
    with pytest.raises(RolledBack, match="a webhook changed its mind"):
        bench.apply(second())
    assert calls["count"] == 1
    assert bench.serving() == {"0123456789ab"}


def test_a_server_that_is_gone_is_an_error_with_a_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmrank.deploy.cluster.api.RETRY_PAUSE_S", 0.01)
    with ApiServer() as server:
        pass
    with pytest.raises(DeployError, match="no answer from http://127.0.0.1") as caught:
        Bench(server, tmp_path)
    assert "kubectl cluster-info" in caught.value.hint


def test_two_applies_at_once_are_refused(bench: Bench, server: ApiServer) -> None:
    bench.apply(cpu())
    (record,) = (
        one for one in server.all("ConfigMap") if one["metadata"]["name"].endswith("release-1")
    )
    record["metadata"]["annotations"]["slmrank.io/state"] = "applying"
    key = ("v1", "ConfigMap", "slmrank", record["metadata"]["name"])
    server.objects[key] = record
    with pytest.raises(Refused, match="is being applied"):
        bench.apply(second())
    with pytest.raises(Refused, match="is being applied"):
        bench.deployer.delete(cpu().place)
    assert bench.deployer.delete(cpu().place, dry_run=True)
    bench.deployer.take_over = True
    bench.apply(second())


def test_pods_that_speak_tls_are_not_asked_in_plain_text(bench: Bench, server: ApiServer) -> None:
    secured = cpu(deploy={"tls": {"secret": "certificate"}})
    bench.deployer.smoke = lambda _release: None
    with pytest.raises(Refused, match="asks without TLS"):
        bench.deployer.apply(secured)
    assert server.get("Deployment", "slmrank-demo") is None


@pytest.mark.long
def test_rollback_puts_the_objects_of_an_earlier_release_back(
    bench: Bench, server: ApiServer
) -> None:
    bench.apply(cpu())
    bench.apply(second(deploy={"scaling": {"max_replicas": 3}}))
    done = bench.deployer.rollback(cpu().place, None)
    assert done == {"revision": 1, "release": cpu().hash, "engine": "0123456789ab"}
    assert bench.serving() == {"0123456789ab"}
    scaler = server.get("HorizontalPodAutoscaler", "slmrank-demo")
    assert scaler is not None
    assert scaler["spec"]["maxReplicas"] == 8
    # It was asked for its known answers, and what is left behind is no failed release.
    asked = [one["metadata"]["name"] for one in server.all("Job")]
    assert "slmrank-demo-smoke-1" in asked
    assert states(bench) == {1: "deployed", 2: "rolled-back"}
    bench.deployer.rollback(cpu().place, 2)
    assert bench.serving() == {"222222222222"}
    # What runs is no way back, whatever failed meanwhile.
    bad(server, NEVER, "333333333333")
    engine = {**releases.values()["engine"], "tag": "333333333333"}
    with pytest.raises(RolledBack):
        bench.apply(cpu(engine=engine))
    assert bench.serving() == {"222222222222"}
    assert bench.deployer.rollback(cpu().place, None)["revision"] == 1
    with pytest.raises(Refused, match="revision 9"):
        bench.deployer.rollback(cpu().place, 9)


def test_what_a_rollback_left_is_no_way_back(bench: Bench, server: ApiServer) -> None:
    for tag in ("0123456789ab", "222222222222", "333333333333"):
        bench.apply(cpu(engine={**releases.values()["engine"], "tag": tag}))
    bench.deployer.rollback(cpu().place, 1)
    assert states(bench) == {1: "deployed", 2: "rolled-back", 3: "rolled-back"}
    bad(server, NEVER, "444444444444")
    with pytest.raises(RolledBack):
        bench.apply(cpu(engine={**releases.values()["engine"], "tag": "444444444444"}))
    assert bench.serving() == {"0123456789ab"}


def test_an_interrupted_rollback_goes_on_and_not_back(bench: Bench, server: ApiServer) -> None:
    bench.apply(cpu())
    bench.apply(second())
    keep = bench.waiter.sleep

    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    bench.waiter.sleep = interrupted
    with pytest.raises(DeployFailed) as caught:
        bench.deployer.rollback(cpu().place, None)
    assert "rollback SPEC --to 1` goes on" in caught.value.hint
    bench.waiter.sleep = keep
    assert states(bench) == {1: "deployed", 2: "rolled-back"}
    # What fails now goes back to the target, and not to what was left.
    bad(server, NEVER, "333333333333")
    with pytest.raises(RolledBack):
        bench.apply(cpu(engine={**releases.values()["engine"], "tag": "333333333333"}))
    assert bench.serving() == {"0123456789ab"}
    assert bench.deployer.rollback(cpu().place, 1)["revision"] == 1
    # Also where the target is one that was rolled back from.
    bench.waiter.sleep = interrupted
    with pytest.raises(DeployFailed):
        bench.deployer.rollback(cpu().place, 2)
    assert (states(bench)[1], states(bench)[2]) == ("deployed", "deployed")


def states(bench: Bench) -> dict[int, str]:
    records = list_records(bench.deployer.cluster, cpu().place)
    return {one.revision: one.state for one in sorted(records, key=lambda one: one.revision)}


def test_a_rollback_to_a_release_that_answers_wrongly_fails(
    bench: Bench, server: ApiServer
) -> None:
    bench.apply(cpu())
    bench.apply(second())
    server.run_job = lambda job: (False, "Error: 1 of 2 known answers are off by more than 0.05")
    with pytest.raises(DeployFailed, match="known answers are off"):
        bench.deployer.rollback(cpu().place, None)
    assert states(bench)[2] == "deployed"


@pytest.mark.long
def test_old_manifests_are_pruned_and_kept_ones_stay(bench: Bench, server: ApiServer) -> None:
    for number in range(7):
        files = {"a": {"sha256": f"{number:064x}", "bytes": 1}}
        repository = {"digest": f"{number:016x}", "configuration": "0" * 16, "files": files}
        bench.apply(cpu(repository=repository))
    names = [one["metadata"]["name"] for one in server.all("ConfigMap")]
    assert len([name for name in names if "-release-" in name]) == 5
    assert len([name for name in names if "-release-" not in name]) == 5
    # A foreign object in the namespace is not ours to remove.
    foreign = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "theirs", "namespace": "slmrank"},
        "data": {"a": "b"},
    }
    server.put(foreign)
    scaler = server.get("HorizontalPodAutoscaler", "slmrank-demo")
    assert scaler is not None
    # Nor is what stands beside the release, or what a controller made and labelled like its owner.
    beside = [one for one in rerank_objects(cpu()) if one["kind"] != "Deployment"]
    beside.append(ray_policy(cpu()))
    made = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {
            "name": "keda-hpa-slmrank-demo",
            "namespace": "slmrank",
            "labels": scaler["metadata"]["labels"],
            "ownerReferences": [
                {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "name": "a", "uid": "1"}
            ],
        },
        "spec": copy.deepcopy(scaler["spec"]),
    }
    for one in (*beside, made):
        server.put(one)
    bench.apply(cpu())
    assert server.get("ConfigMap", "theirs") is not None
    for one in (*beside, made):
        assert server.get(one["kind"], one["metadata"]["name"]) is not None


def test_a_canary_stands_beside_the_stable_one(bench: Bench, server: ApiServer) -> None:
    bench.apply(cpu())
    bench.apply(second(track="canary"))
    assert bench.serving() == {"0123456789ab", "222222222222"}
    bench.deployer.delete(second(track="canary").place)
    server.advance(1)
    assert bench.serving() == {"0123456789ab"}
    assert server.get("Service", "slmrank-demo") is not None


def test_delete_removes_everything_but_claims_and_namespace(
    bench: Bench, server: ApiServer
) -> None:
    bench.apply(cpu())
    listed = bench.deployer.delete(cpu().place, dry_run=True)
    assert bench.serving()
    assert bench.deployer.delete(cpu().place) == listed
    kinds = {key[1] for key in server.objects}
    assert kinds == {"Namespace", "PersistentVolumeClaim", "Event"}


def test_what_was_applied_beside_a_release_goes_with_it_and_not_before(
    bench: Bench, server: ApiServer
) -> None:
    """KServe's pods served on without a policy, and could not be replaced without an account."""
    release = cpu(deploy={"scaling": {"autoscaler": "keda"}})
    beside = [ray_job(release), inference_service(release), serving_runtime(release)]
    beside.append(scaled_object(release, "http://prometheus:9090"))
    server.kinds |= {
        "keda.sh/v1alpha1": {"ScaledObject": ("scaledobjects", True)},
        "serving.kserve.io/v1beta1": {"InferenceService": ("inferenceservices", True)},
        "serving.kserve.io/v1alpha1": {"ServingRuntime": ("servingruntimes", True)},
        "ray.io/v1": {"RayJob": ("rayjobs", True)},
    }
    bench.apply(release)
    for one in beside:
        bench.deployer.cluster.apply(one)
    bench.apply(second(deploy={"scaling": {"autoscaler": "keda"}}))
    kinds = {one["kind"] for one in beside}
    assert kinds <= {key[1] for key in server.objects}
    listed = bench.deployer.delete(release.place)
    assert {one.partition(" ")[0] for one in listed[:4]} == kinds
    assert {key[1] for key in server.objects} == {"Namespace", "PersistentVolumeClaim", "Event"}


def test_plan_shows_the_difference_and_changes_nothing(bench: Bench, server: ApiServer) -> None:
    assert {one.change for one in bench.deployer.plan(cpu())} == {"create"}
    bench.apply(cpu())
    before = copy.deepcopy(server.objects)
    planned = {one.title: one for one in bench.deployer.plan(second())}
    assert server.objects == before
    deployment = planned["Deployment slmrank/slmrank-demo"]
    assert deployment.change == "change"
    assert "+        slmrank.io/engine: '222222222222'" in deployment.diff
    assert planned["Namespace slmrank"].change == "skip"
    assert planned["NetworkPolicy slmrank/slmrank-demo"].change == "change"  # its label


def test_an_image_that_nobody_named_is_refused(bench: Bench, server: ApiServer) -> None:
    with pytest.raises(Refused, match=r"deploy\.image is not set"):
        bench.apply(cpu(deploy={"image": None}))
    assert server.objects == {}


def test_old_clusters_are_refused(tmp_path: Path) -> None:
    with ApiServer(version="1.28") as server, pytest.raises(Refused, match="runs Kubernetes 1.28"):
        Bench(server, tmp_path).apply(cpu())
    image = {"storage": {"bundle_image": f"bundle@sha256:{'d' * 64}"}}
    with (
        ApiServer(version="1.34") as server,
        pytest.raises(Refused, match=r"needs Kubernetes 1\.35"),
    ):
        Bench(server, tmp_path).apply(cpu(deploy=image))
    with ApiServer(version="1.35") as server:
        Bench(server, tmp_path).apply(cpu(deploy=image))


def test_status_explains_pending_pods(bench: Bench, server: ApiServer) -> None:
    assert read_status(bench.deployer.cluster, cpu().place).found is False
    bench.apply(cpu())
    healthy = read_status(bench.deployer.cluster, cpu().place)
    assert healthy.healthy
    assert healthy.records[0]["state"] == "deployed"
    full = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    pending = {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "message": full}],
    }
    bad(server, Fate(ready_after_s=None, status=pending), "222222222222")
    with pytest.raises(RolledBack) as caught:
        bench.apply(second())
    assert full in caught.value.message
    assert "all GPUs are taken" in caught.value.hint


@pytest.mark.long
@pytest.mark.slow
def test_the_command_line_tells_and_ends_with_the_right_codes(
    server: ApiServer, tmp_path: Path, control: Control
) -> None:
    config = server.kubeconfig(tmp_path / "kubeconfig")
    first, bad_one = tmp_path / "first.yaml", tmp_path / "bad.yaml"
    fast = {"rollout": {"startup_s": 10, "pull_s": 10}}
    first.write_text(cpu(deploy=fast).to_yaml())
    bad_one.write_text(second(deploy=fast).to_yaml())
    stop = threading.Event()
    server.run_in_background(stop)
    try:
        place = ("--kubeconfig", config)
        done = control("deploy", "apply", first, *place, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["revision"] == 1
        assert "new pods are available" in done.stderr
        done = control("deploy", "status", first, *place)
        assert done.returncode == 0
        assert "arrived" in done.stdout
        done = control("deploy", "plan", bad_one, *place)
        assert done.returncode == 0
        assert "change  Deployment slmrank/slmrank-demo" in done.stdout
        bad(server, NEVER, "222222222222")
        started = time.monotonic()
        done = control("deploy", "apply", bad_one, *place)
        # The deadline of this release is 20 s; starting the command takes some of the rest.
        assert time.monotonic() - started < 20 + 10
        assert done.returncode == 2
        assert "ImagePullBackOff" in done.stderr
        assert "serves again" in done.stderr
        assert "Fix:" in done.stderr
        # The only good release is the one that runs.
        assert control("deploy", "rollback", first, *place).returncode == 1
        assert control("deploy", "delete", first, *place).returncode == 1
        assert control("deploy", "delete", first, *place, "--yes").returncode == 0
        assert control("deploy", "status", first, *place).returncode == 1
    finally:
        stop.set()
    # Usage and specs are refusals too: 2 would say that something was rolled back.
    assert control("deploy", "apply", "--no-such-flag").returncode == 1
    assert control("deploy", "apply", tmp_path / "missing.yaml", *place).returncode == 1


def test_a_record_whose_answer_was_lost_is_ours(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, release = bench.deployer.cluster, cpu()
    bench.apply(release)
    create = cluster.create

    def twice(content: Object) -> Object:
        create(content)
        return create(content)

    monkeypatch.setattr(cluster, "create", twice)
    made = write_record(cluster, release, [], revision=7, state="applying")
    assert made.revision == 7
    monkeypatch.undo()
    with pytest.raises(Refused, match="by somebody else"):
        write_record(cluster, release, [], revision=7, state="applying")

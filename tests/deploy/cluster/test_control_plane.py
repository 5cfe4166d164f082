"""Rung 6: the same rollouts against a real API server with its controllers and scheduler.

Runs when KUBE_BIN_DIR names a folder with the binaries; any version does, what an older server lacks is
left out and said.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from slmrank.deploy.access import namespace
from slmrank.deploy.check.schema import as_version
from slmrank.deploy.cluster import plan as plan_module
from slmrank.deploy.cluster import waiting as waiting_module
from slmrank.deploy.cluster.api import ApiError, Cluster, Conflict, connect
from slmrank.deploy.cluster.apply import Deployer
from slmrank.deploy.cluster.canary import Canary, read_share
from slmrank.deploy.cluster.status import read_status
from slmrank.deploy.cluster.waiting import Waiter
from slmrank.deploy.exposure import GRPC_ROUTE
from slmrank.deploy.naming import Object
from slmrank.deploy.release import Release
from slmrank.deploy.render import render, render_base
from slmrank.errors import Refused, RolledBack

from tests.deploy import releases
from tests.deploy.cluster.control_plane import ControlPlane, control_plane
from tests.deploy.test_check import DEFECTS

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
NAMESPACE = "slmrank"
PULL = {
    "phase": "Pending",
    "containerStatuses": [
        {
            "name": "serve",
            "image": "i",
            "imageID": "",
            "ready": False,
            "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}},
        }
    ],
}


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with control_plane() as made:
        for name in ("bundles", "engines"):
            made.add_volume(name, name, NAMESPACE)
        made.add_node("cpu-1")
        made.add_node("gpu-1", gpus=3)
        made.bad = set()  # type: ignore[attr-defined]

        def fate(pod: Object) -> Object | None:
            engine = pod["metadata"]["labels"].get("slmrank.io/engine")
            return PULL if engine in made.bad else None  # type: ignore[attr-defined]

        made.play_pods(NAMESPACE, fate)
        yield made


@pytest.fixture
def cluster(plane: ControlPlane, tmp_path: Path) -> Cluster:
    return connect(plane.kubeconfig(tmp_path / "kubeconfig"), warn=lambda text: None)


@pytest.fixture
def deployer(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Deployer:
    """For this server: kinds that it does not have yet are left out."""
    found = cluster.version()
    if as_version(found) < plan_module.OLDEST:
        monkeypatch.setattr(plan_module, "OLDEST", as_version(found))
        missing = {
            one["kind"]
            for one in render(release())
            if cluster.find_kind(one["apiVersion"], one["kind"]) is None
        }
        warnings.warn(f"Kubernetes {found} has no {', '.join(sorted(missing))}", stacklevel=2)
        left_out = dict.fromkeys(missing, "left out of this test")
        monkeypatch.setattr(plan_module, "OPTIONAL", {**plan_module.OPTIONAL, **left_out})
    waiter = Waiter(cluster=cluster, report=print)
    return Deployer(cluster=cluster, waiter=waiter, report=print)


def release(tag: str = "111111111111", **changes: Any) -> Release:
    engine = {**releases.values()["engine"], "tag": tag}
    deploy = {
        "rollout": {"startup_s": 10, "pull_s": 10, "pre_stop_s": 1},
        **changes.pop("deploy", {}),
    }
    return releases.cpu(engine=engine, deploy=deploy, **changes)


def test_a_release_arrives_a_bad_one_is_taken_back_and_all_is_deleted(
    plane: ControlPlane, deployer: Deployer, cluster: Cluster
) -> None:
    done = deployer.apply(release())
    assert done["revision"] == 1
    status = read_status(cluster, release().place)
    assert status.rollout.startswith("arrived")
    plane.bad.add("222222222222")  # type: ignore[attr-defined]
    with pytest.raises(RolledBack) as caught:
        deployer.apply(release("222222222222"))
    assert "ImagePullBackOff" in caught.value.message
    assert "serves again" in caught.value.message
    status = read_status(cluster, release().place)
    assert {one["engine"] for one in status.pods if one["ready"]} == {"111111111111"}
    assert deployer.apply(release("333333333333"))["revision"] == 3
    assert deployer.rollback(release().place, None)["revision"] == 1
    # Nothing is left to change.
    assert {one.change for one in deployer.plan(release())} <= {"same", "skip"}
    deployer.delete(release().place)
    assert cluster.list("apps/v1", "Deployment", NAMESPACE) == []


def test_a_canary_is_given_its_share_promoted_and_taken_back(
    plane: ControlPlane, deployer: Deployer, cluster: Cluster
) -> None:
    deployer.apply(release("666666666666"))
    canary = Canary(deployer=deployer)
    with pytest.raises(Refused, match="no kind GRPCRoute"):
        canary.start(release("777777777777"), 10)
    plane.add_kind("gateway.networking.k8s.io", "v1", "GRPCRoute", "grpcroutes")
    # A client finds new kinds when it is started.
    deployer.cluster = canary.deployer.waiter.cluster = connect(
        plane.kubeconfig(plane.folder / "canary"), warn=print
    )
    canary.start(release("777777777777"), 10)
    assert read_share(deployer.cluster, release().place) == 10
    canary.promote(release().place, lambda *_: "all is well")
    status = read_status(deployer.cluster, release().place)
    assert (status.engine, status.canary_percent) == ("777777777777", 0)
    named = {one["metadata"]["name"] for one in cluster.list("apps/v1", "Deployment", NAMESPACE)}
    assert named == {"slmrank-demo"}
    canary.start(release("888888888888"), 50)
    canary.abort(release().place)
    assert read_share(deployer.cluster, release().place) == 0
    assert deployer.plan(release("777777777777"))
    deployer.delete(release().place)
    assert deployer.cluster.list(*GRPC_ROUTE, NAMESPACE) == []


def test_fields_of_other_managers_survive_and_conflicts_are_told(
    plane: ControlPlane, deployer: Deployer, cluster: Cluster
) -> None:
    deployer.apply(release("444444444444"))
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/slmrank-demo"
    scale = {"spec": {"replicas": 3}}
    plane.request("PATCH", f"{path}/scale", scale, "application/merge-patch+json")
    deployer.apply(release("555555555555"))
    found = cluster.get("apps/v1", "Deployment", NAMESPACE, "slmrank-demo")
    assert found is not None
    assert found["spec"]["replicas"] == 3
    deadline = {"spec": {"progressDeadlineSeconds": 77}}
    plane.request("PATCH", path, deadline, "application/merge-patch+json")
    wanted = next(one for one in render(release("555555555555")) if one["kind"] == "Deployment")
    with pytest.raises(Conflict) as caught:
        cluster.apply(wanted)
    assert "progressDeadlineSeconds" in caught.value.message + caught.value.hint
    cluster.apply(wanted, force=True)
    deployer.delete(release().place)


def test_the_server_refuses_what_our_rules_refuse(cluster: Cluster, deployer: Deployer) -> None:
    cluster.apply(namespace(release()))
    accepted = []
    for name, (_, plant) in DEFECTS.items():
        objects = copy.deepcopy(render_base(releases.gpu()))
        before = copy.deepcopy(objects)
        plant(objects)
        for one, old in zip(objects, before, strict=True):
            if one == old or cluster.find_kind(old["apiVersion"], old["kind"]) is None:
                continue
            try:
                cluster.apply(one, dry_run=True)
                accepted.append(name)
            except ApiError:
                pass
    assert accepted == []


def test_our_own_objects_pass_the_servers_dry_run(cluster: Cluster, deployer: Deployer) -> None:
    cluster.apply(namespace(release()))
    for one in (release(), releases.gpu()):
        for given in render(one):
            if cluster.find_kind(given["apiVersion"], given["kind"]) is not None:
                cluster.apply(given, dry_run=True)


def test_gpus_that_are_taken_are_explained_and_a_surge_would_deadlock(
    plane: ControlPlane,
    deployer: Deployer,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fast = {
        "rollout": {"startup_s": 10, "pull_s": 10, "pre_stop_s": 1},
        "scaling": {"min_replicas": 2, "max_replicas": 3},
    }
    deployer.apply(releases.gpu(deploy=fast))
    # Of three GPUs two serve, where autoscaling/v2 makes that of the floor, and one builds.
    deployer.apply(releases.gpu(tag="666666666666", deploy=fast))
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/slmrank-demo"
    scale = {"spec": {"replicas": 3}}
    plane.request("PATCH", f"{path}/scale", scale, "application/merge-patch+json")
    deployer.waiter.rollout(NAMESPACE, "slmrank-demo")
    # In place one old pod goes first: this arrives on a full cluster.
    files = {"rank/config.pbtxt": {"sha256": "3" * 64, "bytes": 1}}
    repository = {"digest": "3" * 16, "configuration": "x", "files": files}
    deployer.apply(releases.gpu(tag="666666666666", repository=repository, deploy=fast))
    # A new engine cannot be built there, and with a surge the new pod waits for a GPU for ever.
    monkeypatch.setattr(waiting_module, "UNSCHEDULABLE_S", 5.0)
    surge = {**fast, "rollout": {**fast["rollout"], "spare_gpus": 1}}
    for wanted in (
        releases.gpu(tag="777777777777", deploy=fast),
        releases.gpu(tag="666666666666", deploy=surge),
    ):
        with pytest.raises(RolledBack) as caught:
            deployer.apply(wanted)
        assert "Insufficient nvidia.com/gpu" in caught.value.message
        assert "all GPUs are taken" in caught.value.hint
    deployer.delete(releases.gpu().place)

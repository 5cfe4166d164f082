"""Rung 7: real pods. The CPU image in a kubelet: verified, probed by its known answers, updated under
load without a failed request, a damaged repository never served."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from slmrank.client.client import RankClient
from slmrank.client.known_answers import compare_known
from slmrank.deploy.check.schema import as_version
from slmrank.deploy.cluster import plan as plan_module
from slmrank.deploy.cluster.api import connect
from slmrank.deploy.cluster.apply import Deployer
from slmrank.deploy.cluster.push import plan_parcels, push_to_claims
from slmrank.deploy.cluster.waiting import Waiter
from slmrank.deploy.release import Release
from slmrank.errors import ControlError, RolledBack
from slmrank.pipeline.steps import run
from slmrank.repository.receive import is_whole

from tests.build.docker_engine import build_cpu_image, docker_engine
from tests.conftest import TinyBundle
from tests.deploy.cluster.control_plane import ControlPlane, control_plane
from tests.deploy.cluster.node import (
    PAUSE,
    containerd,
    kubelet,
    ready_addresses,
    require_node,
)
from tests.deploy.cluster.test_real_parts import deployed

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.triton]
NAMESPACE = "slmrank"


@dataclass
class RealNode:
    plane: ControlPlane
    image: str
    bundles: Path
    lines: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def node() -> Iterator[RealNode]:
    binary = require_node()
    folder = Path(tempfile.mkdtemp(prefix="slmrank-node-"))
    bundles = folder / "bundles"
    bundles.mkdir()
    bundles.chmod(0o777)  # a volume of the host's takes no fsGroup
    folder.chmod(0o755)
    try:
        with control_plane() as plane:
            archive = _images(folder)
            with containerd(folder) as runtime:
                images = runtime.load(archive)
                archive.unlink()
                image = next(one for name, one in images.items() if "cpu" in name)
                with kubelet(plane, runtime, binary):
                    for claim in ("bundles", "engines"):
                        plane.add_volume(claim, claim, NAMESPACE, bundles)
                    yield RealNode(plane, image, bundles)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _images(folder: Path) -> Path:
    """The CPU image and a pause image, saved."""
    archive = folder / "images.tar"
    with docker_engine() as docker:
        name = f"slmrank-cpu:{uuid.uuid4().hex[:8]}"
        build_cpu_image(docker, folder, name)
        pause = folder / "pause"
        pause.mkdir()
        (pause / "Dockerfile").write_text(f'FROM {docker.base}\nCMD ["sleep", "infinity"]\n')
        docker.run("build", "-q", "-t", PAUSE.removeprefix("docker.io/library/"), str(pause))
        docker.run("save", "-o", str(archive), name, PAUSE.removeprefix("docker.io/library/"))
    return archive


class Load:
    """Scores without end at every ready address in turn; addresses are asked for every second, and a
    failed call is written down, never repeated."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.answered = 0
        self.failed: list[str] = []

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _work(self) -> None:
        clients: dict[str, RankClient] = {}
        asked, addresses, turn = 0.0, [], 0
        while not self._stop.is_set():
            if time.monotonic() - asked > 1 or not addresses:
                addresses = ready_addresses(self._plane, NAMESPACE, "slmrank-tiny")
                asked = time.monotonic()
            if not addresses:
                self.failed.append("no address")
                time.sleep(0.2)
                continue
            turn += 1
            address = addresses[turn % len(addresses)]
            client = clients.setdefault(address, RankClient(f"{address}:8001"))
            try:
                # Less than any repeat of the client could use.
                client.score("nurse", ["job-1"], timeout_s=5)
                self.answered += 1
            except ControlError as error:
                self.failed.append(f"{address}: {error.message}")
            time.sleep(0.05)


def release_of(tiny: TinyBundle, node: RealNode, **changes: Any) -> Release:
    """Two replicas of one core in place: a node of two cores holds no third."""
    return deployed(
        tiny,
        image=node.image,
        placement={"cores": 1, "memory_gib": 1},
        rollout={
            "startup_s": 30,
            "pull_s": 30,
            "strategy": "in-place",
            "pre_stop_s": 5,
            "drain_s": 5,
        },
        **changes,
    )


def deployer_of(node: RealNode, folder: Path) -> Deployer:
    def smoke(release: Release) -> None:
        """There is no cluster DNS: the pods are asked one by one."""
        addresses = ready_addresses(node.plane, NAMESPACE, release.object_name)
        assert len(addresses) == 2
        for address in addresses:
            with RankClient(f"{address}:8001") as client:
                compare_known(client.score, release.known_answers)

    def told(text: str) -> None:
        node.lines.append(text)
        print(text)

    cluster = connect(node.plane.kubeconfig(folder / "kubeconfig"), warn=told)
    waiter = Waiter(cluster=cluster, report=told)
    return Deployer(cluster=cluster, waiter=waiter, report=told, smoke=smoke)


def test_real_pods_serve_are_updated_under_load_and_a_damaged_one_never_serves(
    tiny: TinyBundle, node: RealNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = release_of(tiny, node)
    deployer = deployer_of(node, tmp_path)
    version = as_version(deployer.cluster.version())
    if version < plan_module.OLDEST:
        monkeypatch.setattr(plan_module, "OLDEST", version)
        newer = ("HorizontalPodAutoscaler", "PodDisruptionBudget")
        left_out = dict.fromkeys(newer, "left out of this test")
        monkeypatch.setattr(plan_module, "OPTIONAL", {**plan_module.OPTIONAL, **left_out})
    # Through a pod that runs `control receive`, over the kubelet's own streams.
    repository = run(tiny.bundle.repository, tiny.store)
    _, parcels = plan_parcels(first, repository, repository, None)
    assert push_to_claims(deployer.cluster, deployer.waiter, first, parcels) == parcels
    assert is_whole(node.bundles / f"repository-{repository.digest}", repository.digest)
    assert push_to_claims(deployer.cluster, deployer.waiter, first, parcels) == []
    deployer.skip_smoke = True
    deployer.apply(first)
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{first.object_name}"
    scale = {"spec": {"replicas": 2}}
    node.plane.request("PATCH", f"{path}/scale", scale, "application/merge-patch+json")
    deployer.waiter.rollout(NAMESPACE, first.object_name)
    deployer.skip_smoke = False
    # Another release of the same engine, so that every pod is replaced.
    second = first.model_copy(update={"latency_ms": 12_000.0})
    with Load(node.plane) as load:
        deployer.apply(second)
    assert load.failed == []
    assert load.answered > 20
    # A repository that was copied half: verify refuses, the old pods go on serving.
    files = {**second.repository.files}
    name = next(one for one in files if one.endswith("items.bin"))
    files[name] = files[name].model_copy(update={"sha256": "0" * 64})
    repository = second.repository.model_copy(update={"files": files})
    third = second.model_copy(update={"repository": repository})
    with Load(node.plane) as load, pytest.raises(RolledBack) as caught:
        deployer.apply(third)
    assert load.failed == []
    assert "items.bin: other content" in caught.value.message
    assert "copy repository and engine" in caught.value.hint
    # A wrong engine answers quickly and wrongly: its own startup probe keeps it out.
    known = [replace(one, p=0.0 if one.p > 0.5 else 1.0) for one in second.known_answers]
    fourth = second.model_copy(update={"known_answers": known})
    with Load(node.plane) as load, pytest.raises(RolledBack) as caught:
        deployer.apply(fourth)
    assert load.failed == []
    assert "known answers are off" in caught.value.message
    assert load.answered > 20

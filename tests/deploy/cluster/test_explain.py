"""Why pods do not serve, from what API servers and kubelets really say."""

from __future__ import annotations

from typing import Any

import pytest
from slmrank.deploy.cluster.explain import (
    UNCREATED,
    UNSCHEDULABLE,
    explain_autoscaler,
    explain_deployment,
    explain_job,
    explain_pods,
    unschedulable_fix,
)
from slmrank.deploy.cluster.rollout import judge


def pod(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "slmrank-demo-5d8f-x"}, "status": status}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return pod(phase="Pending", containerStatuses=[{"name": "serve", "image": "i", "state": state}])


@pytest.mark.parametrize(
    ("message", "fix"),
    [
        ("0/8 nodes are available: 8 Insufficient nvidia.com/gpu.", "all GPUs are taken"),
        ("0/3 nodes are available: 3 Insufficient cpu.", "nodes are full"),
        (
            "0/5 nodes are available: 5 node(s) didn't match Pod's node affinity/selector.",
            "nvidia.com/gpu.product",
        ),
        (
            "0/2 nodes are available: 2 node(s) had untolerated taint {dedicated: ml}.",
            "toleration",
        ),
        ('persistentvolumeclaim "bundles" not found', "claim does not exist"),
        ("pod has unbound immediate PersistentVolumeClaims.", "storage class"),
        ("something new", "kubectl describe"),
    ],
)
def test_the_schedulers_reasons_have_fixes(message: str, fix: str) -> None:
    condition = {"type": "PodScheduled", "status": "False", "message": message}
    (trouble,) = explain_pods([pod(phase="Pending", conditions=[condition])])
    assert trouble.state == UNSCHEDULABLE
    assert trouble.message == message
    assert fix in trouble.fix
    assert trouble.fix == unschedulable_fix(message)


def test_images_crashes_memory_and_verification() -> None:
    (trouble,) = explain_pods([waiting("ImagePullBackOff", "not found")])
    assert "digest" in trouble.fix
    (trouble,) = explain_pods([waiting("CreateContainerConfigError", 'configmap "a" not found')])
    assert 'configmap "a" not found' in trouble.message
    ended = {"exitCode": 7, "reason": "Error", "message": "x\nError: engine: missing\nFix: copy\n"}
    verify = {
        "name": "verify",
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": ended},
    }
    (trouble,) = explain_pods([pod(phase="Pending", initContainerStatuses=[verify])])
    assert trouble.state == "CrashLoopBackOff"
    assert "verify ended with exit code 7" in trouble.message
    assert "engine: missing" in trouble.message
    assert "copy repository and engine" in trouble.fix
    killed = {
        "name": "serve",
        "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
    }
    (trouble,) = explain_pods([pod(phase="Running", containerStatuses=[killed])])
    assert trouble.state == "OOMKilled"
    assert "memory_gib" in trouble.fix


def test_ready_finished_and_leaving_pods_are_no_trouble() -> None:
    ready = pod(phase="Running", conditions=[{"type": "Ready", "status": "True"}])
    leaving = pod(phase="Running")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert explain_pods([ready, pod(phase="Succeeded"), leaving]) == []
    (starting,) = explain_pods([pod(phase="Running")])
    assert starting.message == "it is still starting"


def test_an_autoscaler_without_metrics_or_room_is_explained() -> None:
    def scaler(kind: str, status: str, reason: str) -> dict[str, Any]:
        condition = {"type": kind, "status": status, "reason": reason, "message": "m"}
        return {"metadata": {"name": "a"}, "status": {"conditions": [condition]}}

    (trouble,) = explain_autoscaler(scaler("ScalingActive", "False", "FailedGetPodsMetric"))
    assert "metrics adapter" in trouble.fix
    (trouble,) = explain_autoscaler(scaler("ScalingLimited", "True", "TooManyReplicas"))
    assert "max_replicas" in trouble.fix
    assert explain_autoscaler(scaler("ScalingActive", "True", "ValidMetricFound")) == []
    assert explain_autoscaler({"metadata": {"name": "a"}}) == []


def deployment(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "uid": "d",
            "generation": 2,
            "annotations": {"deployment.kubernetes.io/revision": "2"},
        },
        "spec": {"replicas": 3},
        "status": {"observedGeneration": 2, **status},
    }


def replica_set(revision: str, available: int) -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"rs-{revision}",
            "ownerReferences": [{"uid": "d"}],
            "annotations": {"deployment.kubernetes.io/revision": revision},
        },
        "status": {"availableReplicas": available},
    }


def test_old_pods_never_count_as_arrived() -> None:
    old, new = replica_set("1", 3), replica_set("2", 0)
    unseen = deployment(observedGeneration=1, replicas=3, updatedReplicas=3, availableReplicas=3)
    assert judge(unseen, [old, new]).state == "waiting"
    # All three available pods are old ones.
    mixed = deployment(replicas=6, updatedReplicas=3, availableReplicas=3)
    assert judge(mixed, [old, new]).text == "3 old pods are still there"
    starting = deployment(replicas=3, updatedReplicas=3, availableReplicas=3)
    assert judge(starting, [old, new]).text == "0 of 3 new pods are available"
    assert judge(starting, [old]).text == "there is no ReplicaSet of this template yet"
    arrived = judge(starting, [old, replica_set("2", 3)])
    assert arrived.state == "arrived"
    failed = deployment(
        conditions=[{"type": "Progressing", "reason": "ProgressDeadlineExceeded", "message": "m"}]
    )
    assert judge(failed, [old, new]).state == "failed"
    foreign = replica_set("2", 3)
    foreign["metadata"]["ownerReferences"] = [{"uid": "other"}]
    assert judge(starting, [foreign]).state == "waiting"


@pytest.mark.parametrize(
    ("message", "fix"),
    [
        ("is forbidden: exceeded quota: small", "raise it"),
        ('violates PodSecurity "restricted:latest": seccompProfile', "Pod Security level"),
        ("maximum cpu usage per Container is 1, but limit is 4", "LimitRange"),
        ('admission webhook "policy.example.com" denied the request: no', "its message says why"),
        (
            'error looking up service account slmrank/slmrank-demo: serviceaccount "x" not found',
            "ServiceAccount",
        ),
        ("something new", "kubectl get events"),
    ],
)
def test_why_no_pod_can_be_created(message: str, fix: str) -> None:
    event = {
        "reason": "FailedCreate",
        "message": message,
        "involvedObject": {"kind": "Job", "name": "j"},
    }
    (trouble,) = explain_job("j", [], [event])
    assert trouble.state == UNCREATED
    assert fix in trouble.fix
    assert explain_job("other", [], [event]) == []
    condition = {"type": "ReplicaFailure", "status": "True", "message": message}
    deployment = {"metadata": {"name": "d"}, "status": {"conditions": [condition]}}
    assert explain_deployment(deployment)[0].fix == trouble.fix
    condition["status"] = "False"
    assert explain_deployment(deployment) == []

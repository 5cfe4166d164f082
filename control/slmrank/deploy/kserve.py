"""The same pods under KServe: a runtime that carries them, and a service that uses it."""

from __future__ import annotations

import copy
import shlex

from slmrank.deploy.exposure import scoring_policy
from slmrank.deploy.naming import KSERVE, Object, labelled, selector
from slmrank.deploy.parts import budget
from slmrank.deploy.release import Release
from slmrank.deploy.workload import deployment


def serving_runtime(release: Release) -> Object:
    """The container and volumes of the Deployment. KServe wants the name `kserve-container`, and
    has no init containers here, so the server verifies its files before it starts."""
    pod = copy.deepcopy(deployment(release)["spec"]["template"]["spec"])
    (container,) = pod["containers"]
    container["name"] = "kserve-container"
    # It runs what our init containers do by itself: a runtime has none.
    before = [shlex.join(one["command"]) for one in pod["initContainers"]]
    if release.deploy.storage.bundles_url is not None:
        fetch = pod["initContainers"][0]
        container["envFrom"] = fetch.get("envFrom", [])
        for mount in container["volumeMounts"]:
            mount["readOnly"] = mount.get("readOnly", False) and mount["name"] != "bundles"
    container["command"] = [
        "sh",
        "-c",
        " && ".join([*before, f"exec {shlex.join(container['command'])}"]),
    ]
    grpc, _, metrics = container["ports"]
    # KServe's Service leads to the first port; its name says that HTTP/2 is spoken there.
    container["ports"] = [{**grpc, "name": "h2c"}, metrics]
    container["readinessProbe"]["httpGet"]["port"] = 8000
    container["livenessProbe"]["httpGet"]["port"] = 8000
    kept = ("nodeSelector", "tolerations", "imagePullSecrets", "volumes")
    spec = {
        "supportedModelFormats": [{"name": "slmrank", "version": "1", "autoSelect": False}],
        "protocolVersions": ["grpc-v2"],
        "multiModel": False,
        "containers": [container],
        **{name: pod[name] for name in kept if name in pod},
    }
    kind = ("serving.kserve.io/v1alpha1", "ServingRuntime")
    return labelled(release, *kind, release.object_name, component=KSERVE, spec=spec)


def around(release: Release) -> list[Object]:
    """What the base has for its own pods, for KServe's: who may reach them, and a budget."""
    name = f"{release.object_name}-{KSERVE}"
    return [scoring_policy(release, name, KSERVE), budget(release, name, KSERVE)]


def inference_service(release: Release) -> Object:
    """Runs the runtime in KServe's raw deployment mode, with replicas as planned."""
    scaling = release.deploy.scaling
    pod = deployment(release)["spec"]["template"]["spec"]
    kept = (
        "serviceAccountName",
        "automountServiceAccountToken",
        "enableServiceLinks",
        "securityContext",
        "terminationGracePeriodSeconds",
        "priorityClassName",
    )
    spec = {
        "predictor": {
            "minReplicas": scaling.min_replicas,
            "maxReplicas": scaling.max_replicas,
            # Not those that Services and autoscaler of the base select.
            "labels": selector(release, KSERVE),
            **{name: pod[name] for name in kept if name in pod},
            "model": {"modelFormat": {"name": "slmrank"}, "runtime": release.object_name},
        }
    }
    notes = {
        "serving.kserve.io/deploymentMode": "RawDeployment",
        # Otherwise it adds an autoscaler on CPU utilisation.
        "serving.kserve.io/autoscalerClass": "external",
    }
    kind, name = ("serving.kserve.io/v1beta1", "InferenceService"), release.object_name
    return labelled(release, *kind, name, component=KSERVE, annotations=notes, spec=spec)

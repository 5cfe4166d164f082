"""House rules: what Kubernetes accepts and operators of rankers have regretted (k8s/README.md has
the reasons). They bind our own objects; of other people's they are advice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from slmrank.deploy.check.finding import Finding, Located, PodSpec, advice, mapping, sequence

_SERVING = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet")
_READY_PATH = re.compile(r"/ready(z|iness)?/?$")
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")


def object_advice(given: Located) -> Iterator[Finding]:
    """Advice on one object outside its pod template."""
    if given.native == "PodDisruptionBudget" and "minAvailable" in given.spec:
        yield advice(
            given,
            "spec.minAvailable",
            "pdb-min-available",
            "blocks the drain of a node for ever once no more pods than that are left",
            "use maxUnavailable: 1",
        )
    if given.native == "HorizontalPodAutoscaler":
        metrics = [mapping(one) for one in sequence(given.spec.get("metrics"))]
        if metrics and all(one.get("type") in ("Resource", "ContainerResource") for one in metrics):
            yield advice(
                given,
                "spec.metrics",
                "hpa-utilisation",
                "scales on utilisation alone, which says busy and never says full",
                "scale on work per replica against the capacity measured at the objective",
            )
    if given.native == "Service":
        yield from _grpc_balance(given)
        for number, port in enumerate(sequence(given.spec.get("ports"))):
            if "protocol" not in mapping(port):
                yield _protocol(given, f"spec.ports[{number}]")


def pod_advice(pod: PodSpec) -> Iterator[Finding]:
    """Advice on a pod template."""
    given = pod.owner
    yield from _security(pod)
    for volume in map(mapping, sequence(pod.spec.get("volumes"))):
        if "hostPath" in volume:
            yield advice(
                given,
                f"{pod.path}.spec.volumes",
                "host-path",
                f"volume {volume.get('name')} is a folder of whatever node runs the pod",
                "use a claim or an image volume",
            )
        empty = volume.get("emptyDir")
        if isinstance(empty, dict) and empty.get("medium") == "Memory" and "sizeLimit" not in empty:
            yield advice(
                given,
                f"{pod.path}.spec.volumes",
                "shm-limit",
                f"volume {volume.get('name')} in memory has no sizeLimit",
                "set one; it counts as memory of the pod",
            )
    for path, container in pod.containers():
        yield from _image(given, path, container)
        yield from _resources(given, path, container)
        for number, port in enumerate(sequence(container.get("ports"))):
            if "protocol" not in mapping(port):
                yield _protocol(given, f"{path}.ports[{number}]")
    for path, container in pod.mains():
        yield from _probes(pod, path, container)
    yield from _gpu_placement(pod)
    yield from _drain(pod)


def _security(pod: PodSpec) -> Iterator[Finding]:
    level = mapping(pod.spec.get("securityContext"))
    for path, container in pod.containers():
        own = mapping(container.get("securityContext"))
        wrong = []
        if not own.get("runAsNonRoot", level.get("runAsNonRoot")):
            wrong.append("runAsNonRoot: true")
        if own.get("allowPrivilegeEscalation") is not False:
            wrong.append("allowPrivilegeEscalation: false")
        if "ALL" not in sequence(mapping(own.get("capabilities")).get("drop")):
            wrong.append("capabilities: {drop: [ALL]}")
        profile = mapping(own.get("seccompProfile")) or mapping(level.get("seccompProfile"))
        if profile.get("type") not in ("RuntimeDefault", "Localhost"):
            wrong.append("seccompProfile: {type: RuntimeDefault}")
        if wrong:
            yield advice(
                pod.owner,
                f"{path}.securityContext",
                "restricted",
                f"the restricted Pod Security profile refuses it, missing: {', '.join(wrong)}",
                "add them",
            )


def _image(given: Located, path: str, container: dict[str, Any]) -> Iterator[Finding]:
    image = str(container.get("image", ""))
    if image and not _DIGEST.search(image):
        yield advice(
            given,
            f"{path}.image",
            "image-digest",
            f"{image} can be another image tomorrow",
            "name it by digest: NAME@sha256:...",
        )


def _resources(given: Located, path: str, container: dict[str, Any]) -> Iterator[Finding]:
    resources = mapping(container.get("resources"))
    requests, limits = mapping(resources.get("requests")), mapping(resources.get("limits"))
    numbers = [
        name
        for part in (requests, limits)
        for name, one in part.items()
        if not isinstance(one, str)
    ]
    if numbers:
        yield advice(
            given,
            f"{path}.resources",
            "string-quantity",
            f"{', '.join(sorted(set(numbers)))}: numbers, which strict clients refuse",
            "put amounts into quotes",
        )
    limit = limits.get("memory")
    if limit is None or _bytes(limit) != _bytes(requests.get("memory", limit)):  # unset: the limit
        yield advice(
            given,
            f"{path}.resources",
            "memory-limit",
            "memory has no limit that equals its request",
            "give both the same value",
        )


def _bytes(amount: Any) -> Any:
    """An amount of memory as a number; what is none stays as it is."""
    found = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)([kKMGTPE]?)(i?)", str(amount))
    if not found:
        return str(amount)
    power = " KMGTPE".index(found[2].upper() or " ")
    return float(found[1]) * (1024 if found[3] else 1000) ** power


def _probes(pod: PodSpec, path: str, container: dict[str, Any]) -> Iterator[Finding]:
    if pod.owner.kind not in _SERVING:
        return
    liveness = mapping(container.get("livenessProbe"))
    readiness = mapping(container.get("readinessProbe"))
    startup = mapping(container.get("startupProbe"))
    if liveness and _handler(liveness) == _handler(readiness):
        yield advice(
            pod.owner,
            f"{path}.livenessProbe",
            "same-probe",
            "liveness and readiness ask the same: a pod that is only busy is killed",
            "let liveness ask /v2/health/live",
        )
    alive = str(mapping(liveness.get("httpGet")).get("path", ""))
    if _READY_PATH.search(alive):
        yield advice(
            pod.owner,
            f"{path}.livenessProbe",
            "ready-for-liveness",
            f"liveness asks {alive}, which fails while models load",
            "use /v2/health/live",
        )
    if pod.called and not readiness:
        yield advice(
            pod.owner, path, "readiness", "has no readinessProbe", "ask /v2/models/rank/ready"
        )
    if liveness and not startup and (pod.gpus or pod.owner.ours):
        yield advice(
            pod.owner,
            path,
            "startup-probe",
            "has a livenessProbe and no startupProbe: a slow "
            "load is killed and starts again from zero",
            "add one, sized from the engine",
        )
    deadline = pod.owner.spec.get("progressDeadlineSeconds", 600)
    budget = _budget_s(startup)
    if pod.owner.kind == "Deployment" and startup and isinstance(deadline, int):  # noqa: SIM102
        if deadline <= budget:
            yield advice(
                pod.owner,
                "spec.progressDeadlineSeconds",
                "progress-deadline",
                f"{deadline} s is not above the startup budget of {budget} s: a rollout fails "
                "while its pods may still start",
                f"set it to {budget + 300} or more",
            )


def _gpu_placement(pod: PodSpec) -> Iterator[Finding]:
    if not pod.gpus:
        return
    keys = {str(mapping(one).get("key")) for one in sequence(pod.spec.get("tolerations"))}
    if pod.owner.ours and "nvidia.com/gpu" not in keys:
        yield advice(
            pod.owner,
            f"{pod.path}.spec.tolerations",
            "gpu-toleration",
            "GPU nodes are tainted nvidia.com/gpu and the pod does not tolerate it",
            "add the toleration",
        )
    commands = [str(word) for _, one in pod.containers() for word in sequence(one.get("command"))]
    if pod.owner.ours and re.search(r"--engines?\b", " ".join(commands)) is None:
        return  # PyTorch's kernels run on any
    selected = mapping(pod.spec.get("nodeSelector"))
    affinity = str(mapping(pod.spec.get("affinity")).get("nodeAffinity", ""))
    product = "nvidia.com/gpu.product"
    if product not in selected and product not in affinity:
        yield advice(
            pod.owner,
            f"{pod.path}.spec.nodeSelector",
            "gpu-product",
            "an engine runs on the GPU that it was built for, and any may be chosen",
            f"select {product}",
        )


def _drain(pod: PodSpec) -> Iterator[Finding]:
    """terminationGracePeriodSeconds must hold the preStop pause and the drain."""
    grace = pod.spec.get("terminationGracePeriodSeconds", 30)
    for path, container in pod.mains():
        pause = _pause_s(mapping(mapping(container.get("lifecycle")).get("preStop")))
        drain = _drain_s(container)
        if pause + drain > 0 and isinstance(grace, int) and grace <= pause + drain:
            yield advice(
                pod.owner,
                f"{pod.path}.spec.terminationGracePeriodSeconds",
                "grace-period",
                f"{grace} s do not hold preStop {pause} s and drain {drain} s: running requests "
                "are killed",
                f"set it to {pause + drain + 5}",
            )
        if pod.called and pod.owner.kind == "Deployment" and not pause:
            yield advice(
                pod.owner,
                f"{path}.lifecycle",
                "pre-stop",
                "no preStop pause: clients send to the pod until they hear that it leaves",
                "add preStop: exec: sleep",
            )


def _grpc_balance(given: Located) -> Iterator[Finding]:
    ports = [mapping(one) for one in sequence(given.spec.get("ports"))]
    grpc = any("grpc" in (str(one.get("name")), str(one.get("appProtocol"))) for one in ports)
    inside = given.spec.get("type", "ClusterIP") == "ClusterIP"
    if grpc and inside and given.spec.get("clusterIP") != "None":
        yield advice(
            given,
            "spec.clusterIP",
            "grpc-balance",
            "a gRPC channel through one address sends every call to one pod",
            "make it headless (clusterIP: None) and let clients balance round_robin",
        )


def _handler(probe: dict[str, Any]) -> dict[str, Any]:
    return {name: probe[name] for name in ("exec", "httpGet", "tcpSocket", "grpc") if name in probe}


def _budget_s(startup: dict[str, Any]) -> int:
    period, count = startup.get("periodSeconds", 10), startup.get("failureThreshold", 3)
    delay = startup.get("initialDelaySeconds", 0)
    return delay + period * count if all(isinstance(n, int) for n in (delay, period, count)) else 0


def _pause_s(hook: dict[str, Any]) -> int:
    words = " ".join(str(one) for one in sequence(mapping(hook.get("exec")).get("command")))
    found = re.search(r"\bsleep (\d+)", words)
    native = mapping(hook.get("sleep")).get("seconds")
    return int(found[1]) if found else native if isinstance(native, int) else 0


def _drain_s(container: dict[str, Any]) -> int:
    words = [str(word) for field in ("command", "args") for word in sequence(container.get(field))]
    text = " ".join(words)
    found = re.search(r"--(?:drain|exit-timeout-secs)[ =](\d+)", text)
    return int(found[1]) if found else 0


def _protocol(given: Located, path: str) -> Finding:
    return advice(
        given,
        path,
        "protocol",
        "has no protocol: server-side apply merges ports by number and protocol",
        "write protocol: TCP",
    )

"""House rules: what Kubernetes accepts and operators of rankers have regretted (k8s/README.md has
the reasons). They bind our own objects; of other people's they are advice."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from slmrank.deploy.check.defects import SCALERS, target_of
from slmrank.deploy.check.finding import Finding, Located, PodSpec, mapping, matches, sequence
from slmrank.deploy.workload import SPARE_GPUS

_SERVING = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet")
_READY_PATH = re.compile(r"/ready(z|iness)?/?$")
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
_PRODUCT = "nvidia.com/gpu.product"


def object_advice(given: Located) -> Iterator[Finding]:
    """Advice on one object outside its pod template."""
    if given.native == "PodDisruptionBudget" and "minAvailable" in given.spec:
        message = "blocks the drain of a node for ever once no more pods than that are left"
        fix = "use maxUnavailable: 1"
        yield given.advice("spec.minAvailable", "pdb-min-available", message, fix)
    if given.native == "HorizontalPodAutoscaler":
        metrics = [mapping(one) for one in sequence(given.spec.get("metrics"))]
        if metrics and all(one.get("type") in ("Resource", "ContainerResource") for one in metrics):
            message = "scales on utilisation alone, which says busy and never says full"
            fix = "scale on work per replica against the capacity measured at the objective"
            yield given.advice("spec.metrics", "hpa-utilisation", message, fix)
    if given.native == "Service":
        yield from _grpc_balance(given)
        yield from _protocols(given, "spec.ports", given.spec.get("ports"))


def pod_advice(pod: PodSpec) -> Iterator[Finding]:
    """Advice on a pod template."""
    given, below = pod.owner, f"{pod.path}.spec.volumes"
    yield from _security(pod)
    for volume in map(mapping, sequence(pod.spec.get("volumes"))):
        named = f"volume {volume.get('name')}"
        if "hostPath" in volume:
            message = f"{named} is a folder of whatever node runs the pod"
            yield given.advice(below, "host-path", message, "use a claim or an image volume")
        empty = volume.get("emptyDir")
        if isinstance(empty, dict) and empty.get("medium") == "Memory" and "sizeLimit" not in empty:
            message = f"{named} in memory has no sizeLimit"
            fix = "set one; it counts as memory of the pod"
            yield given.advice(below, "shm-limit", message, fix)
    for path, container in pod.containers():
        image = str(container.get("image", ""))
        if image and not _DIGEST.search(image):
            message = f"{image} can be another image tomorrow"
            fix = "name it by digest: NAME@sha256:..."
            yield given.advice(f"{path}.image", "image-digest", message, fix)
        yield from _resources(given, f"{path}.resources", container)
        yield from _protocols(given, f"{path}.ports", container.get("ports"))
    for path, container in pod.mains():
        yield from _probes(pod, path, container)
    yield from _gpu_placement(pod)
    yield from _drain(pod)


def set_advice(pod: PodSpec, objects: Sequence[Located]) -> Iterator[Finding]:
    """Advice on a pod template among the objects that it belongs with: how the pods of a workload
    are replaced and counted."""
    given = pod.owner
    scalers = (
        one
        for one in objects
        if one.kind in SCALERS
        and one.namespace == given.namespace
        and target_of(one) == (given.kind, given.name)
    )
    scaler = next(scalers, None)
    if scaler is not None and "replicas" in given.spec:
        message = f"every apply resets what {scaler.kind} {scaler.name} decided"
        rule = "replicas-under-autoscaler"
        yield given.advice("spec.replicas", rule, message, "leave replicas out")
    if given.ours and given.kind == "Deployment" and len(objects) > 1:
        yield from _companions(pod, objects)
    if given.kind == "Deployment":
        yield from _rollout(pod)


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
            message = f"the restricted Pod Security profile refuses it, missing: {', '.join(wrong)}"
            yield pod.owner.advice(f"{path}.securityContext", "restricted", message, "add them")


def _resources(given: Located, path: str, container: dict[str, Any]) -> Iterator[Finding]:
    resources = mapping(container.get("resources"))
    requests, limits = mapping(resources.get("requests")), mapping(resources.get("limits"))
    amounts = [*requests.items(), *limits.items()]
    numbers = {name for name, one in amounts if not isinstance(one, str)}
    if numbers:
        message = f"{', '.join(sorted(numbers))}: numbers, which strict clients refuse"
        yield given.advice(path, "string-quantity", message, "put amounts into quotes")
    limit = limits.get("memory")
    if limit is None or _bytes(limit) != _bytes(requests.get("memory", limit)):  # unset: the limit
        message = "memory has no limit that equals its request"
        yield given.advice(path, "memory-limit", message, "give both the same value")


def _bytes(amount: Any) -> Any:
    """An amount of memory as a number; what is none stays as it is."""
    found = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)([kKMGTPE]?)(i?)", str(amount))
    if not found:
        return str(amount)
    power = " KMGTPE".index(found[2].upper() or " ")
    return float(found[1]) * (1024 if found[3] else 1000) ** power


def _probes(pod: PodSpec, path: str, container: dict[str, Any]) -> Iterator[Finding]:
    given = pod.owner
    if given.kind not in _SERVING:
        return
    liveness = mapping(container.get("livenessProbe"))
    readiness = mapping(container.get("readinessProbe"))
    startup = mapping(container.get("startupProbe"))
    if liveness and _handler(liveness) == _handler(readiness):
        message = "liveness and readiness ask the same: a pod that is only busy is killed"
        fix = "let liveness ask /v2/health/live"
        yield given.advice(f"{path}.livenessProbe", "same-probe", message, fix)
    alive = str(mapping(liveness.get("httpGet")).get("path", ""))
    if _READY_PATH.search(alive):
        message = f"liveness asks {alive}, which fails while models load"
        rule = "ready-for-liveness"
        yield given.advice(f"{path}.livenessProbe", rule, message, "use /v2/health/live")
    if pod.called and not readiness:
        message, fix = "has no readinessProbe", "ask /v2/models/rank/ready"
        yield given.advice(path, "readiness", message, fix)
    if liveness and not startup and (pod.gpus or given.ours):
        message = (
            "has a livenessProbe and no startupProbe: a slow load is killed and starts again from "
            "zero"
        )
        yield given.advice(path, "startup-probe", message, "add one, sized from the engine")
    deadline = given.spec.get("progressDeadlineSeconds", 600)
    budget = _budget_s(startup)
    if given.kind == "Deployment" and startup and isinstance(deadline, int) and deadline <= budget:
        message = (
            f"{deadline} s is not above the startup budget of {budget} s: a rollout fails while "
            "its pods may still start"
        )
        where, fix = "spec.progressDeadlineSeconds", f"set it to {budget + 300} or more"
        yield given.advice(where, "progress-deadline", message, fix)


def _gpu_placement(pod: PodSpec) -> Iterator[Finding]:
    if not pod.gpus:
        return
    given, below = pod.owner, f"{pod.path}.spec"
    keys = {str(mapping(one).get("key")) for one in sequence(pod.spec.get("tolerations"))}
    if given.ours and "nvidia.com/gpu" not in keys:
        message = "GPU nodes are tainted nvidia.com/gpu and the pod does not tolerate it"
        yield given.advice(f"{below}.tolerations", "gpu-toleration", message, "add the toleration")
    commands = [str(word) for _, one in pod.containers() for word in sequence(one.get("command"))]
    if given.ours and re.search(r"--engines?\b", " ".join(commands)) is None:
        return  # PyTorch's kernels run on any
    affinity = str(mapping(pod.spec.get("affinity")).get("nodeAffinity", ""))
    if _PRODUCT not in mapping(pod.spec.get("nodeSelector")) and _PRODUCT not in affinity:
        message = "an engine runs on the GPU that it was built for, and any may be chosen"
        yield given.advice(f"{below}.nodeSelector", "gpu-product", message, f"select {_PRODUCT}")


def _drain(pod: PodSpec) -> Iterator[Finding]:
    """terminationGracePeriodSeconds must hold the preStop pause and the drain."""
    grace = pod.spec.get("terminationGracePeriodSeconds", 30)
    for path, container in pod.mains():
        pause = _pause_s(mapping(mapping(container.get("lifecycle")).get("preStop")))
        found = re.search(r"--(?:drain|exit-timeout-secs)[ =](\d+)", _words(container))
        drain = int(found[1]) if found else 0
        if pause + drain > 0 and isinstance(grace, int) and grace <= pause + drain:
            message = (
                f"{grace} s do not hold preStop {pause} s and drain {drain} s: running requests "
                "are killed"
            )
            where = f"{pod.path}.spec.terminationGracePeriodSeconds"
            fix = f"set it to {pause + drain + 5}"
            yield pod.owner.advice(where, "grace-period", message, fix)
        if pod.called and pod.owner.kind == "Deployment" and not pause:
            message = "no preStop pause: clients send to the pod until they hear that it leaves"
            fix = "add preStop: exec: sleep"
            yield pod.owner.advice(f"{path}.lifecycle", "pre-stop", message, fix)


def _rollout(pod: PodSpec) -> Iterator[Finding]:
    given = pod.owner
    strategy = mapping(given.spec.get("strategy"))
    surge = mapping(strategy.get("rollingUpdate")).get("maxSurge", "25%")
    rolling = strategy.get("type", "RollingUpdate") == "RollingUpdate"
    spare = mapping(given.metadata.get("annotations")).get(SPARE_GPUS, "0")
    if pod.gpus and rolling and str(surge) not in ("0", "0%") and str(spare) == "0":
        message = (
            f"maxSurge {surge} needs a GPU more than the replicas hold; without one the new pod "
            "stays Pending and the rollout never ends"
        )
        fix = f"set maxSurge: 0 and maxUnavailable: 1, or declare spare GPUs ({SPARE_GPUS})"
        yield given.advice("spec.strategy.rollingUpdate.maxSurge", "gpu-surge", message, fix)
    for path, container in pod.mains():
        if re.search(r"trtllm-build|\bcontrol build\b", _words(container)):
            message = "the serving pod builds its engine: every start takes the build's minutes"
            fix = "build once in a Job and mount the result read-only"
            yield given.advice(path, "engine-in-pod", message, fix)


def _companions(pod: PodSpec, objects: Sequence[Located]) -> Iterator[Finding]:
    """A Deployment of ours comes with a network policy, and with a disruption budget where clients
    call it."""
    for kind, field in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        chosen = any(
            one.kind == kind
            and one.namespace == pod.owner.namespace
            and matches(mapping(one.spec.get(field)), pod.labels)
            for one in objects
        )
        if not chosen and (pod.called or kind == "NetworkPolicy"):
            message = f"no {kind} of this set selects its pods"
            fix = "render it with `control deploy render`"
            yield pod.owner.advice("", "companion", message, fix)


def _grpc_balance(given: Located) -> Iterator[Finding]:
    ports = [mapping(one) for one in sequence(given.spec.get("ports"))]
    grpc = any("grpc" in (str(one.get("name")), str(one.get("appProtocol"))) for one in ports)
    inside = given.spec.get("type", "ClusterIP") == "ClusterIP"
    if grpc and inside and given.spec.get("clusterIP") != "None":
        message = "a gRPC channel through one address sends every call to one pod"
        fix = "make it headless (clusterIP: None) and let clients balance round_robin"
        yield given.advice("spec.clusterIP", "grpc-balance", message, fix)


def _handler(probe: dict[str, Any]) -> dict[str, Any]:
    return {name: probe[name] for name in ("exec", "httpGet", "tcpSocket", "grpc") if name in probe}


def _budget_s(startup: dict[str, Any]) -> int:
    period, count = startup.get("periodSeconds", 10), startup.get("failureThreshold", 3)
    delay = startup.get("initialDelaySeconds", 0)
    return delay + period * count if all(isinstance(n, int) for n in (delay, period, count)) else 0


def _pause_s(hook: dict[str, Any]) -> int:
    found = re.search(r"\bsleep (\d+)", _words(mapping(hook.get("exec"))))
    native = mapping(hook.get("sleep")).get("seconds")
    return int(found[1]) if found else native if isinstance(native, int) else 0


def _words(given: dict[str, Any]) -> str:
    """What a container or a hook runs, as one text."""
    fields = ("command", "args")
    return " ".join(str(word) for field in fields for word in sequence(given.get(field)))


def _protocols(given: Located, path: str, ports: Any) -> Iterator[Finding]:
    for number, port in enumerate(sequence(ports)):
        if "protocol" not in mapping(port):
            message = "has no protocol: server-side apply merges ports by number and protocol"
            yield given.advice(f"{path}[{number}]", "protocol", message, "write protocol: TCP")

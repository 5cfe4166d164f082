"""Defects of single objects: what an API server refuses although every field is known, and what it
accepts and no kubelet can run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from slmrank.deploy.check.finding import Finding, Located, PodSpec, mapping, matches, sequence

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SERVICE = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_QUANTITY = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(([KMGTPE]i)|[numkMGTPE]|[eE][+-]?\d+)?")
_PORT_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_UNITS = "Ki, Mi, Gi, Ti or k, M, G, T, or m for thousandths"
# Names that are paths of roles and the like: anything but / and %.
_PATH_NAMED = ("rbac.authorization.k8s.io/",)
_LABEL_NAMED = {"Namespace"}
_CHOICES = {
    "imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "protocol": ("TCP", "UDP", "SCTP"),
    "terminationMessagePolicy": ("File", "FallbackToLogsOnError"),
}
# Fields with amounts beside `resources`, by kind.
_AMOUNTS = {
    "HorizontalPodAutoscaler": ("averageValue", "value"),
    "ResourceQuota": ("hard",),
    "PersistentVolume": ("capacity",),
    "LimitRange": ("max", "min", "default", "defaultRequest", "maxLimitRequestRatio"),
    "RuntimeClass": ("podFixed",),
}
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc")
_RESTARTS = {
    "Deployment": ("Always",),
    "StatefulSet": ("Always",),
    "DaemonSet": ("Always",),
    "ReplicaSet": ("Always",),
    "Job": ("Never", "OnFailure"),
    "CronJob": ("Never", "OnFailure"),
}


def object_defects(given: Located) -> Iterator[Finding]:
    """Defects outside the pod template."""
    yield from _names(given)
    yield from _quantities(given, given.content, "")
    if given.native == "Service":
        yield from _service_ports(given)
    elif given.native == "PodDisruptionBudget":
        yield from _budget(given)
    elif given.native == "HorizontalPodAutoscaler":
        yield from _autoscaler(given)
    elif given.native in ("Deployment", "StatefulSet", "DaemonSet"):
        yield from _strategy(given)


def pod_defects(pod: PodSpec) -> Iterator[Finding]:
    """Defects of a pod template."""
    yield from _selector(pod)
    if not pod.mains():
        yield _finding(
            pod.owner, f"{pod.path}.spec.containers", "containers", "there is none", "add one"
        )
    yield from _restart_policy(pod)
    names = Counter(str(container.get("name")) for _, container in pod.containers())
    for name, count in names.items():
        if count > 1:
            yield _finding(
                pod.owner,
                pod.path,
                "duplicate-container",
                f"{count} containers are named {name}",
                "give each its own name",
            )
    yield from _volumes(pod)
    if "labels" in pod.metadata and pod.path:
        for key, value in pod.labels.items():
            where = f"{pod.path}.metadata.labels"
            yield from _label(pod.owner, where, str(key), value, check_value=True)
    for path, container in pod.containers():
        name = str(container.get("name", ""))
        if not _LABEL.fullmatch(name) or len(name) > 63:
            yield _finding(
                pod.owner,
                f"{path}.name",
                "name",
                f"{name!r} is no DNS label",
                "use lower-case letters, digits and '-', at most 63, no '-' at the ends",
            )
        if not container.get("image"):
            yield _finding(pod.owner, f"{path}.image", "image", "is missing", "name an image")
        yield from _choices(pod.owner, path, container)
        yield from _container_ports(pod, path, container)
        yield from _mounts(pod, path, container)
        yield from _resources(pod, path, container)
        declared = {
            str(port.get("name"))
            for port in map(mapping, sequence(container.get("ports")))
            if port.get("name")
        }
        sidecar = container.get("restartPolicy") == "Always"
        for field in _PROBES:
            if (
                isinstance(container.get(field), dict)
                and ".initContainers[" in path
                and not sidecar
            ):
                yield _finding(
                    pod.owner,
                    f"{path}.{field}",
                    "init-probe",
                    "an init container that ends has no probes",
                    "remove it, or make it a sidecar with restartPolicy: Always",
                )
            elif isinstance(container.get(field), dict):
                yield from _probe(pod, f"{path}.{field}", field, container[field], declared)


def _names(given: Located) -> Iterator[Finding]:
    name = given.name
    generated = given.metadata.get("generateName")
    nameless = given.api_group.startswith(("authentication.", "authorization."))
    namespace = given.metadata.get("namespace")
    if isinstance(namespace, str) and not (_LABEL.fullmatch(namespace) and len(namespace) <= 63):
        yield _finding(
            given,
            "metadata.namespace",
            "name",
            f"{namespace!r} is no DNS label",
            "use lower-case letters, digits and '-', at most 63, no '-' at the ends",
        )
    if not name and not generated and not nameless:
        yield _finding(given, "metadata.name", "name", "is missing", "give the object a name")
    elif name and not given.api_version.startswith(_PATH_NAMED):
        if given.native == "Service":
            good, rule = _SERVICE.fullmatch(name) and len(name) <= 63, "start with a letter; "
        elif given.native == "CronJob":
            # Eleven characters are added to the names of its Jobs.
            good, rule = _SUBDOMAIN.fullmatch(name) and len(name) <= 52, "at most 52 characters; "
        elif given.kind in _LABEL_NAMED:
            good, rule = _LABEL.fullmatch(name) and len(name) <= 63, ""
        else:
            good, rule = _SUBDOMAIN.fullmatch(name) and len(name) <= 253, "'.' is allowed; "
        if not good:
            yield _finding(
                given,
                "metadata.name",
                "name",
                f"{name!r} is not a valid name",
                f"use lower-case letters, digits and '-', {rule}no '-' at the ends",
            )
    for field in ("labels", "annotations"):
        for key, value in mapping(given.metadata.get(field)).items():
            yield from _label(given, f"metadata.{field}", str(key), value, field == "labels")


def _label(given: Located, path: str, key: str, value: Any, check_value: bool) -> Iterator[Finding]:
    prefix, slash, name = key.rpartition("/")
    good_prefix = not slash or (_SUBDOMAIN.fullmatch(prefix.lower()) and len(prefix) <= 253)
    if not good_prefix or not _QUALIFIED.fullmatch(name) or len(name) > 63:
        yield _finding(
            given,
            path,
            "label",
            f"{key!r} is not a valid key",
            "at most 63 letters, digits, '-', '_' and '.', with an optional prefix and '/'",
        )
    if (
        check_value
        and isinstance(value, str)
        and value
        and (not _QUALIFIED.fullmatch(value) or len(value) > 63)
    ):
        yield _finding(
            given,
            f"{path}.{key}",
            "label",
            f"{value!r} is not a valid label value",
            "at most 63 letters, digits, '-', '_' and '.'; put other texts into annotations",
        )


def _quantities(given: Located, value: Any, path: str) -> Iterator[Finding]:
    """Amounts wherever the API has them, by the names of their fields."""
    if isinstance(value, list):
        for number, one in enumerate(value):
            yield from _quantities(given, one, f"{path}[{number}]")
        return
    if not isinstance(value, dict):
        return
    for name, inner in value.items():
        below = f"{path}.{name}" if path else str(name)
        if name == "resources" and isinstance(inner, dict):
            for kind in ("requests", "limits"):
                for resource, amount in mapping(inner.get(kind)).items():
                    yield from _quantity(given, f"{below}.{kind}.{resource}", amount)
        if name == "emptyDir" and isinstance(inner, dict) and "sizeLimit" in inner:
            yield from _quantity(given, f"{below}.sizeLimit", inner["sizeLimit"])
        if name in _AMOUNTS.get(given.kind, ()):
            amounts = inner if isinstance(inner, dict) else {"": inner}
            for resource, amount in amounts.items():
                yield from _quantity(given, f"{below}.{resource}".rstrip("."), amount)
        if given.kind not in ("ConfigMap", "Secret", "CustomResourceDefinition"):
            yield from _quantities(given, inner, below)


def _quantity(given: Located, path: str, amount: Any) -> Iterator[Finding]:
    if amount is None or isinstance(amount, bool | dict | list):
        return  # the schema's business
    text = str(amount)
    if not _QUANTITY.fullmatch(text):
        near = re.fullmatch(r"([\d.]+)\s*([KMGTPE])i?[Bb]", text)
        fix = f"write {near[1]}{near[2]}i" if near else f"a number with {_UNITS}"
        yield _finding(given, path, "quantity", f"{text!r} is not a quantity", fix)
    elif text.startswith("-"):
        yield _finding(given, path, "quantity", f"{text} is below 0", "give 0 or more")


def _service_ports(given: Located) -> Iterator[Finding]:
    ports = [mapping(one) for one in sequence(given.spec.get("ports"))]
    names = Counter(str(one["name"]) for one in ports if one.get("name"))
    yield from _twice(given, "spec.ports", names)
    if len(ports) > 1 and any(not one.get("name") for one in ports):
        yield _finding(
            given,
            "spec.ports",
            "port-name",
            "several ports and one has no name",
            "name every port",
        )
    pairs = Counter((str(one.get("port")), str(one.get("protocol", "TCP"))) for one in ports)
    for (number, protocol), count in pairs.items():
        if count > 1:
            yield _finding(
                given,
                "spec.ports",
                "duplicate-port",
                f"{protocol} port {number} stands twice",
                "keep one of them",
            )
    for place, one in enumerate(ports):
        yield from _choices(given, f"spec.ports[{place}]", one)
        name = one.get("name")
        if name and (not _LABEL.fullmatch(str(name)) or len(str(name)) > 63):
            yield _finding(
                given,
                f"spec.ports[{place}].name",
                "port-name",
                f"{name!r} is no DNS label",
                "use lower-case letters, digits and '-'",
            )
        yield from _port_number(given, f"spec.ports[{place}].port", one.get("port"))
        target = one.get("targetPort")
        if isinstance(target, str):
            yield from _port_name(given, f"spec.ports[{place}].targetPort", target)
        else:
            yield from _port_number(given, f"spec.ports[{place}].targetPort", target)


def _budget(given: Located) -> Iterator[Finding]:
    if {"minAvailable", "maxUnavailable"} <= set(given.spec):
        yield _finding(
            given,
            "spec",
            "pdb-both",
            "minAvailable and maxUnavailable are both set",
            "keep maxUnavailable",
        )


def _autoscaler(given: Located) -> Iterator[Finding]:
    low, high = given.spec.get("minReplicas", 1), given.spec.get("maxReplicas")
    if isinstance(low, int) and isinstance(high, int) and high < low:
        yield _finding(
            given,
            "spec.maxReplicas",
            "hpa-bounds",
            f"{high} is below minReplicas {low}",
            "raise maxReplicas",
        )


def _strategy(given: Located) -> Iterator[Finding]:
    field = "strategy" if given.kind == "Deployment" else "updateStrategy"
    strategy = mapping(given.spec.get(field))
    rolling = strategy.get("rollingUpdate")
    if rolling is not None and strategy.get("type") == "Recreate":
        yield _finding(
            given,
            f"spec.{field}",
            "strategy",
            f"{strategy['type']} has no rollingUpdate",
            "remove rollingUpdate",
        )
        return
    limits = mapping(rolling)
    # Unset is 25 % for a Deployment, 1 and 0 for a DaemonSet.
    deployment = given.native == "Deployment"
    surge = limits.get("maxSurge", "25%" if deployment else 0)
    down = limits.get("maxUnavailable", "25%" if deployment else 1)
    where = f"spec.{field}.rollingUpdate"
    for name, value in (("maxSurge", surge), ("maxUnavailable", down)):
        if not re.fullmatch(r"\d+|\d{1,3}%", str(value)):
            yield _finding(
                given,
                f"{where}.{name}",
                "rollout-amount",
                f"{value!r} is neither a number of pods nor a percentage",
                "write 1 or 25%",
            )
    if given.native == "StatefulSet":
        if "maxUnavailable" in limits and _zero(down):
            yield _finding(
                given,
                f"{where}.maxUnavailable",
                "rollout-stuck",
                "0 replaces no pod",
                "set it to 1",
            )
        return
    if _zero(surge) and _zero(down):
        yield _finding(
            given,
            where,
            "rollout-stuck",
            "maxSurge and maxUnavailable are both 0: no pod can ever be replaced",
            "set one of them to 1",
        )
    elif given.native == "DaemonSet" and not _zero(surge) and not _zero(down):
        yield _finding(
            given,
            where,
            "rollout-both",
            "a DaemonSet may surge or be unavailable, not both (maxUnavailable is 1 unless set)",
            "set one of them to 0",
        )


def _selector(pod: PodSpec) -> Iterator[Finding]:
    given = pod.owner
    selector = given.spec.get("selector")
    if given.native == "ReplicationController":
        if isinstance(selector, dict) and not selector.items() <= pod.labels.items():
            yield _finding(
                given,
                "spec.selector",
                "selector",
                f"{selector} does not match the labels of the template, {pod.labels}",
                "give both the same labels",
            )
        return
    if given.native == "Job":
        manual = given.spec.get("manualSelector") is True
        if manual and isinstance(selector, dict) and not matches(selector, pod.labels):
            yield _finding(
                given,
                "spec.selector",
                "selector",
                f"{_shown(selector)} does not match the labels of the template, {pod.labels}",
                "give both the same labels",
            )
        return
    if given.native not in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"):
        return
    if not isinstance(selector, dict) or not selector:
        yield _finding(
            given,
            "spec.selector",
            "selector",
            "is missing or empty",
            "select by labels that the template has",
        )
    elif not matches(selector, pod.labels):
        yield _finding(
            given,
            "spec.selector",
            "selector",
            f"{_shown(selector)} does not match the labels of the template, {pod.labels}",
            "give both the same labels",
        )


def _restart_policy(pod: PodSpec) -> Iterator[Finding]:
    allowed = _RESTARTS.get(pod.owner.native)
    given = pod.spec.get("restartPolicy", "Always")
    if allowed is not None and given not in allowed:
        yield _finding(
            pod.owner,
            f"{pod.path}.spec.restartPolicy",
            "restart-policy",
            f"{given} is not possible in a {pod.owner.kind}",
            f"use {' or '.join(allowed)}",
        )


def _choices(given: Located, path: str, content: dict[str, Any]) -> Iterator[Finding]:
    """Words that the schemas do not list."""
    for field, words in _CHOICES.items():
        value = content.get(field)
        if isinstance(value, str) and value not in words:
            near = next((word for word in words if word.lower() == value.lower()), None)
            yield _finding(
                given,
                f"{path}.{field}".lstrip("."),
                "choice",
                f"{value!r} is none of {', '.join(words)}",
                f"write {near}" if near else "use one of them",
            )


def _volumes(pod: PodSpec) -> Iterator[Finding]:
    volumes = [mapping(one) for one in sequence(pod.spec.get("volumes"))]
    where = f"{pod.path}.spec.volumes"
    for name, count in Counter(str(one.get("name")) for one in volumes).items():
        if count > 1:
            yield _finding(
                pod.owner, where, "duplicate-volume", f"{count} are named {name}", "keep one"
            )
        if name != "None" and not (_LABEL.fullmatch(name) and len(name) <= 63):
            yield _finding(
                pod.owner,
                where,
                "name",
                f"{name!r} is no DNS label",
                "use lower-case letters, digits and '-', at most 63",
            )
    for one in volumes:
        sources = [key for key in one if key != "name"]
        if len(sources) > 1:
            yield _finding(
                pod.owner,
                where,
                "volume-sources",
                f"volume {one.get('name')} has {len(sources)} sources: {sources}",
                "keep one",
            )


def _container_ports(pod: PodSpec, path: str, container: dict[str, Any]) -> Iterator[Finding]:
    ports = [mapping(one) for one in sequence(container.get("ports"))]
    names = Counter(str(one["name"]) for one in ports if one.get("name"))
    yield from _twice(pod.owner, f"{path}.ports", names)
    for number, one in enumerate(ports):
        yield from _choices(pod.owner, f"{path}.ports[{number}]", one)
        if one.get("name"):
            yield from _port_name(pod.owner, f"{path}.ports[{number}].name", str(one["name"]))
        where = f"{path}.ports[{number}].containerPort"
        yield from _port_number(pod.owner, where, one.get("containerPort"))


def _mounts(pod: PodSpec, path: str, container: dict[str, Any]) -> Iterator[Finding]:
    volumes = {str(mapping(one).get("name")) for one in sequence(pod.spec.get("volumes"))}
    claims = sequence(pod.owner.spec.get("volumeClaimTemplates"))
    volumes |= {str(mapping(mapping(one).get("metadata")).get("name")) for one in claims}
    mounts = [mapping(one) for one in sequence(container.get("volumeMounts"))]
    for number, one in enumerate(map(mapping, sequence(container.get("volumeDevices")))):
        if one.get("name") is not None and str(one["name"]) not in volumes:
            yield _finding(
                pod.owner,
                f"{path}.volumeDevices[{number}]",
                "missing-volume",
                f"the pod has no volume {one['name']!r}",
                f"declare it, or use one of {', '.join(sorted(volumes)) or 'none'}",
            )
    for number, one in enumerate(mounts):
        if one.get("name") is not None and str(one["name"]) not in volumes:
            yield _finding(
                pod.owner,
                f"{path}.volumeMounts[{number}]",
                "missing-volume",
                f"the pod has no volume {one['name']!r}",
                f"declare it, or mount one of {', '.join(sorted(volumes)) or 'none'}",
            )
    places = Counter(str(one.get("mountPath")) for one in mounts)
    for place, count in places.items():
        if count > 1:
            yield _finding(
                pod.owner,
                f"{path}.volumeMounts",
                "duplicate-mount",
                f"{place} is mounted {count} times",
                "keep one of them",
            )


def _resources(pod: PodSpec, path: str, container: dict[str, Any]) -> Iterator[Finding]:
    resources = mapping(container.get("resources"))
    requests, limits = mapping(resources.get("requests")), mapping(resources.get("limits"))
    for name in sorted({*map(str, requests), *map(str, limits)}):
        asked, limit = requests.get(name), limits.get(name)
        where = f"{path}.resources"
        if _extended(name):
            if limit is None or (asked is not None and str(asked) != str(limit)):
                yield _finding(
                    pod.owner,
                    where,
                    "gpu-request",
                    f"{name}: request {asked}, limit {limit}; they must be equal",
                    "set the limit; the request follows it",
                )
            elif not str(limit).isdigit():
                yield _finding(
                    pod.owner,
                    where,
                    "gpu-request",
                    f"{name}: {limit} is no whole number",
                    "whole devices only",
                )
        elif asked is not None and limit is not None and _amount(asked) > _amount(limit):
            yield _finding(
                pod.owner,
                where,
                "request-above-limit",
                f"{name}: request {asked} is above limit {limit}",
                "raise the limit",
            )


def _probe(
    pod: PodSpec, path: str, field: str, probe: dict[str, Any], declared: set[str]
) -> Iterator[Finding]:
    successes = probe.get("successThreshold", 1)
    if field != "readinessProbe" and successes != 1:
        yield _finding(
            pod.owner,
            f"{path}.successThreshold",
            "probe-successes",
            f"{successes} is not possible for a {field}",
            "leave it out; it must be 1",
        )
    handlers = [name for name in _HANDLERS if name in probe]
    if len(handlers) != 1:
        yield _finding(
            pod.owner,
            path,
            "probe-handler",
            f"has {len(handlers)} handlers: {handlers}",
            "one of exec, httpGet, tcpSocket, grpc",
        )
    for name in ("httpGet", "tcpSocket"):
        port = mapping(probe.get(name)).get("port")
        if isinstance(port, str) and port not in declared:
            yield _finding(
                pod.owner,
                f"{path}.{name}.port",
                "probe-port",
                f"no port of this container is named {port!r}",
                f"use one of {', '.join(sorted(declared)) or 'the numbers'}, or declare it",
            )


def _port_name(given: Located, path: str, name: str) -> Iterator[Finding]:
    good = _PORT_NAME.fullmatch(name) and len(name) <= 15 and re.search("[a-z]", name)
    if not good:
        yield _finding(
            given,
            path,
            "port-name",
            f"{name!r} is no valid port name",
            "at most 15 lower-case letters, digits and single '-', with at least one letter",
        )


def _port_number(given: Located, path: str, port: Any) -> Iterator[Finding]:
    if isinstance(port, int) and not 1 <= port <= 65535:
        yield _finding(given, path, "port", f"{port} is no port", "1 to 65535")


def _twice(given: Located, path: str, names: Counter[str]) -> Iterator[Finding]:
    for name, count in names.items():
        if count > 1:
            yield _finding(
                given,
                path,
                "duplicate-port-name",
                f"{count} ports are named {name!r}",
                "give each port its own name",
            )


def _extended(name: str) -> bool:
    """GPUs and other devices: named with a domain that is not Kubernetes' own."""
    return "/" in name and "kubernetes.io/" not in name and not name.startswith("requests.")


def _zero(value: Any) -> bool:
    return re.fullmatch(r"0+%?", str(value)) is not None


def _amount(value: Any) -> float:
    """A quantity as a number; one that cannot be read is 0, `_quantity` tells of it."""
    text = str(value)
    scale = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
    scale |= {f"{unit}i": 1024.0**power for power, unit in enumerate("KMGTPE", start=1)}
    for suffix in sorted(scale, key=len, reverse=True):
        if text.endswith(suffix):
            text, factor = text.removesuffix(suffix), scale[suffix]
            break
    else:
        factor = 1.0
    try:
        return float(text) * factor
    except ValueError:
        return 0.0


def _shown(selector: dict[str, Any]) -> str:
    return str(selector.get("matchLabels", selector))


def _finding(given: Located, path: str, rule: str, message: str, fix: str) -> Finding:
    return Finding(rule=rule, where=given.at(path), message=message, fix=fix)

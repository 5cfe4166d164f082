"""What a check says, and the objects that it looks at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from slmrank.deploy.naming import COMPONENT, MANAGED_BY, MANAGER, WATCH

Level = Literal["error", "advice"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault: the rule's name, where it is, what is wrong and what to do about it. An error is
    what Kubernetes refuses, or accepts and can never run; an advice is a house rule."""

    rule: str
    where: str
    message: str
    fix: str
    level: Level = "error"


@dataclass(frozen=True, kw_only=True)
class Located:
    """An object, where it came from, and the set that it is applied with."""

    source: str
    content: dict[str, Any]
    group: str = ""

    @property
    def kind(self) -> str:
        return str(self.content.get("kind", ""))

    @property
    def api_group(self) -> str:
        return self.api_version.rpartition("/")[0]

    @property
    def native(self) -> str:
        """The kind, where it is one that the rules know; empty for the same name elsewhere."""
        return self.kind if self.api_group in _KNOWN_GROUPS else ""

    @property
    def api_version(self) -> str:
        return str(self.content.get("apiVersion", ""))

    @property
    def metadata(self) -> dict[str, Any]:
        return mapping(self.content.get("metadata"))

    @property
    def name(self) -> str:
        return str(self.metadata.get("name", ""))

    @property
    def namespace(self) -> str:
        return str(self.metadata.get("namespace", ""))

    @property
    def spec(self) -> dict[str, Any]:
        return mapping(self.content.get("spec"))

    @property
    def ours(self) -> bool:
        """Whether the house rules bind it."""
        return mapping(self.metadata.get("labels")).get(MANAGED_BY) == MANAGER

    def fault(
        self, path: str, rule: str, message: str, fix: str, level: Level = "error"
    ) -> Finding:
        """A finding about this object, or what lies at a path in it."""
        named = f"{self.source}: {self.kind} {self.name}".rstrip()
        where = f"{named}: {path}" if path else named
        return Finding(rule=rule, where=where, message=message, fix=fix, level=level)

    def advice(self, path: str, rule: str, message: str, fix: str) -> Finding:
        """A finding that binds our own objects and advises others."""
        return self.fault(path, rule, message, fix, "advice")


@dataclass(frozen=True, kw_only=True)
class PodSpec:
    """A pod template inside an object: the path to it, its metadata and its spec."""

    owner: Located
    path: str
    metadata: dict[str, Any]
    spec: dict[str, Any]

    @property
    def labels(self) -> dict[str, Any]:
        return mapping(self.metadata.get("labels"))

    @property
    def called(self) -> bool:
        """A pod of ours that clients send to; nobody calls a follower."""
        return self.owner.ours and self.labels.get(COMPONENT) != WATCH

    def containers(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(path, container) of every container, init containers first."""
        for field in ("initContainers", "containers", "ephemeralContainers"):
            for number, one in enumerate(sequence(self.spec.get(field))):
                if isinstance(one, dict):
                    yield f"{self.path}.spec.{field}[{number}]", one

    def mains(self) -> list[tuple[str, dict[str, Any]]]:
        return [one for one in self.containers() if ".containers[" in one[0]]

    @property
    def gpus(self) -> int:
        """Whole GPUs that one pod asks for."""
        return sum(
            int(str(amount))
            for _, container in self.containers()
            for name, amount in mapping(mapping(container.get("resources")).get("limits")).items()
            if name == "nvidia.com/gpu" and str(amount).isdigit()
        )


_TEMPLATES = {
    ("apps", "Deployment"): ("spec", "template"),
    ("apps", "StatefulSet"): ("spec", "template"),
    ("apps", "DaemonSet"): ("spec", "template"),
    ("apps", "ReplicaSet"): ("spec", "template"),
    ("", "ReplicationController"): ("spec", "template"),
    ("", "PodTemplate"): ("template",),
    ("batch", "Job"): ("spec", "template"),
    ("batch", "CronJob"): ("spec", "jobTemplate", "spec", "template"),
}
# Groups whose kinds the rules know by name; other groups have kinds of the same names.
_KNOWN_GROUPS = {"", "apps", "batch", "autoscaling", "policy", "extensions", "networking.k8s.io"}
_KNOWN_GROUPS |= {"keda.sh", "serving.kserve.io"}


def pod_of(given: Located) -> PodSpec | None:
    """The pod template of a workload, a pod itself, or None."""
    if given.kind == "Pod" and given.api_version == "v1":
        return PodSpec(owner=given, path="", metadata=given.metadata, spec=given.spec)
    path = _TEMPLATES.get((given.api_group, given.kind))
    if path is None:
        return None
    found: Any = given.content
    for key in path:
        found = mapping(found).get(key)
    template = mapping(found)
    return PodSpec(
        owner=given,
        path=".".join(path),
        metadata=mapping(template.get("metadata")),
        spec=mapping(template.get("spec")),
    )


def matches(selector: dict[str, Any], labels: dict[str, Any]) -> bool:
    """Whether a label selector (matchLabels, matchExpressions) selects these labels."""
    for key, value in mapping(selector.get("matchLabels")).items():
        if labels.get(key) != value:
            return False
    for one in sequence(selector.get("matchExpressions")):
        expression = mapping(one)
        name, values = str(expression.get("key")), sequence(expression.get("values"))
        held = {
            "In": labels.get(name) in values,
            "NotIn": labels.get(name) not in values,
            "Exists": name in labels,
            "DoesNotExist": name not in labels,
        }
        if not held.get(str(expression.get("operator")), True):
            return False
    return True


def mapping(value: Any) -> dict[str, Any]:
    """The value when it is a mapping, else an empty one: types are the schema's business."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> Sequence[Any]:
    """The value when it is a list, else an empty one."""
    return value if isinstance(value, list) else ()

"""All rules over a set of manifests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from slmrank.deploy.check.defects import object_defects, pod_defects, set_defects
from slmrank.deploy.check.finding import Finding, Located, pod_of
from slmrank.deploy.check.house import object_advice, pod_advice, set_advice
from slmrank.deploy.check.schema import Crds, check_schema
from slmrank.deploy.naming import Object


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The result over some objects."""

    objects: int
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> list[Finding]:
        return [one for one in self.findings if one.level == "error"]

    @property
    def advice(self) -> list[Finding]:
        return [one for one in self.findings if one.level == "advice"]


def check(
    objects: Sequence[Located],
    *,
    versions: Sequence[str],
    crds: Crds,
    house: bool = False,
    read: Iterable[Finding] = (),
) -> Checked:
    """Every finding of `objects`, each once. Advice on our own objects counts as an error, and on
    all with `house`. `read` are findings of the reading itself."""
    found: list[Finding] = list(read)
    for one in objects:
        found += _schemas(one, versions, crds)
        found += object_defects(one)
        found += _levelled(object_advice(one), one.ours or house)
        pod = pod_of(one)
        if pod is not None:
            found += pod_defects(pod)
            found += _levelled(pod_advice(pod), one.ours or house)
    for group in dict.fromkeys(one.group for one in objects):
        together = [one for one in objects if one.group == group]
        pods = [pod for pod in map(pod_of, together) if pod is not None]
        found += set_defects(together, pods)
        for pod in pods:
            found += _levelled(set_advice(pod, together), pod.owner.ours or house)
    return Checked(objects=len(objects), findings=tuple(dict.fromkeys(found)))


def check_rendered(objects: Sequence[Object], version: str, crds: Crds) -> Checked:
    """The rules over objects that were just rendered."""
    located = [Located(source="rendered", content=one) for one in objects]
    return check(located, versions=[version], crds=crds)


def _schemas(one: Located, versions: Sequence[str], crds: Crds) -> list[Finding]:
    """One finding per fault, whatever the number of versions that have it. What the newest version
    knows is no fault: it is advice about the older ones."""
    seen: dict[tuple[str, str], tuple[Finding, list[str]]] = {}
    for version in versions:
        for finding in check_schema(one, version, crds):
            key = (finding.rule, finding.where)
            seen.setdefault(key, (finding, []))[1].append(version)
    found = []
    for finding, where in seen.values():
        if versions[-1] in where:
            found.append(finding)
            continue
        span = where[0] if len(where) == 1 else f"{where[0]} to {where[-1]}"
        told = f"{finding.message} in Kubernetes {span}"
        fix = f"use it on newer clusters only, or check for yours: --kubernetes {versions[-1]}"
        found.append(replace(finding, message=told, fix=fix, level="advice"))
    return found


def _levelled(findings: Iterable[Finding], binding: bool) -> list[Finding]:
    return [replace(one, level="error") if binding else one for one in findings]

"""The folder `k8s/`: which rendered file holds what, and whether what lies there is still that.

base/            one file per object, kustomization.yaml
monitoring/      what needs the Prometheus operator, promtool tests, dashboard
optional/        KEDA, Gateway API, KServe: take what the cluster has
access/          the deployer's Role, applied once by an administrator
overlays/NAME/   release.yaml and the patch from base to it; kustomization.yaml is yours
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from slmrank.artifacts import write_atomic
from slmrank.deploy.access import deployer_role
from slmrank.deploy.dashboard import dashboard
from slmrank.deploy.exposure import grpc_route
from slmrank.deploy.kserve import inference_service, serving_runtime
from slmrank.deploy.monitoring import adapter_values, rule_groups, rule_tests
from slmrank.deploy.naming import MANAGER, Object
from slmrank.deploy.overlay import overlay_between
from slmrank.deploy.release import RELEASE_FILE, Release, load_release
from slmrank.deploy.render import render_base, render_monitoring
from slmrank.deploy.scaling import scaled_object
from slmrank.deploy.yaml_text import to_documents, to_yaml
from slmrank.errors import DeployError

BASE, OVERLAYS = "base", "overlays"
Files = dict[str, str]
_KUSTOMIZE = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
_GENERATED = "# Rendered from release.yaml by `control deploy render`; changes here are lost.\n"


@dataclass(frozen=True, kw_only=True)
class Stale:
    """A file that is not what would be rendered; `why` is changed, missing or unexpected."""

    path: str
    why: str


def base_files(release: Release) -> Files:
    """Files by path below `k8s/`, without the overlays."""
    files: Files = {f"{BASE}/{RELEASE_FILE}": release.to_yaml()}
    files |= _folder(BASE, render_base(release))
    files |= _beside("", release)
    files["access/deployer-role.yaml"] = _GENERATED + to_yaml(deployer_role(release))
    return files


def _beside(prefix: str, release: Release) -> Files:
    """What goes with a deployment where the cluster has the kinds: rules and thresholds follow the
    capacity of its engine."""
    prometheus = f"http://prometheus-operated.{release.deploy.monitoring_namespace}.svc:9090"
    files = _folder(
        f"{prefix}monitoring",
        render_monitoring(release),
        {
            "configMapGenerator": [
                {
                    "name": f"{release.object_name}-dashboard",
                    "namespace": release.deploy.namespace,
                    "files": ["dashboard.json"],
                    "options": {
                        "labels": {
                            "app.kubernetes.io/managed-by": MANAGER,
                            "grafana_dashboard": "1",
                        }
                    },
                }
            ]
        },
    )
    files[f"{prefix}monitoring/dashboard.json"] = json.dumps(dashboard(release), indent=1) + "\n"
    files[f"{prefix}monitoring/rules.yaml"] = _GENERATED + to_yaml({"groups": rule_groups(release)})
    files[f"{prefix}monitoring/rules.test.yaml"] = _GENERATED + to_yaml(rule_tests(release))
    files[f"{prefix}monitoring/adapter-values.yaml"] = _GENERATED + to_yaml(adapter_values())
    optional = {
        "keda": [scaled_object(release, prometheus)],
        "gateway": [grpc_route(release)],
        "kserve": [serving_runtime(release), inference_service(release)],
    }
    for name, objects in optional.items():
        files[f"{prefix}optional/{name}.yaml"] = _GENERATED + to_documents(objects)
    return files


def overlay_files(name: str, base: Release, wanted: Release) -> Files:
    """Files of one overlay below `k8s/`: the patch and the objects that lead from the base to
    another release. Its kustomization.yaml belongs to people; this one is a start."""
    patches, extra = overlay_between(render_base(base), render_base(wanted))
    folder = f"{OVERLAYS}/{name}"
    files = {
        f"{folder}/{RELEASE_FILE}": wanted.to_yaml(),
        f"{folder}/engine.patch.yaml": _GENERATED + to_documents(patches),
    }
    if extra:
        files[f"{folder}/engine.yaml"] = _GENERATED + to_documents(extra)
    return {**files, **_beside(f"{folder}/", wanted)}


def first_kustomization(files: Mapping[str, str]) -> str:
    """The kustomization.yaml of a new overlay."""
    resources = ["../../base"]
    if any(path.endswith("/engine.yaml") for path in files):
        resources.append("engine.yaml")
    content = {**_KUSTOMIZE, "resources": resources, "patches": [{"path": "engine.patch.yaml"}]}
    return "# Yours: add what differs in your cluster. engine.* are rendered.\n" + to_yaml(content)


def all_files(folder: Path) -> Files:
    """Everything that the releases below `folder` render to. Raises DeployError when there is no
    base."""
    base_path = folder / BASE / RELEASE_FILE
    if not base_path.is_file():
        raise DeployError(f"{base_path} does not exist", "render a spec first: see --help")
    base = load_release(base_path)
    files = base_files(base)
    for path in sorted((folder / OVERLAYS).glob(f"*/{RELEASE_FILE}")):
        files |= overlay_files(path.parent.name, base, load_release(path))
    return files


def find_stale(folder: Path, files: Mapping[str, str]) -> list[Stale]:
    """What in `folder` differs from `files`; other people's files are left alone, except in the
    folders that are wholly rendered."""
    stale = []
    for name, text in sorted(files.items()):
        path = folder / name
        if not path.is_file():
            stale.append(Stale(path=name, why="missing"))
        elif path.read_text(encoding="utf-8") != text:
            stale.append(Stale(path=name, why="changed"))
    stale += [Stale(path=name, why="unexpected") for name in _unexpected(folder, files)]
    return stale


def write_files(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Write what differs, remove what is no longer rendered; returns the paths touched."""
    touched = []
    for one in find_stale(folder, files):
        path = folder / one.path
        if one.why == "unexpected":
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, files[one.path])
        touched.append(one.path)
    return touched


def _unexpected(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Files of an earlier rendering; what people put beside them is theirs."""
    found = [
        path
        for path in sorted((folder / BASE).glob("*.yaml"))
        if path.read_text(encoding="utf-8", errors="replace").startswith(_GENERATED)
    ]
    names = [str(path.relative_to(folder)) for path in found]
    return [name for name in names if name not in files]


def _folder(name: str, objects: list[Object], more: Mapping[str, object] | None = None) -> Files:
    """One file per object, and a kustomization that lists them in order."""
    files: Files = {}
    for one in objects:
        files[f"{name}/{_file_name(one, objects)}"] = _GENERATED + to_yaml(one)
    resources = [path.removeprefix(f"{name}/") for path in files]
    content = {**_KUSTOMIZE, "resources": resources, **(more or {})}
    files[f"{name}/kustomization.yaml"] = _GENERATED + to_yaml(content)
    return files


def _file_name(given: Object, objects: list[Object]) -> str:
    """By kind; several of one kind also by what tells them apart."""
    kind = given["kind"].lower()
    same = [one for one in objects if one["kind"] == given["kind"]]
    if len(same) == 1:
        return f"{kind}.yaml"
    name = given["metadata"]["name"]
    others = [one["metadata"]["name"] for one in same if one is not given]
    if given["kind"] == "Service" and any(other.startswith(name) for other in others):
        return f"{kind}-grpc.yaml"
    if given["kind"] == "Service":
        return f"{kind}-{name.rsplit('-', 1)[-1]}.yaml"
    return f"{kind}-{name}.yaml"

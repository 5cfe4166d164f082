"""A folder of rendered manifests: which file holds what, and whether what lies there is still that.

release.yaml     what everything below is rendered from
*.yaml           one file per object, kustomization.yaml
monitoring/      what needs the Prometheus operator, rules for promtool, dashboard
optional/        KEDA, Gateway API, KServe, KubeRay, the rerank endpoint: take what the cluster has
access/          the deployer's Role, applied once by an administrator
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from slmrank.artifacts import write_all
from slmrank.deploy.access import deployer_role
from slmrank.deploy.catalogue import ray_job, ray_policy
from slmrank.deploy.dashboard import dashboard
from slmrank.deploy.exposure import grpc_route
from slmrank.deploy.kserve import around, inference_service, serving_runtime
from slmrank.deploy.monitoring import adapter_values, rule_groups
from slmrank.deploy.naming import MANAGED_BY, MANAGER, Object
from slmrank.deploy.release import RELEASE_FILE, Release, load_release
from slmrank.deploy.render import render_base, render_monitoring
from slmrank.deploy.rerank import rerank_objects
from slmrank.deploy.scaling import scaled_object
from slmrank.deploy.yaml_text import to_documents, to_yaml
from slmrank.errors import DeployError

Files = dict[str, str]
_KUSTOMIZE = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
_GENERATED = "# Rendered from release.yaml by `control deploy render`; changes here are lost.\n"


def release_files(release: Release) -> Files:
    """Every file of a release's folder, by path inside it."""
    monitoring = f"{release.deploy.monitoring_namespace}.svc:9090"
    generator = {
        "name": f"{release.object_name}-dashboard",
        "namespace": release.deploy.namespace,
        "files": ["dashboard.json"],
        "options": {"labels": {MANAGED_BY: MANAGER, "grafana_dashboard": "1"}},
    }
    optional = {
        "keda": [scaled_object(release, f"http://prometheus-operated.{monitoring}")],
        "gateway": [grpc_route(release)],
        "rerank": rerank_objects(release),
        "rayjob": [ray_policy(release), ray_job(release)],
        "kserve": [serving_runtime(release), inference_service(release), *around(release)],
    }
    return {
        RELEASE_FILE: release.to_yaml(),
        **_folder("", render_base(release)),
        **_folder("monitoring/", render_monitoring(release), {"configMapGenerator": [generator]}),
        "monitoring/dashboard.json": json.dumps(dashboard(release), indent=1) + "\n",
        "monitoring/rules.yaml": _GENERATED + to_yaml({"groups": rule_groups(release)}),
        "monitoring/adapter-values.yaml": _GENERATED + to_yaml(adapter_values()),
        **{
            f"optional/{name}.yaml": _GENERATED + to_documents(objects)
            for name, objects in optional.items()
        },
        "access/deployer-role.yaml": _GENERATED + to_yaml(deployer_role(release)),
    }


def rendered_folders(root: Path) -> dict[Path, Files]:
    """What every release below `root` renders to, by folder. Raises DeployError when there is
    none."""
    found = sorted(root.rglob(RELEASE_FILE))
    if not found:
        raise DeployError(f"{root} holds no {RELEASE_FILE}", "render a spec first: see --help")
    return {path.parent: release_files(load_release(path)) for path in found}


def find_stale(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    """Files of `folder` that are not what would be rendered, and why: changed, missing or
    unexpected; what people put beside them is theirs."""
    stale = {}
    for name, text in sorted(files.items()):
        path = folder / name
        if not path.is_file():
            stale[name] = "missing"
        elif path.read_bytes() != text.encode():
            stale[name] = "changed"
    # Other releases below are none of this one's business.
    others = {path.parent for path in folder.rglob(f"*/{RELEASE_FILE}")} - {folder}
    for path in sorted(folder.rglob("*.yaml")):
        if not others.isdisjoint(path.parents):
            continue
        name = str(path.relative_to(folder))
        written = path.read_text(encoding="utf-8", errors="replace")
        if name not in files and written.startswith(_GENERATED):
            stale[name] = "unexpected"
    return stale


def write_files(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Write what differs, remove what is no longer rendered; returns the paths touched."""
    stale = find_stale(folder, files)
    texts = {folder / name: files[name] for name, why in stale.items() if why != "unexpected"}
    for path in texts:
        path.parent.mkdir(parents=True, exist_ok=True)
    write_all(texts)
    for name in stale.keys() - files.keys():
        (folder / name).unlink()
    return list(stale)


def _folder(prefix: str, objects: list[Object], more: Mapping[str, object] | None = None) -> Files:
    """One file per object, and a kustomization that lists them in order."""
    named = {_file_name(given, objects): given for given in objects}
    content = {**_KUSTOMIZE, "resources": list(named), **(more or {})}
    files = {f"{prefix}{name}": _GENERATED + to_yaml(given) for name, given in named.items()}
    return {**files, f"{prefix}kustomization.yaml": _GENERATED + to_yaml(content)}


def _file_name(given: Object, objects: list[Object]) -> str:
    """By kind; several of one kind also by what tells them apart."""
    kind: str = given["kind"]
    several = sum(one["kind"] == kind for one in objects) > 1
    return kind.lower() + (f"-{given['metadata']['name']}" if several else "") + ".yaml"

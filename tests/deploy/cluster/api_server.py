"""An API server in this process that speaks the real protocol over HTTP: discovery, server-side apply
with owners of fields and conflicts, dry runs, lists in pages, deletes, errors as Status objects,
schema validation; and beside it the controllers that a rollout needs, on a clock that tests turn.
"""

from __future__ import annotations

import copy
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.deploy.cluster.exec_socket import serve_exec

Object = dict[str, Any]
KINDS = {
    "v1": {
        "Namespace": ("namespaces", False),
        "ServiceAccount": ("serviceaccounts", True),
        "PersistentVolumeClaim": ("persistentvolumeclaims", True),
        "ConfigMap": ("configmaps", True),
        "Service": ("services", True),
        "Pod": ("pods", True),
        "Event": ("events", True),
    },
    "apps/v1": {"Deployment": ("deployments", True), "ReplicaSet": ("replicasets", True)},
    "batch/v1": {"Job": ("jobs", True)},
    "autoscaling/v2": {"HorizontalPodAutoscaler": ("horizontalpodautoscalers", True)},
    "policy/v1": {"PodDisruptionBudget": ("poddisruptionbudgets", True)},
    "networking.k8s.io/v1": {"NetworkPolicy": ("networkpolicies", True)},
}
MONITORING = {
    "monitoring.coreos.com/v1": {
        "PodMonitor": ("podmonitors", True),
        "PrometheusRule": ("prometheusrules", True),
    }
}
GATEWAY = {"gateway.networking.k8s.io/v1": {"GRPCRoute": ("grpcroutes", True)}}
# Lists that are merged by keys instead of being replaced.
LIST_KEYS = {
    "containers": ("name",),
    "initContainers": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "env": ("name",),
    "ports": ("containerPort", "port", "protocol"),
    "imagePullSecrets": ("name",),
}
# What was found valid before: a validation takes 25 ms.
VALID: set[str] = set()


@dataclass(kw_only=True)
class Fate:
    """What becomes of a pod: seconds until it is ready, or the status in which it stays."""

    ready_after_s: float | None = 1.0
    status: Object = field(default_factory=dict)
    event: str = ""


class Refusal(Exception):
    def __init__(self, code: int, reason: str, message: str, causes: list[Object] | None = None):
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message
        self.causes = causes or []


class ApiServer:
    """Start with `with ApiServer() as server`; `server.kubeconfig(path)` writes how to reach it."""

    def __init__(
        self, *, monitoring: bool = True, gateway: bool = True, version: str = "1.33"
    ) -> None:
        more = (MONITORING if monitoring else {}) | (GATEWAY if gateway else {})
        self.kinds = {**KINDS, **more}
        self.version = version
        self.objects: dict[tuple[str, str, str, str], Object] = {}
        self.owners: dict[tuple[str, str, str, str], dict[str, set[tuple[Any, ...]]]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        # (method, part of the path) -> error; taken away after `count` uses.
        self.faults: list[dict[str, Any]] = []
        self.fate: Callable[[Object], Fate] = lambda pod: Fate()
        self.run_job: Callable[[Object], tuple[bool, str]] = lambda job: (True, "")
        # What admission says to every new pod, such as an exceeded quota; empty: pods are made.
        self.refuse_pods = ""
        # Turns the command of an `exec` into what runs here; None: no command runs in a pod.
        self.run_command: Callable[[list[str]], list[str]] | None = None
        self.cut_after: int | None = None  # bytes of its input after which the connection breaks
        self.executed: list[list[str]] = []
        self.warning = ""  # sent as a Warning header with every change
        self.now = 0.0
        self.lock = threading.RLock()
        self._count = 0
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    def __enter__(self) -> ApiServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def kubeconfig(self, path: Path) -> Path:
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "stub",
            "clusters": [{"name": "stub", "cluster": {"server": self.url}}],
            "users": [{"name": "stub", "user": {"token": "t"}}],
            "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "stub"}}],
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def advance(self, seconds: float) -> None:
        """Turn the clock and let the controllers work."""
        with self.lock:
            self.now += seconds
            for _ in range(3):
                self._deployments()
                self._jobs()
                self._bare_pods()

    def run_in_background(self, stop: threading.Event, step_s: float = 0.1) -> threading.Thread:
        """The clock turns by itself, for tests of the command line."""

        def work() -> None:
            last = time.monotonic()
            while not stop.wait(step_s):
                now = time.monotonic()
                self.advance(now - last)
                last = now

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def get(self, kind: str, name: str, namespace: str = "slmrank") -> Object | None:
        with self.lock:
            for (_, one, space, called), found in self.objects.items():
                if one == kind and called == name and space in ("", namespace):
                    return copy.deepcopy(found)
        return None

    def all(self, kind: str) -> list[Object]:
        with self.lock:
            return [copy.deepcopy(one) for key, one in self.objects.items() if key[1] == kind]

    def put(self, content: Object, manager: str = "other") -> None:
        """As another client would, by server-side apply with force."""
        with self.lock:
            key = self._key_of(content)
            self._apply(key, copy.deepcopy(content), manager, force=True, dry=False)

    def fail(self, method: str, path: str, code: int, message: str, *, count: int = 1) -> None:
        """The next `count` requests that match end in an error (code 0: the connection breaks)."""
        self.faults.append(
            {"method": method, "path": path, "code": code, "message": message, "count": count}
        )

    # Requests

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # One write a reply: two would wait for each other's acknowledgement, 40 ms each.
            wbufsize = -1
            disable_nagle_algorithm = True

            def log_message(self, *_: Any) -> None: ...

            def _answer(self) -> None:
                if self.headers.get("Upgrade", "").lower() == "websocket":
                    server._exec(self)
                    return
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                split = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(split.query).items()}
                try:
                    with server.lock:
                        server.requests.append((self.command, split.path, query))
                        server._inject(self.command, split.path)
                        code, reply = (
                            200,
                            server._route(
                                self.command, split.path, query, body, dict(self.headers)
                            ),
                        )
                except Refusal as refusal:
                    if refusal.code == 0:
                        self.close_connection = True
                        return
                    code = refusal.code
                    reply = {
                        "kind": "Status",
                        "apiVersion": "v1",
                        "status": "Failure",
                        "message": refusal.message,
                        "reason": refusal.reason,
                        "code": code,
                        "details": {"causes": refusal.causes},
                    }
                data = json.dumps(visible(reply)).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                if server.warning and self.command == "PATCH":
                    self.send_header("Warning", f'299 - "{server.warning}"')
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PATCH = do_DELETE = do_POST = do_PUT = _answer

        return Handler

    def _exec(self, handler: BaseHTTPRequestHandler) -> None:
        split = urlsplit(handler.path)
        command = parse_qs(split.query)["command"]
        name = split.path.split("/")[-2]
        with self.lock:
            pod = next((one for one in self.all("Pod") if one["metadata"]["name"] == name), None)
            self.executed.append(command)
        if pod is None or not _ready(pod) or self.run_command is None:
            handler.send_response(404, "pods not found")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        serve_exec(handler, self.run_command(command), self.cut_after)

    def _inject(self, method: str, path: str) -> None:
        for fault in self.faults:
            if fault["count"] > 0 and fault["method"] in (method, "*") and fault["path"] in path:
                fault["count"] -= 1
                raise Refusal(fault["code"], "InternalError", fault["message"])

    def _route(
        self, method: str, path: str, query: dict[str, str], body: bytes, headers: dict[str, str]
    ) -> Object:
        if path == "/version":
            major, minor = self.version.split(".")
            return {"major": major, "minor": f"{minor}+", "gitVersion": f"v{self.version}.0"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            return self._groups()
        parts = [part for part in path.split("/") if part]
        api_version = parts[1] if parts[0] == "api" else f"{parts[1]}/{parts[2]}"
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        if api_version not in self.kinds:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        if not rest:
            return self._discovery(api_version)
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        kind = next((k for k, (p, _) in self.kinds[api_version].items() if p == rest[0]), None)
        if kind is None:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        if len(rest) == 1 and method == "POST":
            content = json.loads(body)
            key = (api_version, kind, namespace, content["metadata"]["name"])
            if key in self.objects:
                raise Refusal(409, "AlreadyExists", f'{key[1].lower()}s "{key[3]}" already exists')
            return self._apply(key, content, "create", force=True, dry="dryRun" in query)
        if len(rest) == 1:
            return self._list(api_version, kind, namespace, query)
        key = (api_version, kind, namespace, rest[1])
        if method == "GET":
            return self._existing(key)
        if method == "DELETE":
            return self._delete(key, dry="dryRun" in query)
        if method == "PATCH":
            kind_of = headers.get("Content-Type", "")
            if kind_of != "application/apply-patch+yaml":
                raise Refusal(415, "UnsupportedMediaType", f"the body of {kind_of} is not accepted")
            force = query.get("force", "false")
            # Go's ParseBool, as the server reads it.
            if force not in ("true", "True", "false", "False"):
                raise Refusal(400, "BadRequest", f'strconv.ParseBool: parsing "{force}"')
            manager = query.get("fieldManager")
            if not manager:
                raise Refusal(422, "Invalid", "fieldManager: Required value: is required for apply")
            content = yaml.safe_load(body)
            return self._apply(
                key,
                content,
                manager,
                force=force.lower() == "true",
                dry=query.get("dryRun") == "All",
            )
        raise Refusal(405, "MethodNotAllowed", f"the server does not allow {method}")

    def _groups(self) -> Object:
        groups: dict[str, list[Object]] = {}
        for api_version in self.kinds:
            group, _, version = api_version.rpartition("/")
            named = {"groupVersion": api_version, "version": version}
            if group:
                groups.setdefault(group, []).append(named)
        listed = [
            {"name": name, "versions": versions, "preferredVersion": versions[0]}
            for name, versions in groups.items()
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}

    def _discovery(self, api_version: str) -> Object:
        resources = [
            {"name": plural, "kind": kind, "namespaced": namespaced, "verbs": ["get", "list"]}
            for kind, (plural, namespaced) in self.kinds[api_version].items()
        ]
        resources += [{**one, "name": f"{one['name']}/status"} for one in resources]
        return {"kind": "APIResourceList", "groupVersion": api_version, "resources": resources}

    def _list(self, api_version: str, kind: str, namespace: str, query: dict[str, str]) -> Object:
        wanted = dict(
            pair.split("=", 1) for pair in query.get("labelSelector", "").split(",") if pair
        )
        found = [
            one
            for key, one in sorted(self.objects.items())
            if key[:2] == (api_version, kind)
            and key[2] in ("", namespace)
            and wanted.items() <= one["metadata"].get("labels", {}).items()
        ]
        # Pages of at most three, so that clients that forget `continue` are found.
        start = int(query.get("continue", "0"))
        size = min(int(query.get("limit", "3")), 3)
        page, following = found[start : start + size], start + size
        # Items of a list carry neither kind nor apiVersion.
        items = [
            {name: value for name, value in one.items() if name not in ("kind", "apiVersion")}
            for one in page
        ]
        metadata = {"continue": str(following)} if following < len(found) else {}
        return {
            "kind": f"{kind}List",
            "apiVersion": api_version,
            "metadata": metadata,
            "items": items,
        }

    def _existing(self, key: tuple[str, str, str, str]) -> Object:
        if key not in self.objects:
            raise Refusal(404, "NotFound", f'{key[1].lower()}s "{key[3]}" not found')
        return copy.deepcopy(self.objects[key])

    def _delete(self, key: tuple[str, str, str, str], *, dry: bool) -> Object:
        found = self._existing(key)
        if not dry:
            self._remove(key)
        return found

    def _remove(self, key: tuple[str, str, str, str]) -> None:
        """With what it owns, and for a namespace what is in it."""
        gone = self.objects.pop(key)
        self.owners.pop(key, None)
        uid = gone["metadata"]["uid"]
        for other in list(self.objects):
            one = self.objects.get(other)
            if one is None:
                continue
            owned = any(ref["uid"] == uid for ref in one["metadata"].get("ownerReferences", []))
            if owned or (key[1] == "Namespace" and other[2] == key[3]):
                self._remove(other)

    # Server-side apply

    def _key_of(self, content: Object) -> tuple[str, str, str, str]:
        metadata = content["metadata"]
        return (
            content["apiVersion"],
            content["kind"],
            metadata.get("namespace", ""),
            metadata["name"],
        )

    def _apply(
        self,
        key: tuple[str, str, str, str],
        content: Object,
        manager: str,
        *,
        force: bool,
        dry: bool,
    ) -> Object:
        if key != self._key_of(content):
            raise Refusal(400, "BadRequest", "the name of the object does not match the URL")
        if key[2] and ("v1", "Namespace", "", key[2]) not in self.objects:
            raise Refusal(404, "NotFound", f'namespaces "{key[2]}" not found')
        self._validate(content)
        old = self.objects.get(key)
        self._immutable(key, content, old)
        owners = {name: set(paths) for name, paths in self.owners.get(key, {}).items()}
        mine = {path for path, _ in leaves(content) if path[0] not in ("apiVersion", "kind")}
        causes = []
        for path, value in leaves(content):
            for other, paths in owners.items():
                if other != manager and path in paths and lookup(old, path) != value:
                    if force:
                        paths.discard(path)
                    else:
                        causes.append(
                            {
                                "reason": "FieldManagerConflict",
                                "message": f'conflict with "{other}"',
                                "field": "." + ".".join(map(str, path)),
                            }
                        )
        if causes:
            raise Refusal(
                409,
                "Conflict",
                f"Apply failed with {len(causes)} conflict: {causes[0]['message']}: "
                f"{causes[0]['field']}",
                causes,
            )
        new = merged(copy.deepcopy(old) if old else {}, content)
        others = set().union(*(paths for name, paths in owners.items() if name != manager))
        for path in owners.get(manager, set()) - mine - others:
            remove(new, path)
        owners[manager] = mine
        self._default(new, old)
        if dry:
            return new
        self.objects[key] = new
        self.owners[key] = owners
        return copy.deepcopy(new)

    def _validate(self, content: Object) -> None:
        if content["apiVersion"] not in KINDS:
            return
        import kubernetes_validate  # three seconds where a checker of addresses is installed

        text = json.dumps(content, sort_keys=True)
        try:
            if text not in VALID:
                kubernetes_validate.validate(content, self.version, strict=True)
            VALID.add(text)
        except kubernetes_validate.ValidationError as error:
            raise Refusal(
                400, "BadRequest", f"failed to create typed patch: {error.message}"
            ) from error
        if content["kind"] == "Deployment":
            labels = content["spec"]["template"]["metadata"]["labels"]
            if not content["spec"]["selector"]["matchLabels"].items() <= labels.items():
                raise Refusal(
                    422, "Invalid", "spec.template.metadata.labels: `selector` does not match"
                )

    def _immutable(
        self, key: tuple[str, str, str, str], content: Object, old: Object | None
    ) -> None:
        if old is None:
            return
        if (
            key[1] == "ConfigMap"
            and old.get("immutable")
            and old.get("data") != content.get("data")
        ):
            raise Refusal(
                422, "Invalid", "data: Forbidden: field is immutable when `immutable` is set"
            )
        if key[1] == "Job" and old["spec"]["template"] != content["spec"]["template"]:
            raise Refusal(422, "Invalid", "spec.template: field is immutable")
        if key[1] == "Deployment" and old["spec"]["selector"] != content["spec"]["selector"]:
            raise Refusal(422, "Invalid", "spec.selector: field is immutable")

    def _default(self, new: Object, old: Object | None) -> None:
        self._count += 1
        metadata = new["metadata"]
        metadata.setdefault("uid", f"uid-{self._count}")
        metadata["resourceVersion"] = str(self._count)
        metadata.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        if new["kind"] == "Deployment":
            new["spec"].setdefault("replicas", 1)
        changed = old is None or old.get("spec") != new.get("spec")
        metadata["generation"] = (old["metadata"]["generation"] if old else 0) + int(changed)

    # Controllers

    def _deployments(self) -> None:
        for key in [key for key in self.objects if key[1] == "Deployment"]:
            self._roll(self.objects[key])

    def _roll(self, deployment: Object) -> None:
        metadata = deployment["metadata"]
        spec = {"strategy": {}, "progressDeadlineSeconds": 600, **deployment["spec"]}
        state = deployment.setdefault("_state", {"progressed": self.now, "generation": 0})
        new = self._set_for(deployment, state)
        sets = self._sets(deployment)
        wanted = spec["replicas"]
        rolling = spec["strategy"].get("rollingUpdate", {"maxSurge": 0, "maxUnavailable": wanted})
        surge, down = rolling["maxSurge"], rolling["maxUnavailable"]
        for pod in self._pods(sets):
            self._live(pod, state)
        mine = self._pods([new])
        others = self._pods([one for one in sets if one is not new])
        ready = [pod for pod in [*mine, *others] if _ready(pod)]
        # As many old pods go as may be missing, those that are not ready first.
        spare = len(ready) - (wanted - down)
        for pod in sorted(others, key=_ready):
            if not _ready(pod) or spare > 0:
                spare -= int(_ready(pod))
                self._remove(("v1", "Pod", metadata["namespace"], pod["metadata"]["name"]))
        others = self._pods([one for one in sets if one is not new])
        missing = min(wanted - len(mine), wanted + surge - len(mine) - len(others))
        for _ in range(0 if self.refuse_pods else missing):
            self._start(new, state)
        for pod in self._pods([new])[wanted:]:
            self._remove(("v1", "Pod", metadata["namespace"], pod["metadata"]["name"]))
        for one in sets:
            pods = self._pods([one])
            one["status"] = {
                "replicas": len(pods),
                "availableReplicas": sum(_ready(pod) for pod in pods),
            }
        mine = self._pods([new])
        late = self.now - state["progressed"] > spec["progressDeadlineSeconds"]
        arrived = sum(map(_ready, mine)) >= wanted and not others
        condition = {"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated"}
        if late and not arrived:
            condition = {
                "type": "Progressing",
                "status": "False",
                "reason": "ProgressDeadlineExceeded",
                "message": f'ReplicaSet "{new["metadata"]["name"]}" has timed out progressing.',
            }
        deployment["status"] = {
            "observedGeneration": metadata["generation"],
            "replicas": len(mine) + len(others),
            "updatedReplicas": len(mine),
            "availableReplicas": sum(map(_ready, [*mine, *others])),
            "conditions": [condition],
        }
        if self.refuse_pods and missing > 0:
            deployment["status"]["conditions"].append(
                {
                    "type": "ReplicaFailure",
                    "status": "True",
                    "reason": "FailedCreate",
                    "message": self.refuse_pods,
                }
            )

    def _bare_pods(self) -> None:
        """Pods that nobody owns start, as `fate` says, a second after they were made."""
        for key, pod in self.objects.items():
            if key[1] == "Pod" and not pod["metadata"].get("ownerReferences"):
                fate = self.fate(pod)
                since = pod.setdefault("_since", self.now)
                after = fate.ready_after_s
                if after is None:
                    pod["status"] = copy.deepcopy(fate.status)
                elif self.now - since >= after:
                    ready = {"type": "Ready", "status": "True"}
                    pod["status"] = {"phase": "Running", "conditions": [ready]}

    def _set_for(self, deployment: Object, state: Object) -> Object:
        """The ReplicaSet of the template; an old one is taken again."""
        metadata, template = deployment["metadata"], deployment["spec"]["template"]
        digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:9]
        name = f"{metadata['name']}-{digest}"
        key = ("apps/v1", "ReplicaSet", metadata["namespace"], name)
        if state.get("set") != name:
            state.update(set=name, progressed=self.now, revision=state.get("revision", 0) + 1)
            if key not in self.objects:
                labels = {**template["metadata"]["labels"], "pod-template-hash": digest}
                self._own(
                    key, deployment, {"labels": labels}, spec={"template": template, "replicas": 1}
                )
            self.event("Deployment", metadata, f"Scaled up replica set {name}")
        notes = self.objects[key]["metadata"].setdefault("annotations", {})
        notes["deployment.kubernetes.io/revision"] = str(state["revision"])
        metadata.setdefault("annotations", {})["deployment.kubernetes.io/revision"] = str(
            state["revision"]
        )
        return self.objects[key]

    def _start(self, replica_set: Object, state: Object) -> None:
        self._count += 1
        metadata = replica_set["metadata"]
        name = f"{metadata['name']}-{self._count:05d}"
        pod = self._own(
            ("v1", "Pod", metadata["namespace"], name),
            replica_set,
            {"labels": metadata["labels"]},
            spec=replica_set["spec"]["template"]["spec"],
            status={"phase": "Pending"},
        )
        pod["_fate"], pod["_since"] = self.fate(pod), self.now
        if pod["_fate"].event:
            self.event("Pod", pod["metadata"], pod["_fate"].event, reason="Unhealthy")

    def _live(self, pod: Object, state: Object) -> None:
        fate: Fate = pod["_fate"]
        if fate.ready_after_s is None:
            pod["status"] = fate.status or {"phase": "Running"}
        elif not _ready(pod) and self.now - pod["_since"] >= fate.ready_after_s:
            state["progressed"] = self.now
            pod["status"] = {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True"}],
            }

    def _jobs(self) -> None:
        for key in [key for key in self.objects if key[1] == "Job"]:
            job = self.objects[key]
            if job.get("status"):
                continue
            if self.refuse_pods:
                if not job.setdefault("_told", False):
                    job["_told"] = True
                    self.event("Job", job["metadata"], self.refuse_pods, reason="FailedCreate")
                continue
            done, message = self.run_job(job)
            kind = "Complete" if done else "Failed"
            job["status"] = {"conditions": [{"type": kind, "status": "True"}]}
            if not done:
                labels = {"job-name": key[3]}
                status = {
                    "phase": "Failed",
                    "containerStatuses": [
                        {
                            "name": job["spec"]["template"]["spec"]["containers"][0]["name"],
                            "state": {
                                "terminated": {"exitCode": 9, "reason": "Error", "message": message}
                            },
                        }
                    ],
                }
                pod_key = ("v1", "Pod", key[2], f"{key[3]}-pod")
                self._own(pod_key, job, {"labels": labels}, status=status)

    def event(self, kind: str, about: Object, message: str, reason: str = "Normal") -> None:
        self._count += 1
        key = ("v1", "Event", about["namespace"], f"event-{self._count}")
        made = {
            "involvedObject": {"kind": kind, "name": about["name"]},
            "message": message,
            "reason": reason,
            "count": 1,
        }
        self.objects[key] = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": key[3], "namespace": key[2], "uid": f"uid-{self._count}"},
            **made,
        }

    def _own(
        self, key: tuple[str, str, str, str], owner: Object, metadata: Object, **content: Any
    ) -> Object:
        self._count += 1
        made = {
            "apiVersion": key[0],
            "kind": key[1],
            "metadata": {
                "name": key[3],
                "namespace": key[2],
                "uid": f"uid-{self._count}",
                "ownerReferences": [{"uid": owner["metadata"]["uid"]}],
                **copy.deepcopy(metadata),
            },
            **copy.deepcopy(content),
        }
        self.objects[key] = made
        return made

    def _sets(self, deployment: Object) -> list[Object]:
        return self._owned("ReplicaSet", [deployment])

    def _pods(self, sets: list[Object]) -> list[Object]:
        return self._owned("Pod", sets)

    def _owned(self, kind: str, owners: list[Object]) -> list[Object]:
        uids = {one["metadata"]["uid"] for one in owners}
        return [
            one
            for key, one in sorted(self.objects.items())
            if key[1] == kind
            and any(ref["uid"] in uids for ref in one["metadata"].get("ownerReferences", []))
        ]


def _ready(pod: Object) -> bool:
    return any(
        one["type"] == "Ready" and one["status"] == "True"
        for one in pod.get("status", {}).get("conditions", [])
    )


def visible(value: Any) -> Any:
    """Without what the controllers keep for themselves, under names that begin with _."""
    if isinstance(value, dict):
        return {key: visible(one) for key, one in value.items() if not key.startswith("_")}
    return [visible(one) for one in value] if isinstance(value, list) else value


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(path, value) of every leaf; elements of merged lists are named by their keys."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, (*path, name))
    elif isinstance(value, list) and path and path[-1] in LIST_KEYS and value:
        for one in value:
            yield from leaves(one, (*path, _element_key(path[-1], one)))
    else:
        yield path, value


def lookup(content: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        if isinstance(content, list):
            content = next((one for one in content if _matches(part, one)), None)
        elif isinstance(content, dict):
            content = content.get(part)
        else:
            return None
    return content


def merged(old: Any, new: Any, name: str = "") -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in new.items():
            old[key] = merged(old.get(key), value, key)
        return old
    if isinstance(old, list) and isinstance(new, list) and name in LIST_KEYS:
        made = list(old)
        for one in new:
            key = _element_key(name, one)
            found = [number for number, other in enumerate(made) if _matches(key, other)]
            if found:
                made[found[0]] = merged(made[found[0]], one)
            else:
                made.append(one)
        return made
    return copy.deepcopy(new)


def remove(content: Any, path: tuple[Any, ...]) -> None:
    """Take a leaf out, and what becomes empty by that."""
    above = lookup(content, path[:-1])
    if isinstance(above, dict):
        above.pop(path[-1], None)
        if not above and len(path) > 1:
            remove(content, path[:-1])
    elif isinstance(above, list):
        for one in list(above):
            keys = {key for key, _ in path[-1]}
            if _matches(path[-1], one) and set(one) <= keys:
                above.remove(one)
        if not above and len(path) > 1:
            remove(content, path[:-1])


def _element_key(name: str, one: Object) -> tuple[tuple[str, Any], ...]:
    return tuple((key, one[key]) for key in LIST_KEYS[name] if key in one)


def _matches(key: Any, one: Any) -> bool:
    return isinstance(one, dict) and all(one.get(name) == value for name, value in key)

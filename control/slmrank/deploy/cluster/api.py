"""The API server as a few plain calls: discovery, read, list, server-side apply, delete.

Transport, TLS and credentials are the official client's; objects are plain mappings, because its
typed models drop fields that they do not know.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slmrank.deploy.naming import MANAGER, Object
from slmrank.errors import DeployError, MissingDependencyError

FIELD_MANAGER = MANAGER
REQUEST_TIMEOUT_S = (5.0, 30.0)
RETRIES = 4
RETRY_PAUSE_S = 0.3
_AGAIN = (429, 500, 502, 503, 504)


class ApiError(DeployError):
    """The API server refused a request; `status` is the HTTP status, `reason` Kubernetes' word."""

    def __init__(self, message: str, hint: str, status: int = 0, reason: str = "") -> None:
        super().__init__(message, hint)
        self.status = status
        self.reason = reason


class Conflict(ApiError):
    """Another field manager owns what we would set."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Where the API server keeps a kind."""

    api_version: str
    plural: str
    namespaced: bool

    def path(self, namespace: str = "", name: str = "") -> str:
        root = "/api/v1" if self.api_version == "v1" else f"/apis/{self.api_version}"
        inside = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return f"{root}{inside}/{self.plural}" + (f"/{name}" if name else "")


class Cluster:
    """One API server. `where` names it in messages."""

    def __init__(self, client: Any, where: str) -> None:
        self._client = client
        self.where = where
        self._groups: dict[str, dict[str, Kind]] = {}

    def version(self) -> str:
        """Such as 1.33."""
        found = self._request("get", "/version")
        minor = "".join(one for one in str(found.get("minor", "")) if one.isdigit())
        return f"{found.get('major')}.{minor}"

    def find_kind(self, api_version: str, kind: str) -> Kind | None:
        """Where a kind lives, None when the server has none."""
        if api_version not in self._groups:
            root = "/api/v1" if api_version == "v1" else f"/apis/{api_version}"
            try:
                listed = self._request("get", root).get("resources", [])
            except ApiError as error:
                if error.status not in (403, 404):
                    raise
                listed = []
            self._groups[api_version] = {
                one["kind"]: Kind(
                    api_version=api_version, plural=one["name"], namespaced=one["namespaced"]
                )
                for one in listed
                if "/" not in one["name"]
            }
        return self._groups[api_version].get(kind)

    def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        """One object, None when it does not exist (or its kind does not)."""
        place = self.find_kind(api_version, kind)
        if place is None:
            return None
        try:
            return self._request("get", place.path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list(
        self, api_version: str, kind: str, namespace: str, labels: Mapping[str, str] | None = None
    ) -> list[Object]:
        """Objects of a kind by labels; none when the kind does not exist."""
        place = self.find_kind(api_version, kind)
        if place is None:
            return []
        chosen = ",".join(f"{name}={value}" for name, value in (labels or {}).items())
        items: list[Object] = []
        params: dict[str, Any] = {"limit": 500}
        if chosen:
            params["label_selector"] = chosen
        while True:
            page = self._request("get", place.path(namespace), **params)
            for one in page.get("items") or []:
                items.append({"apiVersion": api_version, "kind": kind, **one})
            following = page.get("metadata", {}).get("continue")
            if not following:
                return items
            params["_continue"] = following

    def apply(self, given: Object, *, dry_run: bool = False, force: bool = False) -> Object:
        """Server-side apply; returns the object as the server has it now (or would have it).

        Raises Conflict when another manager owns a field, ApiError for every other refusal.
        """
        place = self.require_kind(given)
        metadata = given["metadata"]
        params: dict[str, Any] = {
            "content_type": "application/apply-patch+yaml",
            "field_manager": FIELD_MANAGER,
            # Sent as text: a Python bool would become the word True, which the server refuses.
            "force_conflicts": "true" if force else "false",
        }
        if dry_run:
            params["dry_run"] = "All"
        path = place.path(metadata.get("namespace", ""), metadata["name"])
        return self._request("patch", path, body=given, **params)

    def create(self, given: Object) -> Object:
        """Create an object that must not exist yet. Raises ApiError with reason AlreadyExists."""
        place = self.require_kind(given)
        return self._request("post", place.path(given["metadata"].get("namespace", "")), body=given)

    def delete(
        self, given: Object, *, propagation: str = "Background", dry_run: bool = False
    ) -> bool:
        """Delete an object; False when it was not there."""
        place = self.require_kind(given)
        metadata = given["metadata"]
        params: dict[str, Any] = {"propagation_policy": propagation}
        if dry_run:
            params["dry_run"] = "All"
        try:
            path = place.path(metadata.get("namespace", ""), metadata["name"])
            self._request("delete", path, **params)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def require_kind(self, given: Object) -> Kind:
        """Raises ApiError when the server does not know the object's kind."""
        place = self.find_kind(given["apiVersion"], given["kind"])
        if place is None:
            raise ApiError(
                f"{self.where} has no kind {given['apiVersion']} {given['kind']}",
                "install its CRD, or use a cluster that has it",
                404,
            )
        return place

    def _request(self, method: str, path: str, body: Any = None, **params: Any) -> dict[str, Any]:
        """One call, repeated when the server asks for it: every call here can be repeated."""
        pause = RETRY_PAUSE_S
        for attempt in range(RETRIES + 1):
            try:
                reply = self._client.request(
                    method,
                    path,
                    body=body,
                    serialize=False,
                    _request_timeout=REQUEST_TIMEOUT_S,
                    **params,
                )
                loaded: dict[str, Any] = json.loads(_bytes(reply) or b"{}")
                return loaded
            except Exception as error:
                status = getattr(error, "status", None)
                if attempt == RETRIES or not _passing(error, status):
                    raise self._explained(error, method, path) from error
            time.sleep(pause)
            pause *= 2
        raise AssertionError("unreachable")

    def _explained(self, error: Exception, method: str, path: str) -> DeployError:
        status = getattr(error, "status", None)
        if not isinstance(status, int):
            told = str(getattr(error, "reason", "") or error)
            return ApiError(
                f"no answer from {self.where}: {_one_line(told)}",
                "check the cluster's address, the network and `kubectl cluster-info`",
            )
        body = _body_of(error)
        message = str(body.get("message") or getattr(error, "reason", "") or error)
        reason = str(body.get("reason", ""))
        if status == 409 and reason in ("Conflict", ""):
            return Conflict(_one_line(message), _conflict_fix(body), status, reason)
        fixes = {
            401: "log in again: the credentials of the kubeconfig are refused",
            403: "ask for the Role in k8s/access/deployer-role.yaml",
        }
        return ApiError(
            _one_line(message), fixes.get(status, "correct the named field"), status, reason
        )


def connect(
    kubeconfig: Path | None = None, context: str | None = None, *, warn: Callable[[str], None]
) -> Cluster:
    """The cluster of a kubeconfig (KUBECONFIG, ~/.kube/config) or of the pod that this runs in.

    Raises DeployError when there is none, MissingDependencyError without the client.
    """
    try:
        import urllib3
        from kubernetes import client, config
        from kubernetes.dynamic import DynamicClient
    except ImportError as error:
        raise MissingDependencyError(
            "talking to a cluster needs the package kubernetes", "pip install 'slmrank[k8s]'"
        ) from error
    configuration = client.Configuration()
    given = os.environ.get("KUBECONFIG")
    default = Path.home() / ".kube" / "config"
    named = kubeconfig is not None or context is not None or bool(given) or default.is_file()
    try:
        if named:
            config.load_kube_config(
                config_file=str(kubeconfig) if kubeconfig else None,
                context=context,
                client_configuration=configuration,
            )
        else:
            config.load_incluster_config(client_configuration=configuration)
    except (config.ConfigException, OSError, ValueError, yaml.YAMLError) as error:
        told = _one_line(str(error)) if named else "no kubeconfig, and this is not a pod"
        raise DeployError(
            f"no cluster is configured: {told}",
            "set KUBECONFIG, or give --kubeconfig and --context",
        ) from error
    # Retries are ours: the transport's own would hide a server that is not there for minutes.
    configuration.retries = urllib3.Retry(0, redirect=0)
    if not configuration.verify_ssl:
        warn("the kubeconfig switches TLS verification off")
    api = client.ApiClient(configuration)
    where = configuration.host
    return Cluster(DynamicClient(api, discoverer=lambda *_: None), where)


def _bytes(reply: Any) -> bytes:
    data = reply.data
    return data if isinstance(data, bytes) else str(data).encode()


def _passing(error: Exception, status: Any) -> bool:
    """Whether a second try can help: overload, restarts and broken connections."""
    if isinstance(status, int):
        return status in _AGAIN
    # urllib3 hands a broken connection on as it is for methods that it would not repeat itself.
    module = type(error).__module__
    return isinstance(error, OSError) or module.startswith(("urllib3", "http.client"))


def _body_of(error: Exception) -> dict[str, Any]:
    try:
        loaded = json.loads(getattr(error, "body", "") or "{}")
    except (TypeError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _conflict_fix(body: Mapping[str, Any]) -> str:
    causes = body.get("details", {}).get("causes", [])
    fields = ", ".join(str(one.get("field")) for one in causes if one.get("field"))
    named = f" ({fields})" if fields else ""
    return f"let its manager give the fields up{named}, or take them with --force-conflicts"


def _one_line(text: str) -> str:
    return " ".join(text.split())

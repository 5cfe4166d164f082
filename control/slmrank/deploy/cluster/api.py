"""The API server as a few plain calls: read, list, server-side apply, delete.

Discovery, transport, TLS and credentials are the official client's dynamic client's; objects are
plain mappings, because its typed models drop fields that they do not know.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from slmrank.deploy.naming import MANAGER, Object
from slmrank.errors import DeployError, needs

_PLAIN: dict[str, Any] = {"serialize": False, "_request_timeout": (5.0, 30.0)}
RETRIES = 4
RETRY_PAUSE_S = 0.3
# The client keeps what it discovers in a folder that everybody may write, unless it cannot.
_NO_CACHE = "/nonexistent/slmrank-discovery.json"
_AGAIN = (429, 500, 502, 503, 504)
# The server answers 500 to an object that does not fit its schema: no second try can help.
_MISFIT = re.compile(r"typed patch object|not declared in schema|failed to create typed")
_WARNING = re.compile(r'\d{3} \S+ "((?:[^"\\]|\\.)*)"')


class ApiError(DeployError):
    """The API server refused a request; `status` is the HTTP status, `reason` Kubernetes' word."""

    def __init__(self, message: str, hint: str, status: int = 0, reason: str = "") -> None:
        super().__init__(message, hint)
        self.status = status
        self.reason = reason


class Conflict(ApiError):
    """Another field manager owns what we would set."""


class Cluster:
    """One API server. `where` names it in messages; `warn` hears what it warns of, once each."""

    def __init__(self, client: Any, where: str, warn: Callable[[str], None] | None = None) -> None:
        self._client = client
        self.where = where
        self._warn = warn or (lambda _: None)
        self._warned: set[str] = set()
        self._kinds: dict[tuple[str, str], Any] = {}

    @property
    def transport(self) -> Any:
        """The official client's ApiClient, for what is no object."""
        return self._client.client

    def version(self) -> str:
        """Such as 1.33."""
        found = self._call(lambda: self._client.version["kubernetes"])
        minor = "".join(digit for digit in str(found.get("minor", "")) if digit.isdigit())
        return f"{found.get('major')}.{minor}"

    def find_kind(self, api_version: str, kind: str) -> Any:
        """The client's resource of a kind, None when the server has none."""
        from kubernetes.dynamic.exceptions import ResourceNotFoundError

        def look() -> Any:
            resources = self._client.resources
            try:
                return resources.get(api_version=api_version, kind=kind)
            except ResourceNotFoundError:
                # The client takes a server that is not available for one without the kind.
                if not self._serves(api_version, kind):
                    return None
                resources.invalidate_cache()
                return resources.get(api_version=api_version, kind=kind)

        if self._kinds.get((api_version, kind)) is None:
            try:
                self._kinds[api_version, kind] = self._call(look)
            except ApiError as error:
                if error.status not in (403, 404):
                    raise
                return None
        return self._kinds[api_version, kind]

    def _serves(self, api_version: str, kind: str) -> bool:
        from kubernetes.dynamic.exceptions import NotFoundError

        path = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        try:
            found = json.loads(self._client.request("GET", path, **_PLAIN).data)
        except NotFoundError:
            return False
        return any(one.get("kind") == kind for one in found.get("resources") or [])

    def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        """One object, None when it does not exist (or its kind does not)."""
        resource = self.find_kind(api_version, kind)
        if resource is None:
            return None
        try:
            return self._read(resource.get, name=name, **_inside(resource, namespace))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list(
        self, api_version: str, kind: str, namespace: str, labels: Mapping[str, str] | None = None
    ) -> list[Object]:
        """Objects of a kind by labels; none when the kind does not exist."""
        resource = self.find_kind(api_version, kind)
        if resource is None:
            return []
        params: dict[str, Any] = {"limit": 500, **_inside(resource, namespace)}
        if labels:
            params["label_selector"] = ",".join(f"{key}={one}" for key, one in labels.items())
        items: list[Object] = []
        while True:
            page = self._read(resource.get, **params)
            for item in page.get("items") or []:
                items.append({"apiVersion": api_version, "kind": kind, **item})
            following = page.get("metadata", {}).get("continue")
            if not following:
                return items
            params["_continue"] = following

    def apply(self, given: Object, *, dry_run: bool = False, force: bool = False) -> Object:
        """Server-side apply; returns the object as the server has it now (or would have it).

        Raises Conflict when another manager owns a field, ApiError for every other refusal.
        """
        send = self.require_kind(given).server_side_apply
        by = {"field_manager": MANAGER, "force_conflicts": force}
        return self._read(send, body=given, **by, dry_run="All" if dry_run else None)

    def create(self, given: Object) -> Object:
        """Create an object that must not exist yet. Raises ApiError with reason AlreadyExists."""
        return self._read(self.require_kind(given).create, body=given)

    def delete(self, given: Object, *, dry_run: bool = False) -> None:
        """Delete an object, where it is there."""
        resource = self.require_kind(given)
        metadata = given["metadata"]
        where = {"name": metadata["name"], **_inside(resource, metadata.get("namespace", ""))}
        how = {"propagation_policy": "Background", "dry_run": "All" if dry_run else None}
        try:
            self._read(resource.delete, **where, **how)
        except ApiError as error:
            if error.status != 404:
                raise

    def require_kind(self, given: Object) -> Any:
        """Raises ApiError when the server does not know the object's kind."""
        resource = self.find_kind(given["apiVersion"], given["kind"])
        if resource is None:
            raise ApiError(
                f"{self.where} has no kind {given['apiVersion']} {given['kind']}",
                "install its CRD, or use a cluster that has it",
                404,
            )
        return resource

    def _read(self, call: Callable[..., Any], **given: Any) -> Object:
        """The answer of a call as a mapping."""
        reply = self._call(lambda: call(**given, **_PLAIN))
        headers: Any = getattr(reply, "headers", None)
        told = ", ".join((headers.get_all("Warning") if headers else None) or [])
        for text in _WARNING.findall(told):
            if text not in self._warned:
                self._warned.add(text)
                self._warn(f"the server warns: {text}")
        loaded: Object = json.loads(reply.data or b"{}")
        return loaded

    def _call(self, call: Callable[[], Any]) -> Any:
        """One call, repeated when the server asks for it: every call here can be repeated."""
        pause = RETRY_PAUSE_S
        for attempt in range(RETRIES + 1):
            try:
                return call()
            except Exception as error:
                status = getattr(error, "status", None)
                if attempt == RETRIES or not _passing(error, status):
                    raise self._explained(error) from error
            time.sleep(pause)
            pause *= 2
        raise AssertionError("unreachable")

    def _explained(self, error: Exception) -> DeployError:
        status = getattr(error, "status", None)
        if not isinstance(status, int):
            text = str(getattr(error, "reason", "") or error)
            return ApiError(
                f"no answer from {self.where}: {_one_line(text)}",
                "check the cluster's address, the network and `kubectl cluster-info`",
            )
        body = _body_of(error)
        message = str(body.get("message") or getattr(error, "reason", "") or error)
        reason = str(body.get("reason", ""))
        if status == 409 and reason in ("Conflict", ""):
            return Conflict(_one_line(message), _conflict_fix(body), status, reason)
        fixes = {
            401: "log in again: the credentials of the kubeconfig are refused",
            403: "ask for the Role in access/deployer-role.yaml of the rendered folder",
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
    with needs("talking to a cluster needs the package kubernetes", "k8s"):
        import urllib3
        from kubernetes import client, config
        from kubernetes.dynamic import DynamicClient
    configuration = client.Configuration()
    given = os.environ.get("KUBECONFIG")
    default = Path(os.path.expanduser("~/.kube/config"))  # there may be no home
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
        text = _one_line(str(error)) if named else "no kubeconfig, and this is not a pod"
        raise DeployError(
            f"no cluster is configured: {text}",
            "set KUBECONFIG, or give --kubeconfig and --context",
        ) from error
    # Retries are ours: the transport's own would hide a server that is not there for minutes.
    configuration.retries = urllib3.Retry(0, redirect=0)
    if not configuration.verify_ssl:
        warn("the kubeconfig switches TLS verification off")
        # Said once is enough: urllib3 would say it at every request.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    api = client.ApiClient(configuration)
    cluster = Cluster(None, configuration.host, warn)
    cluster._client = cluster._call(lambda: DynamicClient(api, cache_file=_NO_CACHE))
    return cluster


def _inside(resource: Any, namespace: str) -> dict[str, str]:
    return {"namespace": namespace} if resource.namespaced and namespace else {}


def _passing(error: Exception, status: Any) -> bool:
    """Whether a second try can help: overload, restarts and broken connections."""
    if isinstance(status, int):
        return status in _AGAIN and not _MISFIT.search(str(_body_of(error).get("message", "")))
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
    fields = ", ".join(str(cause.get("field")) for cause in causes if cause.get("field"))
    named = f" ({fields})" if fields else ""
    return f"let its manager give the fields up{named}, or take them with --force-conflicts"


def _one_line(text: str) -> str:
    return " ".join(text.split())

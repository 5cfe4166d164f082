"""A real Kubernetes control plane on loopback, from the binaries in KUBE_BIN_DIR: etcd, kube-apiserver,
kube-controller-manager and kube-scheduler, as envtest users have them. No kubelet: nodes are made up,
with GPUs where asked for, and pods are played by writing their status.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from slmrank.serving.ports import claim_port

from tests.build.docker_engine import end

VARIABLE = "KUBE_BIN_DIR"
BINARIES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
TOKEN = "loopback-only"
START_S = 60.0
Object = dict[str, Any]


def binaries() -> dict[str, Path]:
    """Skips the test, with the reason, where they are not offered."""
    given = os.environ.get(VARIABLE)
    if not given:
        pytest.skip(f"{VARIABLE} is not set: needs a folder with {', '.join(BINARIES)}")
    found = {name: Path(given) / name for name in BINARIES}
    missing = [name for name, path in found.items() if not path.is_file()]
    if missing:
        pytest.skip(f"{VARIABLE}={given} lacks {', '.join(missing)}")
    return found


class ControlPlane:
    """The running control plane. `request` speaks to the API server as cluster administrator."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.url = f"https://127.0.0.1:{port}"
        self._context = ssl.create_default_context()
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE
        self._stop = threading.Event()
        self._players: list[threading.Thread] = []

    def request(self, method: str, path: str, body: Object | None = None, kind: str = "") -> Object:
        data = None if body is None else json.dumps(body).encode()
        given = urllib.request.Request(self.url + path, data, method=method)
        given.add_header("Authorization", f"Bearer {TOKEN}")
        given.add_header("Content-Type", kind or "application/json")
        with urllib.request.urlopen(given, timeout=30, context=self._context) as reply:
            loaded: Object = json.loads(reply.read() or b"{}")
            return loaded

    def kubeconfig(self, path: Path) -> Path:
        cluster = {"server": self.url, "insecure-skip-tls-verify": True}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def add_node(self, name: str, gpus: int = 0, product: str = "NVIDIA-H200") -> None:
        """A ready node that nobody runs; GPU nodes are labelled and tainted as the operator does."""
        labels = {"kubernetes.io/hostname": name}
        taints = []
        if gpus:
            labels["nvidia.com/gpu.product"] = product
            taints.append({"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"})
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
        self.request("POST", "/api/v1/nodes", node)
        room = {"cpu": "64", "memory": "256Gi", "pods": "110"}
        if gpus:
            room["nvidia.com/gpu"] = str(gpus)
        ready = {"type": "Ready", "status": "True", "reason": "Test", "message": "made up"}
        status = {"status": {"capacity": room, "allocatable": room, "conditions": [ready]}}
        merge = "application/merge-patch+json"
        self.request("PATCH", f"/api/v1/nodes/{name}/status", status, merge)
        # Admission adds a taint that only a kubelet's heartbeats would take away.
        self.request("PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": taints}}, merge)

    def add_kind(self, group: str, version: str, kind: str, plural: str) -> None:
        """A custom kind that takes anything, as its CRD would at the least."""
        free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        made = {"name": version, "served": True, "storage": True}
        definition = {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {
                "name": f"{plural}.{group}",
                # The group is a protected one: it is made up here.
                "annotations": {"api-approved.kubernetes.io": "unapproved, a test's own"},
            },
            "spec": {
                "group": group,
                "scope": "Namespaced",
                "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
                "versions": [{**made, "schema": {"openAPIV3Schema": free}}],
            },
        }
        self.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
        for _ in range(100):
            with contextlib.suppress(OSError):
                listed = self.request("GET", f"/apis/{group}/{version}")
                if any(one["name"] == plural for one in listed["resources"]):
                    return
            time.sleep(0.1)
        pytest.fail(f"{kind} does not appear")

    def add_volume(
        self, name: str, claim: str, namespace: str, folder: Path = Path("/tmp")
    ) -> None:
        """A volume that is bound to a claim; with a real node it is this folder."""
        spec = {
            "capacity": {"storage": "1Ti"},
            "accessModes": ["ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": str(folder)},
            "claimRef": {"namespace": namespace, "name": claim},
        }
        volume = {"apiVersion": "v1", "kind": "PersistentVolume", "spec": spec}
        self.request("POST", "/api/v1/persistentvolumes", {**volume, "metadata": {"name": name}})

    def play_pods(self, namespace: str, fate: Callable[[Object], Object | None]) -> None:
        """Give every scheduled pod the status that `fate` answers; None makes it ready. Pods that
        are being deleted go, and pods of Jobs succeed."""

        def work() -> None:
            while not self._stop.wait(0.3):
                with contextlib.suppress(urllib.error.URLError, OSError, KeyError):
                    for pod in self.request("GET", f"/api/v1/namespaces/{namespace}/pods")["items"]:
                        self._play(namespace, pod, fate)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._players.append(thread)

    def close(self) -> None:
        self._stop.set()
        for thread in self._players:
            thread.join(10)

    def _play(self, namespace: str, pod: Object, fate: Callable[[Object], Object | None]) -> None:
        path = f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}"
        if pod["metadata"].get("deletionTimestamp"):
            self.request("DELETE", path, {"gracePeriodSeconds": 0})
            return
        if not pod["spec"].get("nodeName") or pod["status"].get("phase") != "Pending":
            return
        owners = pod["metadata"].get("ownerReferences", [])
        status = fate(pod)
        if status is None and any(one["kind"] == "Job" for one in owners):
            status = {"phase": "Succeeded"}
        if status is None:
            kinds = ("Initialized", "Ready", "ContainersReady", "PodScheduled")
            conditions = [{"type": kind, "status": "True"} for kind in kinds]
            # minReadySeconds counts from here.
            for one in conditions:
                one["lastTransitionTime"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            status = {"phase": "Running", "conditions": conditions}
        if pod["status"].get("containerStatuses") and status.get("phase") == "Pending":
            return
        self.request("PATCH", f"{path}/status", {"status": status}, "application/merge-patch+json")


@contextlib.contextmanager
def control_plane() -> Iterator[ControlPlane]:
    """Start everything; stopped and removed at the end."""
    found = binaries()
    folder = Path(tempfile.mkdtemp(prefix="slmrank-kube-"))
    processes: list[subprocess.Popen[bytes]] = []

    def start(name: str, *arguments: str) -> None:
        with (folder / f"{name}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [str(found[name]), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={
                        "PATH": os.environ["PATH"],
                        "HOME": str(folder),
                        "ETCD_UNSUPPORTED_ARCH": "",
                    },
                )
            )

    plane: ControlPlane | None = None
    try:
        ports = [claim_port("127.0.0.1", 0, "") for _ in range(5)]
        etcd = f"http://127.0.0.1:{ports[0]}"
        peer = f"http://127.0.0.1:{ports[1]}"
        start(
            "etcd",
            f"--data-dir={folder}/etcd",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        )
        key = folder / "sa.key"
        subprocess.run(
            ["openssl", "genrsa", "-out", str(key), "2048"],
            check=True,
            capture_output=True,
            timeout=60,
        )
        (folder / "tokens.csv").write_text(f'{TOKEN},admin,admin,"system:masters"\n')
        plane = ControlPlane(folder, ports[2])
        start(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={ports[2]}",
            f"--cert-dir={folder}/certs",
            f"--token-auth-file={folder}/tokens.csv",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--service-account-issuer=https://127.0.0.1",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--kubelet-preferred-address-types=Hostname",
        )
        _wait_ready(plane, processes, folder)
        config = plane.kubeconfig(folder / "kubeconfig")
        start(
            "kube-controller-manager",
            f"--kubeconfig={config}",
            "--bind-address=127.0.0.1",
            f"--secure-port={ports[3]}",
            f"--cert-dir={folder}/certs",
            "--leader-elect=false",
            # Made-up nodes have no heartbeats.
            "--controllers=*,-nodelifecycle,-nodeipam",
            "--horizontal-pod-autoscaler-sync-period=2s",
        )
        start(
            "kube-scheduler",
            f"--kubeconfig={config}",
            "--bind-address=127.0.0.1",
            f"--secure-port={ports[4]}",
            f"--cert-dir={folder}/certs",
            "--leader-elect=false",
        )
        yield plane
    finally:
        if plane is not None:
            plane.close()
        for process in reversed(processes):
            end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_ready(
    plane: ControlPlane, processes: list[subprocess.Popen[bytes]], folder: Path
) -> None:
    started = time.monotonic()
    while True:
        try:
            plane.request("GET", "/api/v1/namespaces/default")
            return
        except (urllib.error.URLError, OSError):
            ended = [one for one in processes if one.poll() is not None]
            if ended or time.monotonic() - started > START_S:
                logs = "\n".join(
                    f"{path.name}: {path.read_text(errors='replace')[-1500:]}"
                    for path in folder.glob("*.log")
                )
                pytest.fail(f"the control plane does not start\n{logs}")
            time.sleep(0.3)

"""A real node for the control plane of control_plane.py: kubelet, containerd, runc and a bridge network,
all below one temporary folder. Needs root, `kubelet` in KUBE_BIN_DIR and, of Debian, containerd, runc and
containernetworking-plugins.

The kubelet changes sysctls of the machine and leaves network devices and cgroups; both are put back.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.build.docker_engine import end
from tests.deploy.cluster.control_plane import VARIABLE, ControlPlane

NODE = "localhost"  # where the API server finds its kubelet, for commands in pods
BRIDGE = "slmrank0"
SUBNET = "10.88.77.0/24"
CNI_BIN = Path("/usr/lib/cni")
PAUSE = "docker.io/library/slmrank-test-pause:1"
SYSCTLS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "net/ipv4/ip_forward",
)
READY_S = 90.0


def require_node() -> Path:
    """The kubelet. Skips the test, with the reason, where a node cannot be run."""
    kubelet = Path(os.environ.get(VARIABLE, "")) / "kubelet"
    missing = [name for name in ("containerd", "ctr", "runc", "ip") if shutil.which(name) is None]
    if not os.environ.get(VARIABLE) or not kubelet.is_file():
        pytest.skip(f"needs a kubelet in {VARIABLE}")
    if os.geteuid() != 0:
        pytest.skip("a node needs root")
    if missing or not (CNI_BIN / "bridge").is_file():
        absent = [*missing, *([] if (CNI_BIN / "bridge").is_file() else ["CNI plugins"])]
        pytest.skip(
            f"a node needs {', '.join(absent)} (Debian: containerd, runc, "
            "containernetworking-plugins)"
        )
    return kubelet


class Node:
    """A running containerd, and the kubelet once it is started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "c.sock"

    def load(self, archive: Path) -> dict[str, str]:
        """Images out of a `docker save`; returns name -> name@digest."""
        self._ctr("images", "import", str(archive))
        found = {}
        for line in self._ctr("images", "list").splitlines()[1:]:
            name, _, digest = line.split()[:3]
            if "@" not in name and not name.startswith("sha256:"):
                by_digest = f"{name.rpartition(':')[0]}@{digest}"
                self._ctr("images", "tag", "--force", name, by_digest)
                found[name] = by_digest
        return found

    def _ctr(self, *arguments: str) -> str:
        command = ["ctr", "--address", str(self.socket), "--namespace", "k8s.io", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextlib.contextmanager
def containerd(folder: Path) -> Iterator[Node]:
    """containerd with everything below `folder`."""
    node = Node(folder)
    network = folder / "net.d"
    network.mkdir()
    (network / "10-bridge.conflist").write_text(
        json.dumps(
            {
                "cniVersion": "0.4.0",
                "name": "slmrank",
                "plugins": [
                    {
                        "type": "bridge",
                        "bridge": BRIDGE,
                        "isGateway": True,
                        "ipMasq": False,
                        "ipam": {
                            "type": "host-local",
                            "dataDir": str(folder / "ipam"),
                            "ranges": [[{"subnet": SUBNET}]],
                        },
                    },
                    {"type": "portmap", "capabilities": {"portMappings": True}},
                ],
            }
        )
    )
    config = folder / "config.toml"
    config.write_text(
        f"""version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{node.socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_BIN}"
    conf_dir = "{network}"
"""
    )
    with (folder / "containerd.log").open("wb") as log:
        process = subprocess.Popen(
            ["containerd", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        for _ in range(100):
            if node.socket.exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        if not node.socket.exists():
            pytest.fail((folder / "containerd.log").read_text(errors="replace")[-2000:])
        yield node
    finally:
        end(process)
        _clear(folder)


@contextlib.contextmanager
def kubelet(plane: ControlPlane, node: Node, binary: Path) -> Iterator[None]:
    """The kubelet, registered and ready."""
    before = {name: _sysctl(name) for name in SYSCTLS}
    config = node.folder / "kubelet.yaml"
    config.write_text(
        json.dumps(
            {
                "apiVersion": "kubelet.config.k8s.io/v1beta1",
                "kind": "KubeletConfiguration",
                "address": "127.0.0.1",
                "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
                "authorization": {"mode": "AlwaysAllow"},
                "cgroupDriver": "cgroupfs",
                "cgroupsPerQOS": False,
                "enforceNodeAllocatable": [],
                "failSwapOn": False,
                "readOnlyPort": 0,
                "healthzPort": 0,
                "evictionHard": {"memory.available": "50Mi"},
                # Nothing may be taken for unused: images cannot be pulled again.
                "imageGCHighThresholdPercent": 100,
                "imageGCLowThresholdPercent": 99,
                "clusterDNS": ["127.0.0.1"],
                "resolvConf": "/etc/resolv.conf",
            }
        )
    )
    command = [str(binary), f"--config={config}", f"--hostname-override={NODE}"]
    command += [f"--kubeconfig={plane.kubeconfig(node.folder / 'kubeconfig')}"]
    command += [f"--root-dir={node.folder}/kubelet"]
    command += [f"--container-runtime-endpoint=unix://{node.socket}"]
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    minor = int(version.stdout.split(".")[1])
    if minor < 24:
        command.append("--container-runtime=remote")
    with (node.folder / "kubelet.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait_node(plane, process, node.folder)
        yield
    finally:
        end(process)
        for name, value in before.items():
            if value is not None and _sysctl(name) != value:
                (Path("/proc/sys") / name).write_text(value)


def _wait_node(plane: ControlPlane, process: subprocess.Popen[bytes], folder: Path) -> None:
    merge = "application/merge-patch+json"
    started = time.monotonic()
    while True:
        with contextlib.suppress(OSError):
            found = plane.request("GET", f"/api/v1/nodes/{NODE}")
            states = {one["type"]: one["status"] for one in found["status"].get("conditions", [])}
            if states.get("Ready") == "True":
                # The node lifecycle controller, which takes this away, does not run.
                plane.request("PATCH", f"/api/v1/nodes/{NODE}", {"spec": {"taints": []}}, merge)
                return
        if process.poll() is not None or time.monotonic() - started > READY_S:
            log = (folder / "kubelet.log").read_text(errors="replace")
            pytest.fail(f"the node does not get ready\n{log[-3000:]}")
        time.sleep(0.5)


def _clear(folder: Path) -> None:
    """Containers' processes, mounts and the bridge that would stay."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            text = path.read_bytes().decode(errors="replace")
            if "containerd-shim" in text and str(folder) in text:
                os.kill(int(path.parent.name), 9)
    time.sleep(0.5)
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in reversed(mounts):
        if mount.startswith(f"{folder}/"):
            subprocess.run(["umount", "-l", mount], check=False, timeout=30)
    subprocess.run(["ip", "link", "delete", BRIDGE], check=False, timeout=30, capture_output=True)


def _sysctl(name: str) -> str | None:
    try:
        return (Path("/proc/sys") / name).read_text()
    except OSError:
        return None


def ready_addresses(plane: ControlPlane, namespace: str, service: str) -> list[str]:
    """Addresses that the Service's DNS name would answer."""
    found: dict[str, Any] = plane.request(
        "GET", f"/api/v1/namespaces/{namespace}/endpoints/{service}"
    )
    return [
        one["ip"] for subset in found.get("subsets") or [] for one in subset.get("addresses") or []
    ]

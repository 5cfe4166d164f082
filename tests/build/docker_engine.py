"""A Docker engine for the image tests: the one that answers, or a private one started here.

The private one needs root, `dockerd` and `debootstrap` (Debian: docker.io, debootstrap). Its base
image is a minimal Debian with Python, so that no image registry is needed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from slmrank.machine.facts import ask, docker_version

from tests.conftest import ROOT

BASE_VARIABLE = "SLMRANK_CPU_BASE_IMAGE"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PACKAGES = "python3,python3-venv,libpython3.11,ca-certificates"
CODENAME = "bookworm"
_TOOLS = ("docker", "dockerd", "debootstrap")


@dataclass(frozen=True)
class DockerEngine:
    """`environment` reaches it, `base` is an image with Python 3.11 and venv."""

    environment: dict[str, str]
    base: str

    def run(self, *arguments: str, timeout_s: float = 900) -> str:
        """stdout of a docker command that must succeed."""
        done = subprocess.run(
            ["docker", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=self.environment,
        )
        assert done.returncode == 0, f"docker {arguments[0]}: {(done.stdout + done.stderr)[-3000:]}"
        return done.stdout


@contextlib.contextmanager
def docker_engine() -> Iterator[DockerEngine]:
    """Skips the test with the reason where there is no engine and none can be started."""
    version, reason = docker_version()
    if version is not None:
        yield DockerEngine(dict(os.environ), _present_base())
        return
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        needed = f"not installed: {', '.join(missing)}" if missing else "not root"
        pytest.skip(f"no Docker engine answers ({reason}) and none can be started ({needed})")
    # A short path: the engine's sockets lie below it, and their names have 108 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="slmrank-docker-"))
    try:
        with _private_engine(folder) as environment:
            yield DockerEngine(environment, _import_base(folder, environment))
    finally:
        _unmount_below(folder)
        shutil.rmtree(folder)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL when that is not enough."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(30)


def build_cpu_image(docker: DockerEngine, folder: Path, name: str) -> None:
    """build/cpu.Dockerfile over a wheel of the working tree; `folder` is where the context goes."""
    context = folder / "context"
    (context / "dist").mkdir(parents=True)
    shutil.copy2(ROOT / "constraints.txt", context)
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", "dist", str(ROOT)]
    subprocess.run(wheel, cwd=context, check=True, timeout=300)
    build = ["build", "-q", "--network", "host", "--build-arg", f"BASE_IMAGE={docker.base}"]
    docker.run(*build, "-f", str(ROOT / "build" / "cpu.Dockerfile"), "-t", name, str(context))


def _unmount_below(folder: Path) -> None:
    """The engine leaves its network namespace mounted."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in reversed(mounts):
        if mount.startswith(f"{folder}/"):
            subprocess.run(["umount", mount], check=True, timeout=30)


def _present_base() -> str:
    base = os.environ.get(BASE_VARIABLE, "python:3.11-slim-bookworm")
    if ask(["docker", "image", "inspect", base])[0] is None:
        answer, reason = ask(["docker", "pull", "-q", base])
        if answer is None:
            pytest.skip(f"{base} cannot be pulled ({reason}); name a local base in {BASE_VARIABLE}")
    return base


@contextlib.contextmanager
def _private_engine(folder: Path) -> Iterator[dict[str, str]]:
    host = f"unix://{folder}/sock"
    command = ["dockerd", "--host", host, "--pidfile", f"{folder}/pid"]
    command += ["--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"]
    # The tests use the host's network; nothing of it is to be changed.
    command += ["--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]
    environment = {**os.environ, "DOCKER_HOST": host}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        for _ in range(60):
            asked = subprocess.run(
                ["docker", "version"], capture_output=True, timeout=20, check=False, env=environment
            )
            if asked.returncode == 0:
                break
            if process.poll() is not None:
                break
            time.sleep(0.5)
        if asked.returncode != 0:
            told = (folder / "log").read_text(errors="replace").splitlines()[-1:]
            pytest.skip(f"a private dockerd does not start here: {told}")
        yield environment
    finally:
        end(process)


def _import_base(folder: Path, environment: dict[str, str]) -> str:
    """A minimal Debian with the host's certificates, so that pip reaches what the host reaches."""
    root = folder / "root"
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", CODENAME, str(root)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if made.returncode != 0:
        pytest.skip(f"debootstrap failed: {made.stdout.splitlines()[-1:]}")
    if CERTIFICATES.is_file():
        shutil.copy2(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
    name = "slmrank-test-base"
    packed = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
    subprocess.run(
        ["docker", "import", "--change", f"ENV PIP_CERT={CERTIFICATES}", "-", name],
        stdin=packed.stdout,
        capture_output=True,
        timeout=300,
        check=True,
        env=environment,
    )
    assert packed.wait(30) == 0
    shutil.rmtree(root)
    return name

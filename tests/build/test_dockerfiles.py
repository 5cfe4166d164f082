"""The serving images: linted, and the CPU one built and run where a Docker engine answers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from control.client.client import JobRef, RankClient
from control.errors import ControlError
from control.machine.facts import ask, docker_version
from control.serve.server import claim_port
from tests.conftest import ROOT

DOCKERFILES = sorted((ROOT / "build").glob("*.Dockerfile"))
BASE_VARIABLE = "SLMRANK_CPU_BASE_IMAGE"


def instructions(path: Path) -> list[str]:
    text = path.read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_there_is_one_for_each_kind_of_machine() -> None:
    assert [path.name for path in DOCKERFILES] == ["cpu.Dockerfile", "gpu.Dockerfile"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install 'slmrank[dev]')")
    done = subprocess.run(
        [hadolint, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_image_runs_as_a_number_and_pins_its_base(path: Path) -> None:
    lines = instructions(path)
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    # Kubernetes' runAsNonRoot cannot check a name.
    assert users == ["1000:1000"]
    last_root = max(index for index, line in enumerate(lines) if line.startswith("RUN"))
    assert lines.index("USER 1000:1000") > last_root
    base = next(line for line in lines if line.startswith("ARG BASE_IMAGE="))
    assert re.search(r":[\w.${}-]*\d|:\$\{CONTAINER\}", base)
    assert "latest" not in path.read_text()
    assert any(line.startswith("EXPOSE 8000 8001 8002") for line in lines)


def test_the_build_context_is_the_wheel_alone() -> None:
    kept = (ROOT / ".dockerignore").read_text().split()
    assert kept == ["*", "!dist/*.whl", "!constraints.txt"]


def require_docker() -> str:
    """The base image. Skips with the reason where the image cannot be built."""
    version, reason = docker_version()
    if version is None:
        pytest.skip(f"no Docker engine answers: {reason}")
    base = os.environ.get(BASE_VARIABLE, "python:3.11-slim-bookworm")
    if ask(["docker", "image", "inspect", base])[0] is None:
        answer, reason = ask(["docker", "pull", "-q", base])
        if answer is None:
            pytest.skip(f"{base} cannot be pulled ({reason}); name a local base in {BASE_VARIABLE}")
    return base


@pytest.mark.slow
@pytest.mark.triton
def test_the_cpu_image_serves_without_root_and_drains(
    tiny_repository: Path, tmp_path: Path
) -> None:
    base = require_docker()
    context = tmp_path / "context"
    (context / "dist").mkdir(parents=True)
    shutil.copy2(ROOT / "constraints.txt", context)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", "dist", str(ROOT)]
    subprocess.run(command, cwd=context, check=True, timeout=300)
    image = f"slmrank-test-{uuid.uuid4().hex[:8]}"
    build = ["docker", "build", "-q", "--network", "host", "--build-arg", f"BASE_IMAGE={base}"]
    build += ["-f", str(ROOT / "build" / "cpu.Dockerfile"), "-t", image, str(context)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    served = tmp_path / "served"
    shutil.copytree(tiny_repository, served)
    for path in [tmp_path, *served.rglob("*")]:
        path.chmod(0o755)
    ports = [claim_port("127.0.0.1", 0, "") for _ in range(3)]
    run = ["docker", "run", "-d", "--network", "host", "--read-only", "--tmpfs", "/tmp:exec"]
    run += ["--cap-drop", "ALL", "--volume", f"{served}:/models:ro", image, "serve", "/models"]
    for flag, port in zip(("--grpc-port", "--http-port", "--metrics-port"), ports, strict=True):
        run += [flag, str(port)]
    container = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
    name = container.stdout.strip()
    try:
        with RankClient(f"127.0.0.1:{ports[0]}") as client:
            scores = _patiently(client)
        assert all(0 < score < 1 for score in scores)
        answer, _ = ask(["docker", "exec", name, "id", "-u"])
        assert answer == "1000\n"
        subprocess.run(["docker", "stop", "-t", "30", name], check=True, timeout=60)
        code, _ = ask(["docker", "inspect", "--format", "{{.State.ExitCode}}", name])
        assert code == "0\n"
    finally:
        subprocess.run(["docker", "rm", "-f", name], check=False, timeout=60)
        subprocess.run(["docker", "rmi", "-f", image], check=False, timeout=60)


def _patiently(client: RankClient) -> list[float]:
    for _ in range(90):
        try:
            return [item.score for item in client.score("nurse", [JobRef(job_id="job-0")])]
        except ControlError:
            time.sleep(1)
    raise AssertionError("the container did not answer within 90 s")

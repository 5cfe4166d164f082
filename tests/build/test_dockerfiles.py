"""The serving images: linted, and the CPU one built and run where a Docker engine answers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from slmrank.client.client import RankClient
from slmrank.errors import ControlError
from slmrank.serving.ports import claim_port

from tests.build.docker_engine import DockerEngine, build_cpu_image, docker_engine
from tests.conftest import ROOT

DOCKERFILES = sorted((ROOT / "build").glob("*.Dockerfile"))


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


@pytest.mark.slow
@pytest.mark.triton
def test_the_cpu_image_serves_without_root_and_drains(
    tiny_repository: Path, tmp_path: Path
) -> None:
    with docker_engine() as docker:
        image = f"slmrank-test-{uuid.uuid4().hex[:8]}"
        build_cpu_image(docker, tmp_path, image)
        try:
            _serve_and_stop(docker, image, tiny_repository, tmp_path)
        finally:
            docker.run("rmi", "-f", image)


def _serve_and_stop(docker: DockerEngine, image: str, repository: Path, folder: Path) -> None:
    """As in a cluster: no root, no capabilities, nothing writable but /tmp."""
    served = folder / "served"
    shutil.copytree(repository, served)
    for path in [*folder.parents[:2], folder, served, *served.rglob("*")]:
        path.chmod(0o755)
    ports = [claim_port("127.0.0.1", 0, "") for _ in range(3)]
    run = ["run", "-d", "--network", "host", "--read-only", "--tmpfs", "/tmp:exec"]
    run += ["--cap-drop", "ALL", "--volume", f"{served}:/models:ro", image, "serve", "/models"]
    for flag, port in zip(("--grpc-port", "--http-port", "--metrics-port"), ports, strict=True):
        run += [flag, str(port)]
    # As the pod's init container does, without a network.
    verify = ["run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp"]
    verify += ["--cap-drop", "ALL", "--volume", f"{served}:/models:ro", image, "verify", "/models"]
    assert "as generated" in docker.run(*verify)
    name = docker.run(*run).strip()
    try:
        with RankClient(f"127.0.0.1:{ports[0]}") as client:
            scores = _patiently(client)
        assert all(0 < score < 1 for score in scores)
        # As the pod's startup probe does.
        smoke = ["control", "smoke", "--url", f"127.0.0.1:{ports[0]}", "--known", "/models"]
        assert "all within" in docker.run("exec", name, *smoke)
        assert docker.run("exec", name, "id", "-u") == "1000\n"
        docker.run("stop", "-t", "30", name)
        assert docker.run("inspect", "--format", "{{.State.ExitCode}}", name) == "0\n"
    finally:
        docker.run("rm", "-f", name)


def _patiently(client: RankClient) -> list[float]:
    for _ in range(90):
        try:
            return [item.score for item in client.score("nurse", ["job-0"])]
        except ControlError:
            time.sleep(1)
    raise AssertionError("the container did not answer within 90 s")

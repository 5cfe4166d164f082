"""Every command in the README is run: on the tiny bundle where it names the demo spec."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from slmrank.client.client import RankClient

from tests.conftest import ROOT, Control, TinyBundle
from tests.deploy.cluster.api_server import ApiServer
from tests.deploy.cluster.test_push import in_pods
from tests.deploy.releases import CPU_IMAGE
from tests.redis_server import RedisServer

README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """The lines of every `sh` block, continuation lines joined, comments cut."""
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and line[0] != "#"]


CLUSTER = ("push", "plan", "apply", "status", "rollback", "abort", "delete")


def deployable(tiny: TinyBundle, items_per_s: int = 50) -> Path:
    """The tiny spec with what a deployment needs."""
    path = tiny.spec.with_name(f"deployable-{items_per_s}.yaml")
    deploy = {
        "image": CPU_IMAGE,
        "scaling": {"items_per_s": items_per_s},
        "rollout": {"startup_s": 10, "pull_s": 10},
    }
    path.write_text(yaml.safe_dump({"extends": tiny.spec.name, "deploy": deploy}))
    return path


def adapt(line: str, tiny: TinyBundle, url: str) -> list[str]:
    """A `control` line for the tiny bundle and the test server."""
    words = shlex.split(line)[1:]
    known = {"build/demo.yaml": str(tiny.spec)}
    if words[0] == "deploy" and words[1] != "check":
        known = {"build/demo.yaml": str(deployable(tiny)), "k8s/base": str(tiny.artifacts / "k8s")}
    if words[0] == "autoscale":
        words += ["--hours", "0.2"]
    jobs = {"29-1141.00-1": "job-0", "35-3011.00-1": "job-4"}
    words = [known.get(word, jobs.get(word, word)) for word in words]
    verb = words[0]
    if verb == "demo" and "--spec" not in words:
        words += ["--spec", str(tiny.spec)]
    if "queries.parquet" in words:
        words[words.index("queries.parquet")] = str(queries_table(tiny))
        words[words.index("scores")] = str(tiny.artifacts / "scores-offline")
    if verb == "watch":
        words.append("--until-idle")
    if verb == "score":
        words += ["--url", url]
    elif verb not in ("spec", "--help") and words[1] not in ("check", "status", *CLUSTER[4:]):
        words += ["--artifacts", str(tiny.artifacts)]
    small = {"sweep.items=[1,32]": "sweep.items=[1,2]", "sweep.items=[8]": "sweep.items=[2]"}
    small["sweep.slo.latency_ms=500"] = "sweep.slo.latency_ms=90"  # a confirmation lasts 100 times
    words = [small.get(word, word) for word in words]
    if "new-jobs.jsonl" in words:
        words[words.index("new-jobs.jsonl")] = str(new_jobs(tiny))
    return words


def queries_table(tiny: TinyBundle) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    path = tiny.spec.with_name("queries.parquet")
    parquet.write_table(pa.table({"query": ["nurse"], "job_ids": [["job-1", "job-2"]]}), path)
    return path


def new_jobs(tiny: TinyBundle) -> Path:
    path = tiny.spec.with_name("new-jobs.jsonl")
    path.write_text(json.dumps({"title": "nurse", "description": "Cares at night."}) + "\n")
    return path


def test_own_data_and_an_own_model_stand_in_the_first_third() -> None:
    lines = README.splitlines()
    assert lines.index("## Your own jobs and model") < len(lines) / 3


@pytest.mark.long
@pytest.mark.slow
def test_the_spec_for_own_data_and_an_own_model_works(
    control: Control, tiny: TinyBundle, tmp_path: Path
) -> None:
    """Its values as they stand, on the tiny data and model."""
    block = re.search(r"```yaml\n(name: mine.*?)```", README, flags=re.DOTALL)
    assert block is not None
    base = yaml.safe_load(tiny.spec.read_text())["base"]["source"]
    for name in ("jobs.jsonl", "pairs.jsonl"):
        shutil.copy2(tiny.spec.with_name(name), tmp_path / name)
    spec = tmp_path / "mine.yaml"
    spec.write_text(block[1].replace("/models/my-qwen3", base))
    quick = ("finetune.steps=2", "prompt.max_item_tokens=160", "engine.openvino.precision=float32")
    changes = [f"--set={one}" for one in quick]
    done = control("repo", spec, *changes, "--artifacts", tmp_path / "a", "--json")
    assert done.returncode == 0, done.stderr
    assert (Path(json.loads(done.stdout)["path"]) / "rank" / "config.pbtxt").is_file()
    assert "control repo mine.yaml" in README


def of_a_cluster(line: str) -> bool:
    return line.startswith("control deploy ") and line.split()[2] in CLUSTER


def test_there_are_commands_and_few_lines() -> None:
    assert len(commands()) >= 12
    assert len(README.splitlines()) < 250


@pytest.mark.parametrize("target", re.findall(r"`?make ([a-z-]+)", README))
def test_make_lines_run_what_they_say(target: str) -> None:
    done = subprocess.run(
        ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    runs = {"demo": "control demo", "test": "pytest", "test-long": "-m long", "check": "mypy"}
    assert runs[target] in done.stdout


@pytest.mark.triton
@pytest.mark.perf
@pytest.mark.parametrize(
    "line",
    [
        one
        for one in commands()
        if one.startswith("control") and not one.endswith("&") and not of_a_cluster(one)
    ],
)
def test_control_lines_run(
    line: str,
    control: Control,
    tiny: TinyBundle,
    tiny_server: Any,
    tiny_repository: Path,
    tmp_path: Path,
) -> None:
    with contextlib.ExitStack() as stack:
        if "redis:" in line:
            redis = RedisServer(tmp_path)
            stack.callback(redis.kill)
            line = line.replace("localhost:6379", f"127.0.0.1:{redis.port}")
        done = control(*adapt(line, tiny, tiny_server.url), stdin="job-1\njob-2\n")
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert done.stdout


@pytest.mark.long
@pytest.mark.triton
def test_the_lines_for_a_cluster_run_one_after_the_other(
    control: Control, tiny: TinyBundle, tiny_repository: Path, tmp_path: Path
) -> None:
    lines = [line for line in commands() if of_a_cluster(line)]
    assert {line.split()[2] for line in lines} == set(CLUSTER)
    stop = threading.Event()
    with ApiServer() as server:
        server.run_command = in_pods(tmp_path)
        server.run_in_background(stop)
        environment = {"KUBECONFIG": str(server.kubeconfig(tmp_path / "kubeconfig"))}
        try:
            for line in lines:
                if "rollback" in line:
                    # There must be another release to go back from.
                    other = ["deploy", "apply", deployable(tiny, 60), "--artifacts", tiny.artifacts]
                    assert control(*other, environment=environment).returncode == 0
                done = control(*adapt(line, tiny, ""), environment=environment)
                assert done.returncode == 0, f"{line}\n{done.stderr}"
                assert done.stdout
        finally:
            stop.set()


@pytest.mark.long
@pytest.mark.triton
def test_the_serve_line_serves(tiny: TinyBundle, tiny_repository: Path) -> None:
    lines = [line for line in commands() if line.startswith("control serve")]
    assert lines
    words = shlex.split(lines[0].rstrip("& "))[1:]
    words = [str(tiny.spec) if word == "build/demo.yaml" else word for word in words]
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0", "--json"]
    command = [str(Path(sys.executable).parent / "control"), *words, *ports]
    command += ["--artifacts", str(tiny.artifacts)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            text = ""
            while not text.rstrip().endswith("}"):
                text += process.stdout.readline()
            with RankClient(json.loads(text)["grpc"]) as client:
                assert client.describe()["bundle"] == "tiny"
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.long
@pytest.mark.triton
def test_the_ui_line_opens_a_page(tiny: TinyBundle, tiny_repository: Path) -> None:
    (line,) = [line for line in commands() if line.startswith("control ui")]
    words = shlex.split(line.rstrip("& "))[1:]
    words = [str(tiny.spec) if word == "build/demo.yaml" else word for word in words]
    words[words.index("8090")] = "0"
    command = [str(Path(sys.executable).parent / "control"), *words]
    command += ["--artifacts", str(tiny.artifacts)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            with urlopen(url, timeout=20) as page:
                assert b"Search jobs" in page.read()
        finally:
            process.terminate()
            assert process.wait(30) == 0


@pytest.mark.triton
def test_the_gateway_line_ranks_for_the_client_that_stands_below(tiny_server: Any) -> None:
    (line,) = [line for line in commands() if line.startswith("control gateway")]
    words = shlex.split(line.rstrip("& ").replace("localhost:8001", tiny_server.url))[1:]
    words[words.index("8080")] = "0"
    command = [str(Path(sys.executable).parent / "control"), *words]
    call = re.search(r"`(cohere\..*)`", README)
    assert call is not None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            where = process.stdout.readline().split()[-1]
            code = call[1].replace("localhost:8080", where).replace("query=...", "query='q'")
            documents = "documents=['Bake bread.', {'id': 'job-0'}]"
            code = code.replace("documents=[...]", documents)
            found = eval(code, {"cohere": pytest.importorskip("cohere")})
            assert len(found.results) == 2
        finally:
            process.terminate()
            assert process.wait(30) == 0


def test_no_other_programs_are_asked_for() -> None:
    first = {shlex.split(line)[0] for line in commands()}
    assert first == {"make", "control", "."}


@pytest.mark.triton
def test_the_python_example_runs(tiny_server: Any) -> None:
    block = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert block is not None
    code = block[1].replace("localhost:8001", tiny_server.url).replace("29-1141.00-1", "job-0")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "job-0" in done.stdout

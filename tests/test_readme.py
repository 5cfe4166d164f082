"""Every command in the README is run: on the tiny bundle where it names the demo spec."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from control.client.client import RankClient
from tests.conftest import ROOT, Control, TinyBundle

README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKE_TARGETS = {"demo", "test", "test-fast", "check", "clean"}


def commands() -> list[str]:
    """The lines of every `sh` block, continuation lines joined, comments cut."""
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and line[0] != "#"]


def adapt(line: str, tiny: TinyBundle, url: str) -> list[str]:
    """A `control` line for the tiny bundle and the test server."""
    words = shlex.split(line)[1:]
    known = {"build/demo.yaml": str(tiny.spec)}
    jobs = {"29-1141.00-1": "job-0", "35-3011.00-1": "job-4"}
    words = [known.get(word, jobs.get(word, word)) for word in words]
    verb = words[0]
    if verb == "demo" and "--spec" not in words:
        words += ["--spec", str(tiny.spec)]
    if verb == "score":
        words += ["--url", url]
    elif verb not in ("spec", "--help"):
        words += ["--artifacts", str(tiny.artifacts)]
    if verb in ("sweep", "slo") and "--items" in words:
        words[words.index("--items") + 1] = "2"
        words[words.index("--tokens") + 1] = "24"
    return words


def test_there_are_commands_and_few_lines() -> None:
    assert len(commands()) >= 12
    assert len(README.splitlines()) < 250


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("make")])
def test_make_lines_name_real_targets(line: str) -> None:
    target = line.split()[1]
    assert target in MAKE_TARGETS
    done = subprocess.run(
        ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    wanted = {"demo": "control demo", "test": "pytest", "check": "mypy"}.get(target, "")
    assert wanted in done.stdout


@pytest.mark.triton
@pytest.mark.perf
@pytest.mark.parametrize(
    "line", [one for one in commands() if one.startswith("control") and " serve " not in one]
)
def test_control_lines_run(
    line: str, control: Control, tiny: TinyBundle, tiny_server: Any, tiny_repository: Path
) -> None:
    done = control(*adapt(line, tiny, tiny_server.url), stdin="job-1\njob-2\n")
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert done.stdout


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


def test_no_other_programs_are_asked_for() -> None:
    first = {shlex.split(line)[0] for line in commands()}
    assert first <= {"make", "control", "git", "cd", "python", "."} - {"git", "cd"} | {"."}


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

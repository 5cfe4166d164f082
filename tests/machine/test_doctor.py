"""The doctor: facts in, findings out; and the command on this machine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from slmrank.machine.facts import Gpu, ask, find_gpus
from slmrank.machine.inspection import Finding, Machine
from slmrank.pipeline.doctor import diagnose, look
from slmrank.spec.engine import EngineSpec

from tests.conftest import ROOT, Control

H200 = Gpu(
    name="NVIDIA H200", capability="9.0", driver="580.65.06", memory_mib=143771, uuid="GPU-1"
)
LOCAL = Machine(
    system="Linux",
    architecture="x86_64",
    python=(3, 11),
    versions={
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "openvino": "2026.4",
        "numpy": "1.26.4",
    },
    cpu=frozenset({"avx512_vnni"}),
    memory_gib=24.0,
    disk_gib=100.0,
    tritonserver="nvidia-pytriton",
    perf_analyzer="2.50",
    gpus=(),
    no_gpu="nvidia-smi not found",
    container=None,
    trtllm_build=None,
    backend=False,
    docker=None,
    no_docker="docker not found",
)
GPU = dataclasses.replace(
    LOCAL,
    python=(3, 12),
    versions={"tensorrt-llm": "1.2.1", "tensorrt": "10.14.1.48", "numpy": "1.26.4"},
    tritonserver="PATH",
    gpus=(H200,),
    container="26.07",
    trtllm_build="/usr/local/bin/trtllm-build",
    backend=True,
)


def findings(machine: Machine, target: Any, **trtllm: Any) -> dict[str, Finding]:
    spec = EngineSpec.model_validate({"trtllm": trtllm})
    return {one.name: one for one in diagnose(machine, [target], spec)}


def wrong(found: dict[str, Finding]) -> set[str]:
    return {name for name, one in found.items() if one.state == "wrong"}


def test_good_machines_have_nothing_wrong() -> None:
    assert not wrong(findings(LOCAL, "openvino"))
    assert not wrong(findings(GPU, "trtllm-engine"))
    assert not wrong(findings(GPU, "trtllm-llmapi"))


def test_every_fault_has_a_fix_and_nothing_else_has() -> None:
    for target in ("openvino", "trtllm-engine", "trtllm-llmapi"):
        for machine in (LOCAL, GPU):
            for one in findings(machine, target).values():
                assert bool(one.fix) == (one.state != "ok"), one


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"system": "Darwin"}, "platform"),
        ({"architecture": "aarch64"}, "platform"),
        ({"python": (3, 13)}, "python"),
        ({"versions": {**LOCAL.versions, "numpy": "2.1.0"}}, "numpy"),
        ({"versions": {"numpy": "1.26.4"}}, "openvino"),
        ({"tritonserver": ("none", "install")}, "tritonserver"),
        ({"perf_analyzer": ("none", "install")}, "perf_analyzer"),
        ({"memory_gib": 2.0}, "memory"),
        ({"disk_gib": 1.0}, "free disk"),
    ],
)
def test_each_lack_for_openvino_is_found(changes: dict[str, Any], name: str) -> None:
    assert name in wrong(findings(dataclasses.replace(LOCAL, **changes), "openvino"))


def test_numpy_2_is_fine_beside_a_server_that_is_not_the_packaged_one() -> None:
    machine = dataclasses.replace(
        LOCAL, versions={**LOCAL.versions, "numpy": "2.1.0"}, tritonserver="PATH"
    )
    assert "numpy" not in wrong(findings(machine, "openvino"))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"gpus": ()}, "GPU"),
        ({"gpus": (dataclasses.replace(H200, capability="8.9"),)}, "GPU"),
        ({"gpus": (dataclasses.replace(H200, driver="550.1"),)}, "driver"),
        ({"container": "26.01"}, "running in"),
        ({"versions": {"tensorrt-llm": "1.1.0", "tensorrt": "10.14.1.48"}}, "tensorrt-llm"),
        ({"versions": {"tensorrt-llm": "1.2.1", "tensorrt": "10.13.3.9"}}, "tensorrt"),
        ({"trtllm_build": None}, "trtllm-build"),
        ({"backend": False}, "Triton backend"),
        ({"tritonserver": "nvidia-pytriton"}, "tritonserver"),
        ({"disk_gib": 20.0}, "free disk"),
    ],
)
def test_each_lack_for_an_engine_is_found(changes: dict[str, Any], name: str) -> None:
    assert wrong(findings(dataclasses.replace(GPU, **changes), "trtllm-engine")) == {name}


def test_a_wrong_pair_and_an_unknown_gpu_in_the_spec_are_found() -> None:
    found = findings(GPU, "trtllm-engine", container="26.01")
    assert "1.1.0, not 1.2.1" in found["container and version"].found
    assert "26.04" in found["container and version"].fix
    assert "planned GPU" in wrong(findings(GPU, "trtllm-engine", gpu="Voodoo"))
    found = findings(GPU, "trtllm-engine", gpu="NVIDIA-A100-PCIE-40GB", quantization="fp8")
    assert "needs compute capability 8.9" in found["planned GPU"].found
    other = dataclasses.replace(H200, name="NVIDIA A100", capability="8.0")
    mixed = dataclasses.replace(GPU, gpus=(other, H200))
    assert not wrong(findings(mixed, "trtllm-engine"))
    assert wrong(findings(GPU, "trtllm-engine", quantization="fp8")) == {"nvidia-modelopt"}


def test_unknown_is_not_wrong() -> None:
    machine = dataclasses.replace(LOCAL, cpu=frozenset({"sse2"}), memory_gib=None)
    found = findings(machine, "openvino")
    assert found["INT8 instructions"].state == found["memory"].state == "unknown"
    assert not wrong(found)
    mute = dataclasses.replace(H200, driver="[N/A]", memory_mib=None)
    found = findings(dataclasses.replace(GPU, gpus=(mute,)), "trtllm-engine")
    assert found["driver"].state == "unknown"
    outside = dataclasses.replace(GPU, container=None)
    assert findings(outside, "trtllm-engine")["running in"].state == "unknown"


def test_looking_at_this_machine(tmp_path: Path) -> None:
    machine = look(tmp_path / "not" / "there" / "yet")
    assert machine.disk_gib > 0
    assert machine.versions["numpy"].startswith("1.")
    assert isinstance(machine.tritonserver, str)


def test_nvidia_smi_is_read_and_its_failure_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    tool.write_text(
        "#!/bin/sh\necho 'NVIDIA L4, 8.9, 570.1, 23034, GPU-1'\necho 'NVIDIA L4, 8.9, [N/A], [N/A], GPU-2'\n"
    )
    tool.chmod(0o755)
    gpus, reason = find_gpus()
    assert [(one.name, one.driver_major, one.memory_mib) for one in gpus] == [
        ("NVIDIA L4", 570, 23034),
        ("NVIDIA L4", None, None),
    ]
    assert reason == ""
    tool.write_text("#!/bin/sh\necho 'Driver/library version mismatch' >&2\nexit 18\n")
    assert find_gpus() == ([], "nvidia-smi failed: Driver/library version mismatch")
    tool.write_text("#!/bin/sh\necho 'No devices were found'\n")
    assert find_gpus()[0] == []
    assert "No devices" in find_gpus()[1]
    assert ask(["no-such-tool-here"]) == (None, "no-such-tool-here not found")


@pytest.mark.slow
def test_the_command_judges_what_it_is_asked_for(control: Control, tmp_path: Path) -> None:
    done = control("doctor", "--artifacts", tmp_path)
    assert done.returncode == 0, done.stdout
    assert "openvino: ready" in done.stdout
    assert "trtllm-engine" in done.stdout
    done = control("doctor", "--target", "trtllm-engine", "--json")
    answer = json.loads(done.stdout)
    has_gpu = answer["wrong"]["trtllm-engine"] == 0
    assert done.returncode == (0 if has_gpu else 11)
    assert answer["judged"] == ["trtllm-engine"]
    assert answer["ready"] is has_gpu
    done = control("doctor", ROOT / "build" / "demo.yaml", "--json")
    assert json.loads(done.stdout)["judged"] == ["openvino"]

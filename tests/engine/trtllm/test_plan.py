"""The build plan, the compatibility table, and what a built engine must say of itself."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from slmrank.artifacts import ArtifactStore, inventory
from slmrank.engine.trtllm.compatibility import load_compatibility, same_release
from slmrank.engine.trtllm.plan import BuildPlan, check_engine_config, make_plan
from slmrank.errors import EngineError, SpecError
from slmrank.hashing import hash_value
from slmrank.model.checkpoint import Geometry
from slmrank.spec.engine import TrtllmSpec

from tests.conftest import ROOT

GEOMETRY = Geometry(
    family="qwen3",
    layers=20,
    hidden_size=1024,
    heads=16,
    kv_heads=8,
    head_dim=128,
    intermediate_size=1536,
    vocab_size=151936,
)
CHECKPOINT = {
    "architecture": "Qwen3ForCausalLM",
    "dtype": "bfloat16",
    "num_hidden_layers": 20,
    "hidden_size": 1024,
    "intermediate_size": 1536,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_size": 128,
    "vocab_size": 151936,
}


def plan(**changes: Any) -> BuildPlan:
    return make_plan(TrtllmSpec(**changes), GEOMETRY, positions=40960, longest_prompt=235)


def test_the_command_is_the_exact_one() -> None:
    command = plan().command("/checkpoint", "/out")
    assert " ".join(command) == (
        "trtllm-build --checkpoint_dir /checkpoint --output_dir /out --logits_dtype float32 "
        "--gather_generation_logits --max_batch_size 256 --max_num_tokens 16384 "
        "--max_input_len 235 --max_seq_len 236 --max_beam_width 1 --kv_cache_type paged "
        "--tokens_per_block 32 --remove_input_padding enable --context_fmha enable "
        "--use_paged_context_fmha enable --gpt_attention_plugin auto --gemm_plugin auto "
        "--multiple_profiles enable"
    )


# Each value differs from the default.
OTHER: dict[str, Any] = {
    "container_digest": "sha256:" + "0" * 64,
    "container": "26.05",
    "gpu": "NVIDIA-L4",
    "max_batch_size": 64,
    "max_num_tokens": 8192,
    "tokens_per_block": 64,
    "gemm_plugin": "disable",
    "multiple_profiles": False,
    "logits_dtype": "float16",
    "quantization": "int8-sq",
}


@pytest.mark.parametrize("name", OTHER)
def test_everything_that_decides_an_engine_is_in_its_key(name: str) -> None:
    other = plan(**{name: OTHER[name]})
    assert other.hash != plan().hash
    assert other.tag("c" * 64) != plan().tag("c" * 64)


def test_the_key_is_stable_and_follows_the_checkpoint() -> None:
    assert plan().tag("c" * 64) == plan().tag("c" * 64)
    assert plan().tag("c" * 64) != plan().tag("d" * 64)
    # How a repository runs the engine is no part of the engine.
    assert plan(kv_cache_fraction=0.5, engines="/other").hash == plan().hash
    for field in dataclasses.fields(BuildPlan):
        value = getattr(plan(), field.name)
        changed = (
            f"{value}x"
            if isinstance(value, str)
            else (not value if isinstance(value, bool) else value + 1)
        )
        other = dataclasses.replace(plan(), **{field.name: changed})
        assert other.tag("c") != plan().tag("c"), field.name


@pytest.mark.parametrize(
    ("changes", "text", "hint"),
    [
        ({"container": "26.01"}, "26.01 holds TensorRT-LLM 1.1.0, not 1.2.1", "container 26.04 or"),
        ({"container": "25.11"}, "1.2.0rc2, not 1.2.1", "26.07"),
        ({"container": "27.01"}, "not in build/compatibility.yaml", "26.04"),
        ({"version": "1.3.0"}, "'1.3.0' is not supported", "version 1.2.1 with container 26.04"),
        ({"version": "1.1.0", "container": "26.01"}, "'1.1.0' is not supported", "version 1.2.1"),
        ({"gpu": "NVIDIA-H100"}, "'NVIDIA-H100' is not a known GPU", "NVIDIA-H100-..."),
        ({"gpu": "NVIDIA-B200", "quantization": "int8-sq"}, "ends below", "use fp8"),
        ({"gpu": "NVIDIA-H2000"}, "'NVIDIA-H2000' is not a known GPU", "NVIDIA-H200"),
        ({"gpu": "Tesla"}, "not a known GPU product", "nvidia.com/gpu.product"),
        (
            {"quantization": "fp8", "gpu": "NVIDIA-A100-SXM4-80GB"},
            "needs compute capability 8.9",
            "int8-sq",
        ),
        ({"max_num_tokens": 200}, "below the longest prompt (235 tokens)", "raise it to 235"),
    ],
)
def test_wrong_pairs_and_limits_name_what_to_use(
    changes: dict[str, Any], text: str, hint: str
) -> None:
    with pytest.raises(SpecError) as caught:
        plan(**changes)
    assert text in caught.value.message
    assert hint in caught.value.hint


def test_the_model_must_have_positions_and_widths_for_it() -> None:
    with pytest.raises(SpecError, match="the model has 128 positions"):
        make_plan(TrtllmSpec(), GEOMETRY, positions=128, longest_prompt=235)
    odd = dataclasses.replace(GEOMETRY, intermediate_size=1530)
    with pytest.raises(SpecError, match="intermediate size is 1530"):
        make_plan(TrtllmSpec(quantization="fp8"), odd, positions=4096, longest_prompt=235)


def test_product_labels_with_variants_are_known() -> None:
    table = load_compatibility()
    assert table.capability("NVIDIA-A100-SXM4-80GB") == "8.0"
    assert table.capability("NVIDIA-H100-80GB-HBM3") == "9.0"
    assert table.capability("NVIDIA-L40S") == "8.9"
    assert table.capability("NVIDIA-A10") == table.capability("NVIDIA-A10G") == "8.6"
    assert table.capability("NVIDIA-L4-SHARED") == "8.9"


def test_the_table_is_ordered_and_names_each_container_once() -> None:
    tags = [one.container for one in load_compatibility().containers]
    assert tags == sorted(set(tags))
    assert {one.trtllm for one in load_compatibility().containers} >= set(
        load_compatibility().supported
    )


def test_dockerfile_and_spec_name_the_same_container() -> None:
    dockerfile = (ROOT / "build" / "gpu.Dockerfile").read_text()
    assert f"ARG CONTAINER={TrtllmSpec().container}\n" in dockerfile
    image = load_compatibility().image_of("${CONTAINER}", None)
    assert f"ARG BASE_IMAGE={image}\n" in dockerfile


def engine_config(given: BuildPlan) -> dict[str, Any]:
    """What trtllm-build writes for a plan that was followed."""
    gemm = {"auto": "bfloat16", "fp8": "fp8", "disable": None}[given.gemm_plugin]
    return {
        "version": "1.2.1",
        "pretrained_config": {
            **CHECKPOINT,
            "logits_dtype": given.logits_dtype,
            "quantization": {"quant_algo": None},
        },
        "build_config": {
            "max_input_len": given.max_input_len,
            "max_seq_len": given.max_seq_len,
            "max_batch_size": given.max_batch_size,
            "max_num_tokens": given.max_num_tokens,
            "max_beam_width": 1,
            "kv_cache_type": "PAGED",
            "gather_context_logits": False,
            "gather_generation_logits": True,
            "plugin_config": {
                "gemm_plugin": gemm,
                "use_paged_context_fmha": True,
                "tokens_per_block": given.tokens_per_block,
                "remove_input_padding": True,
                "multiple_profiles": given.multiple_profiles,
            },
        },
    }


def test_a_faithful_engine_passes() -> None:
    check_engine_config(engine_config(plan()), plan(), CHECKPOINT)
    other = plan(gemm_plugin="disable", multiple_profiles=False)
    check_engine_config(engine_config(other), other, CHECKPOINT)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("version", "1.1.0"),
        ("build_config.gather_generation_logits", False),
        ("build_config.gather_context_logits", True),
        ("build_config.kv_cache_type", "DISABLED"),
        ("build_config.max_batch_size", 2048),
        ("build_config.max_num_tokens", 8192),
        ("build_config.max_seq_len", 4096),
        ("build_config.max_input_len", 1024),
        ("build_config.max_beam_width", 2),
        ("build_config.plugin_config.tokens_per_block", 64),
        ("build_config.plugin_config.use_paged_context_fmha", False),
        ("build_config.plugin_config.remove_input_padding", False),
        ("build_config.plugin_config.multiple_profiles", False),
        ("build_config.plugin_config.gemm_plugin", None),
        ("pretrained_config.logits_dtype", "float16"),
        ("pretrained_config.head_size", 64),
        ("pretrained_config.vocab_size", 2),
        ("pretrained_config.quantization.quant_algo", "FP8"),
    ],
)
def test_every_departure_from_the_plan_is_named(path: str, value: Any) -> None:
    config = copy.deepcopy(engine_config(plan()))
    *parents, key = path.split(".")
    inner = config
    for parent in parents:
        inner = inner[parent]
    inner[key] = value
    with pytest.raises(EngineError) as caught:
        check_engine_config(config, plan(), CHECKPOINT)
    assert key in caught.value.message
    assert caught.value.message.count("planned") == 2  # the sentence and this one difference


FAKE_SMI = """#!/bin/sh
echo "NVIDIA A100-SXM4-80GB, 8.0, 580.65.06, 81920, GPU-other"
echo "{name}, {capability}, 580.65.06, 143771, GPU-planned"
"""
FAKE_BUILD = """#!{python}
import json, os, sys, pathlib
arguments = sys.argv[1:]
if arguments[:1] == ["version"]:
    print("28.0.1"); sys.exit(0)
if "run" in arguments:
    volumes = [arguments[i + 1] for i, one in enumerate(arguments) if one == "--volume"]
    places = {{inside: outside for outside, inside in (v.split(":")[:2] for v in volumes)}}
    pathlib.Path({log!r}).write_text(json.dumps(arguments))
    def outside(word):
        inside = "/" + word.split("/")[1] if word.startswith("/") else ""
        return places[inside] + word[len(inside):] if inside in places else word
    arguments = [outside(one) for one in arguments[arguments.index("trtllm-build") + 1 :]]
    value = lambda flag: arguments[arguments.index(flag) + 1]
{body}
value = lambda flag: arguments[arguments.index(flag) + 1]
output = pathlib.Path(value("--output_dir"))
config = json.loads(pathlib.Path({config!r}).read_text())
checkpoint = json.loads((pathlib.Path(value("--checkpoint_dir")) / "config.json").read_text())
config["pretrained_config"] = checkpoint
build = config["build_config"]
for flag in ("max_input_len", "max_seq_len", "max_batch_size", "max_num_tokens"):
    build[flag] = int(value("--" + flag))
# The real one clips to what a full batch can hold.
build["max_num_tokens"] = min(build["max_num_tokens"], build["max_batch_size"] * build["max_seq_len"])
config["seen"] = os.environ.get("CUDA_VISIBLE_DEVICES")
(output / "config.json").write_text(json.dumps(config))
(output / "rank0.engine").write_bytes(b"engine")
timings = pathlib.Path(value("--output_timing_cache"))
assert value("--input_timing_cache") == str(timings)
timings.write_text(str(int(timings.read_text()) + 1) if timings.exists() else "1")
"""


class FakeGpuMachine:
    """nvidia-smi, trtllm-build, docker and the distribution tensorrt_llm, in front of the PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import os

        self.bin = folder / "bin"
        self.bin.mkdir()
        self.docker_log = folder / "docker.json"
        self._config = folder / "engine-config.json"
        self._config.write_text(json.dumps(engine_config(plan())))
        self._monkeypatch = monkeypatch
        monkeypatch.setenv("PATH", f"{self.bin}:{os.environ['PATH']}")
        self.gpu("9.0")
        self.tool("trtllm-build")
        self.tool("docker")
        self.versions = {"tensorrt-llm": "1.2.1", "tensorrt": "10.14.1.48"}
        monkeypatch.setattr(
            "slmrank.engine.trtllm.builder.installed_version", lambda name: self.versions.get(name)
        )

    def gpu(self, capability: str, name: str = "NVIDIA H200") -> None:
        self._script("nvidia-smi", FAKE_SMI.format(capability=capability, name=name))

    def tool(self, name: str, body: str = "pass") -> None:
        import sys

        text = FAKE_BUILD.format(
            python=sys.executable, log=str(self.docker_log), config=str(self._config), body=body
        )
        self._script(name, text)

    def remove(self, name: str) -> None:
        (self.bin / name).unlink()

    def _script(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGpuMachine:
    return FakeGpuMachine(tmp_path, monkeypatch)


@pytest.fixture
def planned(make_checkpoint: Callable[..., Any], tmp_path: Path) -> Any:
    from slmrank.engine.trtllm.checkpoint import emit_checkpoint
    from slmrank.engine.trtllm.compile import read_planned, write_plan

    checkpoint = make_checkpoint("qwen3")
    folder = tmp_path / "planned"
    emit_checkpoint(checkpoint, folder / "checkpoint", dtype="bfloat16")
    given = make_plan(TrtllmSpec(), checkpoint.geometry, positions=512, longest_prompt=235)
    write_plan(folder, given, hash_value(inventory(folder / "checkpoint")))
    return read_planned(folder)


def build(planned: Any, root: Path, *, docker: bool = False, timeout_s: float = 60.0) -> Any:
    from slmrank.engine.trtllm.builder import Builder, find_builder
    from slmrank.engine.trtllm.compile import compile_engine

    builder = find_builder(planned.plan, docker=docker)
    assert isinstance(builder, Builder), builder
    return compile_engine(planned, ArtifactStore(root), builder, lambda _: None, timeout_s)


def test_a_build_is_checked_kept_by_tag_and_found_again(
    planned: Any, machine: FakeGpuMachine, tmp_path: Path
) -> None:
    built = build(planned, tmp_path)
    assert built.path == tmp_path / "compiled" / planned.tag
    manifest = json.loads((built.path / "manifest.json").read_text())
    assert manifest["versions"]["capability"] == "9.0"
    assert manifest["settings"] == asdict(planned.plan)
    assert manifest["inputs"] == {"checkpoint": planned.checkpoint_digest}
    assert set(manifest["files"]) == {"config.json", "rank0.engine"}
    config = json.loads((built.path / "config.json").read_text())
    assert config["seen"] == "GPU-planned", "the other GPU of the machine was visible"
    timings = tmp_path / "work" / "timings" / "1.2.1-NVIDIA-H200"
    assert timings.read_text() == "1"
    machine.tool("trtllm-build", "sys.exit('must not run again')")
    assert build(planned, tmp_path).manifest == manifest
    machine.tool("trtllm-build")
    shutil.rmtree(built.path)
    build(planned, tmp_path)
    assert timings.read_text() == "2", "the kernel timings were not found again"
    (built.path / "rank0.engine").write_bytes(b"cut")
    with pytest.raises(EngineError, match="not a whole engine"):
        build(planned, tmp_path)


def test_docker_runs_the_planned_image_without_network(
    planned: Any, machine: FakeGpuMachine, tmp_path: Path
) -> None:
    machine.remove("trtllm-build")
    machine.versions.clear()
    built = build(planned, tmp_path, docker=True)
    arguments = json.loads(machine.docker_log.read_text())
    image = arguments.index(planned.plan.image)
    assert arguments[:2] == ["run", "--rm"]
    assert arguments[image + 1 : image + 4] == ["trtllm-build", "--checkpoint_dir", "/checkpoint"]
    assert arguments[arguments.index("--network") + 1] == "none"
    assert f"{planned.checkpoint.resolve()}:/checkpoint:ro" in arguments
    assert arguments[arguments.index("--gpus") + 1] == "device=GPU-planned"
    assert built.manifest["versions"]["image"] == planned.plan.image


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("print('CUDA out of memory'); sys.exit(3)", "CUDA out of memory"),
        ("sys.exit(0)", "wrote no rank0.engine"),
        ("import time; time.sleep(60)", "longer than 1 s"),
        (
            "arguments[arguments.index('--max_batch_size') + 1] = '2048'",
            "max_batch_size is 2048, planned 256",
        ),
    ],
)
def test_a_failed_build_keeps_nothing_and_says_why(
    planned: Any, machine: FakeGpuMachine, tmp_path: Path, body: str, text: str
) -> None:
    machine.tool("trtllm-build", body)
    with pytest.raises(EngineError) as caught:
        build(planned, tmp_path, timeout_s=1.0 if "sleep" in body else 60.0)
    assert text in caught.value.message
    compiled = tmp_path / "compiled"
    assert not [path for path in compiled.iterdir() if path.is_dir()]
    assert list((tmp_path / "work").rglob("*.log"))


def reason(planned: Any, *, docker: bool = False) -> str:
    from slmrank.engine.trtllm.builder import NoBuilder, find_builder

    found = find_builder(planned.plan, docker=docker)
    assert isinstance(found, NoBuilder)
    assert found.fix
    return found.reason


def test_another_gpu_or_version_than_planned_builds_nothing(
    planned: Any, machine: FakeGpuMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.gpu("8.9")
    assert "(compute capability 9.0), here is NVIDIA A100" in reason(planned)
    # Of the same capability, and another product: kernels are timed where they are built.
    machine.gpu("9.0", "NVIDIA H100 80GB HBM3")
    assert "NVIDIA H100 80GB HBM3 (9.0)" in reason(planned)
    machine.gpu("9.0")
    machine.versions["tensorrt-llm"] = "1.1.0"
    assert "TensorRT-LLM 1.1.0 is here, the plan is for 1.2.1" in reason(planned)
    machine.versions |= {"tensorrt-llm": "1.2.1", "tensorrt": "10.13.3.9"}
    assert "TensorRT 10.13.3.9 is here" in reason(planned)
    machine.versions["tensorrt"] = "10.14.1.48.post1"
    monkeypatch.setenv("NVIDIA_TRITON_SERVER_VERSION", "26.01")
    assert reason(planned) == "container 26.01 is here, the plan is for 26.07"


def test_where_nothing_can_build_there_is_a_reason(planned: Any, machine: FakeGpuMachine) -> None:
    machine.versions.clear()
    assert "tensorrt_llm is not installed" in reason(planned)
    machine.remove("nvidia-smi")
    assert "nvidia-smi not found" in reason(planned, docker=True)


def test_releases_are_compared_without_their_builds() -> None:
    assert same_release("10.14.1.48.post1", "10.14.1.48")
    assert same_release("1.2.1+cu131", "1.2.1")
    assert not same_release("1.2.10", "1.2.1")


def test_the_plan_holds_what_a_full_batch_can_use() -> None:
    assert plan(max_batch_size=32).max_num_tokens == 32 * 236
    assert plan(max_batch_size=256).max_num_tokens == 16384
    spec = TrtllmSpec(max_batch_size=1, tokens_per_block=128)
    small = make_plan(spec, GEOMETRY, positions=512, longest_prompt=70)
    assert small.max_num_tokens == 128


def test_a_damaged_copy_is_not_built(planned: Any) -> None:
    from slmrank.engine.trtllm.compile import require_whole

    require_whole(planned)
    weights = planned.checkpoint / "rank0.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(EngineError, match="changed"):
        require_whole(planned)
    weights.unlink()
    with pytest.raises(EngineError, match="missing"):
        require_whole(planned)


BUILDING = """
import sys
from slmrank.engine.trtllm import builder as trtllm_builder
trtllm_builder.installed_version = {"tensorrt-llm": "1.2.1"}.get
from slmrank.cli.main import main
sys.argv = ["control", "build", sys.argv[1], "--artifacts", sys.argv[2]]
main()
"""


def test_a_terminated_build_ends_its_compiler_and_leaves_nothing(
    planned: Any, machine: FakeGpuMachine, tmp_path: Path
) -> None:
    pid_file = tmp_path / "compiler.pid"
    body = (
        f"pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))\nimport time; time.sleep(99)"
    )
    machine.tool("trtllm-build", body)
    command = [sys.executable, "-c", BUILDING, str(planned.path), str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(200):
            if pid_file.exists() and pid_file.read_text():
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert not Path(f"/proc/{pid_file.read_text()}").exists()
    assert not [path for path in (tmp_path / "compiled").iterdir() if path.is_dir()]


def test_an_edited_plan_is_refused(planned: Any) -> None:
    from slmrank.engine.trtllm.compile import read_planned

    path = planned.path / "plan.json"
    loaded = json.loads(path.read_text())
    loaded["plan"]["max_batch_size"] = 8
    path.write_text(json.dumps(loaded))
    with pytest.raises(EngineError, match="does not belong to this plan"):
        read_planned(planned.path)
    path.write_text("{")
    with pytest.raises(EngineError, match="no planned engine"):
        read_planned(planned.path)

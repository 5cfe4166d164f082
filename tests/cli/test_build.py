"""`control build` and `control repo` for the GPU targets, on a machine without a GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from slmrank.machine.facts import find_gpus

from tests.conftest import Control, TinyBundle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(find_gpus()[0]), reason="this machine has an NVIDIA GPU"),
]


def changed(tiny: TinyBundle, name: str, **trtllm: object) -> Path:
    """The tiny spec with other TensorRT-LLM settings."""
    spec = yaml.safe_load(tiny.spec.read_text())
    spec["engine"] |= {"target": "trtllm-engine", "trtllm": trtllm}
    path = tiny.spec.parent / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


@pytest.mark.long
def test_without_a_gpu_everything_but_the_engine_is_made(
    control: Control, tiny: TinyBundle
) -> None:
    base = ["build", tiny.spec, "--target", "trtllm-engine", "--artifacts", tiny.artifacts]
    done = control(*base)
    assert done.returncode == 0, done.stderr
    assert "engine: not built here (no NVIDIA GPU" in done.stdout
    answer = json.loads(control(*base, "--json").stdout)
    assert answer["built"] is False
    assert answer["reason"].startswith("no NVIDIA GPU")
    planned = Path(answer["planned"])
    assert (planned / "checkpoint" / "rank0.safetensors").is_file()
    assert json.loads((planned / "plan.json").read_text())["plan"] == answer["plan"]
    job = yaml.safe_load(Path(answer["job"]).read_text())
    assert job["metadata"]["name"].startswith(f"engine-build-{answer['tag']}-")
    assert answer["figures"]["parity"]["mean_abs_dp"] < 0.02
    assert answer["command"][0] == "trtllm-build"

    required = control(*base, "--require-engine")
    assert required.returncode == 6
    assert "not built here" in required.stderr
    assert "Fix:" in required.stderr
    fault = json.loads(control(*base, "--require-engine", "--json").stdout)["error"]
    assert (fault["code"], fault["kind"]) == (6, "EngineError")

    moved = tiny.artifacts / "elsewhere" / answer["tag"]
    shutil.copytree(planned, moved)
    compiled = control("build", moved, "--require-engine")
    assert compiled.returncode == 6
    assert "no NVIDIA GPU" in compiled.stderr
    weights = moved / "checkpoint" / "rank0.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    damaged = control("build", moved)
    assert damaged.returncode == 6
    assert "copy the whole folder again" in damaged.stderr
    assert "verified" not in damaged.stdout
    weights.write_bytes(content)
    dry = control("build", moved, "--engines", "/engines", "--dry-run")
    assert f"would build /engines/compiled/{answer['tag']}" in dry.stdout
    assert "trtllm-build --checkpoint_dir" in dry.stdout
    assert control("build", moved, "--target", "openvino").returncode == 2
    assert control("build", tiny.artifacts).returncode == 6


@pytest.mark.long
def test_the_llm_api_has_nothing_to_compile(control: Control, tiny: TinyBundle) -> None:
    base = ["build", tiny.spec, "--target", "trtllm-llmapi", "--artifacts", tiny.artifacts]
    done = control(*base)
    assert done.returncode == 0, done.stderr
    assert "nothing to compile" in done.stdout
    assert "it was not loaded on a GPU here" in done.stdout
    small = changed(tiny, "small", max_num_tokens=64)
    refused = control("repo", small, "--target", "trtllm-llmapi", "--artifacts", tiny.artifacts)
    assert refused.returncode == 2
    assert "max_num_tokens 64 is below the longest prompt" in refused.stderr
    repo = control("repo", tiny.spec, "--target", "trtllm-llmapi", "--artifacts", tiny.artifacts)
    assert repo.returncode == 0, repo.stderr


@pytest.mark.long
def test_wrong_pairs_are_refused_before_any_work(
    control: Control, tiny: TinyBundle, tmp_path: Path
) -> None:
    path = changed(tiny, "pair", container="26.01")
    for verb in ("build", "repo"):
        done = control(verb, path, "--artifacts", tmp_path / "none")
        assert done.returncode == 2
        assert "container 26.01 holds TensorRT-LLM 1.1.0, not 1.2.1" in done.stderr
        assert "use version 1.2.1 with container 26.04" in done.stderr
    path = changed(tiny, "gpu", gpu="NVIDIA-RTX-4090")
    done = control("build", path, "--dry-run", "--artifacts", tmp_path / "none")
    assert done.returncode == 2
    assert "'NVIDIA-RTX-4090' is not a known GPU product" in done.stderr
    assert not (tmp_path / "none").exists()
    assert control("doctor", path).returncode == 11


@pytest.mark.long
def test_a_quantised_spec_goes_through(control: Control, tiny: TinyBundle) -> None:
    path = changed(tiny, "int8", quantization="int8-sq", calibration_prompts=8)
    done = control("build", path, "--artifacts", tiny.artifacts, "--json", timeout_s=600)
    assert done.returncode == 0, done.stdout + done.stderr
    planned = Path(json.loads(done.stdout)["planned"])
    config = json.loads((planned / "checkpoint" / "config.json").read_text())
    assert config["quantization"]["quant_algo"] == "W8A8_SQ_PER_CHANNEL"
    refused = control("build", path, "--target", "trtllm-llmapi", "--artifacts", tiny.artifacts)
    assert refused.returncode == 2
    assert "trtllm-llmapi takes none" in refused.stderr


@pytest.mark.long
def test_the_quality_table_scores_the_emitted_weights(control: Control, tiny: TinyBundle) -> None:
    done = control(
        "evaluate",
        tiny.spec,
        "--target",
        "trtllm-engine",
        "--artifacts",
        tiny.artifacts,
        "--json",
        timeout_s=600,
    )
    assert done.returncode == 0, done.stderr
    names = [row["name"] for row in json.loads(done.stdout)["rows"]]
    assert names[-1] == "trtllm-engine, weights only"
